"""Publishing: what goes up is whole, allowed and clean; the hub (a stand-in on loopback) gets each file once."""

import hashlib
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.meta import Meta
from dvc_data.hashfile.tree import Tree
from huggingface_hub import DatasetCard, ModelCard

from cosmopedia.cli import publish as cosmo_publish
from cosmopedia.cli.__main__ import app
from cosmopedia.cli.publish import new_release
from cosmopedia.core.errors import ClusterError, ConfigError, DataError
from cosmopedia.publishing import dataset, model
from cosmopedia.publishing.checks import folder_md5
from cosmopedia.publishing.hub import upload
from cosmopedia.publishing.release import Release
from cosmopedia.publishing.scan import kinds_in
from cosmopedia.publishing.summary import TO_ADD, training_summary
from tests.support.command_line import cosmo
from tests.support.documents import document, write_documents
from tests.support.fake_hub import FakeHub, fake_hub

TOKEN = "hf_" + "t0k3n" * 6
COLUMNS = ["prompt", "text_token_length", "text", "seed_data", "format", "audience"]
MAIL = "jane.doe@uni-koeln.de"
CARD = """---
license: cc0-1.0
configs:
- config_name: default
  data_files: '*.parquet'
  default: true
- config_name: web
  data_files: web-*.parquet
- config_name: stanford
  data_files: stanford-*.parquet
---

load_dataset("data/corpus", split="train")

<!-- local -->
| completion_id | key |
<!-- /local -->

<!-- revision -->
Somewhere in git.
"""
SCORES = {"acc_norm": 0.125, "acc_norm_stderr": 0.07, "bpb": 3.5, "bpb_stderr": None, "items": 24}
SCORES |= {"floor": {"acc_norm": 0.25, "bpb": 3.25}}
METRICS = {
    "decontaminate": {"rows_kept": 3, "rows_removed": 1, "benchmark_items": {"checked": 9}},
    "clean": {
        "language": "en",
        "removed": {"short": 2},
        "personal_data": {"action": "flag", "documents": {"ip": {"web": 1}}},
    },
    "dedup": {"rows_removed": 0},
    "mix": {
        "tokens": 2_000_000_000,
        "components": {"synthetic": {"share": 1.0, "documents": 3, "tokens": 90, "licences": ["CC-BY-4.0"]}},
    },
    "tokenize_corpus": {"dataset_hash": "d" * 64},
    "train": {"parameters": 1000, "tokens": 900},
    "natural": {"components": {}},
    "export": {"models": 1},
    "evaluate": {
        "tasks": {"arc_easy": SCORES},
        "panels": {"early": SCORES},
        "heldout": {"stories": {"documents": 2, "bpb": 1.75, "bpb_stderr": 0.25}},
    },
    "sources/web": {"dataset": "owner/pages", "revision": "r1", "licence": "ODC-By-1.0", "rows_kept": 2},
    "sources/stanford": {"dataset": "./outlines", "revision": "r2", "licence": "CC0-1.0", "rows_kept": 1},
    "sources/ready": {"dataset": None, "revision": None, "licence": "CC0-1.0", "rows_kept": 0},
}


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """data/corpus of three documents by two sources, with metrics; the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    made = {"model": "mistralai/Mixtral-8x7B-Instruct-v0.1", "seed_licence": "CC-BY-4.0"}
    web = [document(text=f"Rain falls when drops grow heavy, as {n}.", **made) for n in range(2)]
    write_documents(tmp_path / "data/corpus/web-blogpost.parquet", web)
    write_documents(tmp_path / "data/corpus/stanford-textbook.parquet", [document(text="Tides turn.", **made)])
    (tmp_path / "data/corpus/README.md").write_text(CARD)
    (tmp_path / "metrics/sources").mkdir(parents=True)
    for name, content in METRICS.items():
        (tmp_path / f"metrics/{name}.json").write_text(json.dumps(content))
    (tmp_path / "models/generator").mkdir(parents=True)
    generator = {"model": made["model"], "revision": "r1"}
    (tmp_path / "models/generator/generator.json").write_text(json.dumps(generator))
    return tmp_path


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub(TOKEN) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def release(kind: str = "dataset") -> Release:
    return Release(kind, "owner/rain", "abc123", "2026-11-30", Path("publish") / kind)


def rewrite(stage: str, **values: object) -> None:
    Path(f"metrics/{stage}.json").write_text(json.dumps(METRICS[stage] | values))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_the_folder_loads_whole_and_by_source_with_the_published_schema(corpus: Path):
    import datasets

    dataset.build(release(), [], mask=False)
    folder = release().folder
    for name, count in ((None, 3), ("default", 3), ("web", 2), ("stanford", 1)):
        loaded = datasets.load_dataset(str(folder), name, split="train", cache_dir=str(corpus / "cache"))
        assert (loaded.num_rows, loaded.column_names) == (count, COLUMNS)
    assert [str(kind) for kind in pq.read_schema(folder / "web-blogpost.parquet").types].count("int64") == 1


def test_a_published_card_names_repository_and_revision_and_no_lineage(corpus: Path):
    dataset.build(release(), [], mask=False)
    card = DatasetCard.load(release().folder / "README.md")
    assert card.data.license == "cc0-1.0" and "git revision `abc123`" in card.text
    assert 'load_dataset("owner/rain"' in card.text and "completion_id" not in card.text and "<!--" not in card.text


def test_croissant_has_what_the_specification_requires_and_names_what_is_there(corpus: Path):
    dataset.build(release(), [], mask=False)
    folder = release().folder
    content = json.loads((folder / "croissant.json").read_text())
    required = {"@context", "@type", "conformsTo", "name", "description", "license", "url", "creator", "datePublished"}
    assert required <= content.keys() and content["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    assert content["license"] == "https://creativecommons.org/licenses/by/4.0/"
    assert (
        content["version"] == "1.0.0+abc123" and "owner: rain (2026), made at git revision abc123" in content["citeAs"]
    )
    ids = {one["@id"]: one for one in content["distribution"]}
    for one in content["distribution"][1:]:
        assert one["@type"] == "cr:FileSet" and one["containedIn"]["@id"] in ids and list(folder.glob(one["includes"]))
    assert [one["@id"] for one in content["recordSet"]] == ["default", "stanford", "web"]
    for records in content["recordSet"]:
        assert [field["name"] for field in records["field"]] == COLUMNS
        assert all(field["source"]["fileSet"]["@id"] in ids and field["dataType"] for field in records["field"])


def test_a_corpus_that_was_not_decontaminated_is_refused(corpus: Path):
    for change in ({"benchmark_items": {"checked": 0}}, {"rows_kept": 4}):
        rewrite("decontaminate", **change)
        with pytest.raises(DataError, match=r"metrics/decontaminate\.json"):
            dataset.build(release(), [], mask=False)
    Path("metrics/decontaminate.json").unlink()
    with pytest.raises(DataError, match=r"metrics/decontaminate\.json is missing; run the stage decontaminate"):
        dataset.build(release(), [], mask=False)
    assert not release().folder.exists()


def test_a_licence_that_is_unknown_or_forbids_is_refused_unless_params_name_it(corpus: Path):
    rows = [document(text=f"Rain {name}.", seed_licence=name) for name in ("All rights reserved", "CC-BY-ND-4.0")]
    write_documents(corpus / "data/corpus/web-blogpost.parquet", rows)
    with pytest.raises(ConfigError, match=r"All rights reserved: it is not known .* CC-BY-ND-4.0: it allows no adapt"):
        dataset.build(release(), [], mask=False)
    whole = dataset.build(release(), ["all rights reserved", "CC-BY-ND-4.0", "tiny"], mask=False)
    assert whole.strictest is None


def test_mail_addresses_and_secrets_are_refused_by_row_or_masked(corpus: Path):
    rows = [document(text=f"Write to {MAIL}."), document(text="A key.", seed_data="AKIA" + "1B" * 8)]
    rows.append(document(text="Write to jane@example.org, a bearer certificate's Basic Understanding."))
    rows = [row | {"model": "SmolLM2-135M"} for row in rows]
    write_documents(corpus / "data/corpus/web-blogpost.parquet", rows)
    rewrite("decontaminate", rows_kept=4)
    with pytest.raises(DataError, match=r"1 email\(s\), 1 secret\(s\) in 2 row\(s\)") as refusal:
        dataset.build(release(), [], mask=False)
    listed = Path("publish/findings.csv").read_text()
    for row, where in zip(rows, ("text,email", "seed_data,secret"), strict=False):
        assert row["completion_id"] in str(refusal.value) and f"{row['completion_id']},{where}" in listed
    assert MAIL not in listed and rows[2]["completion_id"] not in listed
    dataset.build(release(), [], mask=True)
    table = pq.read_table(release().folder / "web-blogpost.parquet").to_pydict()
    assert "Write to email@example.com." in table["text"] and "[redacted]" in table["seed_data"]
    assert rows[2]["text"] in table["text"]


@pytest.mark.parametrize("text", ["Bearer " + "a1" * 12, "-----BEGIN RSA PRIVATE KEY-----", TOKEN, "sk-" + "a1" * 12])
def test_a_secret_is_known_by_its_form(text: str):
    assert kinds_in(f"It is {text}.") == ["secret"]


@pytest.mark.slow
def test_an_upload_is_private_whole_and_sent_once(corpus: Path, hub: FakeHub):
    dataset.build(release(), [], mask=False)
    assert "4 of 4 files new" in upload(release(), public=False, say=lambda _: None)
    repo = "datasets/owner/rain"
    assert hub.repositories[repo]["private"] and hub.content(repo) == contents(release().folder)
    assert len(hub.puts) == 2 and hub.commits[0]["summary"] == "Made at git revision abc123"
    dataset.build(release(), [], mask=False)
    assert "nothing was sent" in upload(release(), public=False, say=lambda _: None)
    assert (len(hub.puts), len(hub.commits)) == (2, 1)

    Path("data/corpus/stanford-textbook.parquet").unlink()  # and what goes here goes there
    rewrite("decontaminate", rows_kept=2)
    hub.repositories[repo]["files"][".gitattributes"] = b"*.parquet filter=lfs"  # the hub's own, which stays
    dataset.build(release(), [], mask=False)
    assert "1 removed" in upload(release(), public=False, say=lambda _: None)
    assert hub.content(repo) == {**contents(release().folder), ".gitattributes": b"*.parquet filter=lfs"}
    assert len(hub.puts) == 2


@pytest.mark.slow
def test_an_upload_that_was_cut_off_goes_on_and_nobody_sees_half_of_it(corpus: Path, hub: FakeHub):
    dataset.build(release(), [], mask=False)
    hub.fail_after = 1
    with pytest.raises(ClusterError, match=r"uploading '.*parquet' to the Hub.*run it again to go on"):
        upload(release(), public=False, say=lambda _: None)
    assert hub.content("datasets/owner/rain") == {} and len(hub.puts) == 1
    hub.fail_after = None
    upload(release(), public=False, say=lambda _: None)
    assert hub.content("datasets/owner/rain") == contents(release().folder)
    assert len(hub.puts) == len(set(hub.puts)) == 2


def test_an_upload_without_a_right_or_to_a_public_place_is_refused(
    corpus: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
):
    dataset.build(release(), [], mask=False)
    hub.create({"type": "dataset", "organization": "owner", "name": "rain", "private": False})
    with pytest.raises(ConfigError, match="owner/rain is public already; publish with --public"):
        upload(release(), public=False, say=lambda _: None)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "0ther" * 6)
    with pytest.raises(ConfigError, match="the hub refuses HF_TOKEN for owner/rain") as refusal:
        upload(release(), public=True, say=lambda _: None)
    assert "0ther" not in str(refusal.value)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ConfigError, match="HF_TOKEN is not set"):
        upload(release(), public=True, say=lambda _: None)
    assert hub.content("datasets/owner/rain") == {}


def test_a_dry_run_lists_what_goes_up_and_an_upload_wants_a_committed_revision(corpus: Path):
    Path("dvc.yaml").touch()
    Path("params.yaml").write_text("profile: tiny\npublish: {allow: []}\n")
    Path("profiles").mkdir()
    Path("profiles/tiny.yaml").write_text("{}\n")
    listed = json.loads(cosmo(app, "publish", "dataset", "--dry-run", "--json"))
    made = contents(Path(".store/publish/dataset"))
    assert {file["path"]: file["sha256"] for file in listed["files"]} == {
        name: hashlib.sha256(content).hexdigest() for name, content in made.items()
    }
    assert [file["size"] for file in listed["files"]] == [len(made[name]) for name in sorted(made)]
    assert len(made) == 4 and listed["private"]
    with pytest.raises(ConfigError, match="--repo is missing"):
        cosmo_publish.dataset()
    with pytest.raises(ConfigError, match="git revision is 'unknown', by which nobody could make this again"):
        cosmo_publish.dataset("owner/rain")


def test_only_what_the_committed_dvc_lock_has_is_sent(corpus: Path, hub: FakeHub):
    """The hash is DVC's own, of a folder with a subfolder."""
    Path("models/export/seed-1").mkdir(parents=True)
    Path("models/export/seed-1/b").write_bytes(b"b")
    Path("models/export/c").write_bytes(b"c")
    tree = Tree()
    for path in (("seed-1", "b"), ("c",)):
        content = Path("models/export", *path).read_bytes()
        tree.add(path, Meta(), HashInfo("md5", hashlib.md5(content).hexdigest()))
    tree.digest()
    assert folder_md5(Path("models/export")) == tree.hash_info.value
    for command in (["init", "-q"], ["add", "dvc.lock"], ["commit", "-qm", "t"]):
        lock = {"stages": {"report": {"outs": [{"path": "data/corpus", "md5": folder_md5(dataset.CORPUS)}]}}}
        Path("dvc.lock").write_text(json.dumps(lock))
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", *command], check=True)
    revision = new_release("dataset", dataset.CORPUS, "owner/rain", dry_run=False).revision
    assert len(revision) == 40
    with pytest.raises(ConfigError, match=rf"data/corpus has the hash .*, but dvc.lock at {revision[:12]} has"):
        Path("data/corpus/README.md").write_text("another")
        new_release("dataset", dataset.CORPUS, "owner/rain", dry_run=False)


@pytest.fixture
def exported(corpus: Path) -> Path:
    folder = corpus / "models/export/seed-1"
    (folder / "checkpoints/step-9").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "training.json").write_text("{}")
    head = "---\nlicense: cc-by-4.0\n---\n\n"
    body = 'from_pretrained("models/export/seed-1")\n\n<!-- scores -->\nLater.\n\n<!-- revision -->\nIn git.\n'
    (folder / "README.md").write_text(head + body)
    return folder


@pytest.mark.slow
def test_a_models_card_has_scores_with_intervals_for_people_and_for_the_hub(exported: Path, hub: FakeHub):
    model.build(release("model"), [], seed=1)
    assert sorted(contents(release("model").folder)) == ["README.md", "model.safetensors", "training.json"]
    card = ModelCard.load(release("model").folder / "README.md")
    (result,) = card.data.eval_results or []
    assert (result.dataset_type, result.metric_value, card.data.license) == ("arc_easy", 0.125, "cc-by-4.0")
    assert "| arc easy | 24 | 0.125 (0.000 to 0.262) | 0.250 | 3.500 | 3.250 |" in card.text
    assert "| held-out: stories | 2 | – | – | 1.750 (1.260 to 2.240) | – |" in card.text
    assert (
        'from_pretrained("owner/rain")' in card.text
        and "`abc123`. `dvc repro export` at that revision" in card.text
        and "Later." not in card.text
    )
    upload(release("model"), public=False, say=lambda _: None)
    assert hub.content("models/owner/rain") == contents(release("model").folder)


def test_a_model_of_texts_that_may_train_no_other_model_is_refused(exported: Path):
    generator = {"model": "meta-llama/Llama-2-7b-chat-hf", "revision": "r1"}
    Path("models/generator/generator.json").write_text(json.dumps(generator))
    with pytest.raises(
        ConfigError, match="Llama 2 Community License: its terms allow texts of the model to improve no"
    ):
        model.build(release("model"), [], seed=1)
    with pytest.raises(DataError, match=r"seed-2 is no exported model.* choose --seed among: seed-1"):
        model.build(release("model"), [], seed=2)


def test_the_summary_tells_the_hubs_data_from_local_files_and_marks_what_is_missing(corpus: Path):
    text = training_summary()
    public, local = re.split(r"### 2\.2.*\n", text.partition("### 2.1")[2].partition("### 2.3")[0])
    assert "| web | owner/pages | r1 | ODC-By-1.0 |" in public and "stanford" not in public
    assert "| stanford | ./outlines | r2 | CC0-1.0 |" in local and "ready" not in text
    assert (
        "1 billion to 10 trillion tokens (2,000,000,000" in text and "| ip" not in text and "1 with ip (flag)" in text
    )
    assert "Mixtral-8x7B-Instruct-v0.1 | r1 | Apache-2.0" in text and text.count(TO_ADD) > 10


def test_the_head_of_a_made_card_is_the_one_of_the_corpus(corpus: Path):
    dataset.build(release(), [], mask=False)
    head = yaml.safe_load((release().folder / "README.md").read_text().split("---")[1])
    assert head == yaml.safe_load(CARD.split("---")[1])
