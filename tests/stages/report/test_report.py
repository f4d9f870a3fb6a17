"""The report: complete, self-contained, safe to open, the same bytes for the same inputs."""

import json
import math
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest
import yaml

from cosmopedia.core.errors import DataError
from cosmopedia.core.files import write_text
from cosmopedia.core.text import has_controls
from cosmopedia.corpus.openings import ENOUGH, Openings
from cosmopedia.evaluation.scores import detail_rows
from cosmopedia.tables.contracts import DETAIL, REMOVED
from cosmopedia.tables.contracts import HELDOUT as HELDOUT_TABLE
from cosmopedia.tables.parquet import read_rows, write_table
from stages.report.__main__ import main
from stages.report.corpus import publish
from stages.report.facts import collect, evidence
from stages.report.figures import draw_all, printable, removals
from stages.report.headline import headline
from stages.report.page import (
    DASH,
    baseline_rows,
    by_cell,
    cut_note,
    floor_note,
    funnel,
    published_rows,
    render,
    score_rows,
)
from stages.report.run_record import render_run, stage_rows
from tests.support.documents import document, natural_document, write_documents

HOSTILE = '<script>alert("x")</script> | {{ 7 * 7 }} <img src=http://example.com/x.png> & so on'
ACCOUNT = {"rows_in": 5, "rows_kept": 4, "rows_removed": 1}
SCORES: dict = {
    **{
        "acc": 0.5,
        "acc_stderr": 0.1,
        "acc_norm": 0.25,
        "acc_norm_stderr": None,
        "bpb": 2.5,
        "bpb_stderr": 0.5,
        "items": 4,
    },
    "floor": {"acc": 0.125, "acc_norm": 0.375, "bpb": 4.5},
    "informative": ["acc", "bpb"],
}
HELDOUT = {"documents": 2, "bytes": 900, "bpb": 1.75, "bpb_stderr": 0.25}
METRICS: dict[str, dict] = {
    "prompts": {**ACCOUNT, "removed": {"duplicate_prompt": 1}},
    "pilot": {"cells": {"web-blogpost": {"completions": 2, "opening": HOSTILE, "opening_share": 0.5}}},
    "generate": {"requests": 7, "completed": 7, "failed": 0, "failed_by_reason": {}},
    "clean": {"rows_in": 7, "rows_kept": 6, "rows_removed": 1, "removed": {"refusal": 1, "short": 0}},
    "dedup": {"rows_in": 6, "rows_kept": 5, "rows_removed": 1, "removed": {"near": 1}},
    "decontaminate": {"rows_in": 5, "rows_kept": 3, "rows_removed": 2, "removed": {"contaminated": 2}},
    "mix": {
        "components": {
            "synthetic": {"share": 0.25, "tokens": 40, "documents": 3, "copies": 1.0, "available_tokens": 40},
            "web": {"share": 0.75, "tokens": 120, "documents": 9, "copies": 1.5, "available_tokens": 80},
        }
    },
    "tokenize_corpus": {"documents": 3, "vocab_size": 64, "tokenizer": "generator", "dataset_hash": "d" * 64},
    "train": {
        "parameters": 1000,
        "steps": 3,
        "tokens": 900,
        "epochs": 1.5,
        "train_loss": 2.0,
        "validation_loss": None,
    },
    "evaluate": {
        "panels": {"early": SCORES | {"tasks": ["arc_easy"]}},
        "tasks": {"arc_easy": SCORES | {"cut": 3}},
        "heldout": {"stories": HELDOUT, "together": HELDOUT},
    },
}
CURVE = "step,learning_rate,loss\n1,0,3.0\n2,0.001,2.5\n3,0.0001,2.0\n"
PUBLISHED = ["prompt", "text_token_length", "text", "seed_data", "format", "audience"]


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "profiles").mkdir()
    report = {"seed": 1, "examples": 2, "excerpt": 100, "viewer_rows": 10}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"profile": "tiny", "report": report}))
    (tmp_path / "profiles/tiny.yaml").write_text("report: {}\n")
    (tmp_path / "metrics/plots").mkdir(parents=True)
    for stage, metrics in METRICS.items():
        (tmp_path / f"metrics/{stage}.json").write_text(json.dumps(metrics))
    plots = tmp_path / "metrics/plots"
    (plots / "prompts.csv").write_text("source,style,format,audience,prompts\nweb,blogpost,blogpost,general,4\n")
    (plots / "contamination.csv").write_text("source,task,documents,items\nweb,arc_easy,2,1\n")
    (plots / "train_loss.csv").write_text(CURVE)
    texts = [HOSTILE, "Rain falls when drops grow heavy. " * 9, "Bread\x1b[31m rises because\x07 yeast breathes."]
    gone = document(text=HOSTILE + "!", completion_id="gone-0")
    write_documents(tmp_path / "data/generate/web-blogpost.parquet", [*(document(text=t) for t in texts), gone])
    for stage in ("clean", "decontaminate"):
        write_documents(tmp_path / f"data/{stage}/web-blogpost.parquet", [document(text=t) for t in texts])
    write_documents(tmp_path / "data/decontaminate/khanacademy-textbook.parquet", [])
    for stage, reason in (("clean", "refusal"), ("dedup", "near"), ("decontaminate", "contaminated")):
        gone = {"completion_id": "gone-0", "source": "web", "style": "blogpost", "reason": reason, "text": HOSTILE}
        found = {"items": [{"item_id": "arc_easy/000001", "matched": HOSTILE, "ratio": 0.75}]}
        write_table(
            tmp_path / f"data/{stage}/removed/removed.parquet", [{**gone, "evidence": json.dumps(found)}], REMOVED
        )
    return tmp_path


def detail(item: int, logprobs: list[float]) -> dict:
    rows = detail_rows(
        [{"item_id": f"arc_easy/{item}", "task": "arc_easy", "group": None, "gold": 0, "choices": [" a", " b"]}],
        [logprobs],
    )
    return rows[0]


def heldout_row(document: int, nats: float) -> dict:
    return {"set": "stories", "document_id": f"stories/{document}", "nats": nats, "tokens": 9, "bytes": 100}


def test_our_score_next_to_a_baseline_is_that_of_the_baselines_items(repository: Path):
    right, wrong = [-1.0, -2.0], [-2.0, -1.0]
    for name, answers, documents in (
        ("baselines/{}other", [right, wrong], [50.0]),
        ("evaluate/{}seed-1", [wrong, right, right], [100.0, 10.0]),
        ("evaluate/{}seed-2", [wrong, wrong, right], [200.0, 10.0]),
    ):
        details = [detail(number, logprobs) for number, logprobs in enumerate(answers)]
        write_table(Path(f"data/{name.format('')}.parquet"), details, DETAIL)
        texts = [heldout_row(number, nats) for number, nats in enumerate(documents)]
        write_table(Path(f"data/{name.format('heldout-')}.parquet"), texts, HELDOUT_TABLE)
    published = {
        "metric": "acc",
        "source": "a | table",
        "scores": {"arc_easy": {"published": 0.5, "ours": 0.25, "stderr": None, "items": 2}},
    }
    Path("metrics/baselines.json").write_text(json.dumps({"models": {"other": {"published": published}}}))
    facts = collect(1, 2)
    ours, other = facts.baselines["ours"], facts.baselines["other"]
    assert (ours["panel"]["items"], ours["panel"]["acc_norm"], other["panel"]["acc_norm"]) == (2, 0.25, 0.5)
    assert ours["heldout"]["bpb"] == pytest.approx(1.5 / math.log(2)) == 3 * other["heldout"]["bpb"]
    assert [row[0] for row in baseline_rows(facts)] == ["highest floor", "this corpus's model", "other"]
    assert published_rows(facts) == [["other", "arc_easy", "0.5", "0.25", DASH, "2", "acc; a | table"]]
    Path("x.png").write_bytes(bytes(24))
    figures = dict.fromkeys(("waterfall", "prompts", "openings", "tokens", "loss", "scores"), Path("x.png"))
    assert "Other people" in render(facts, "tiny", figures, 100)


class Addresses(HTMLParser):
    """Collects tags and what they load or link."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]


def page() -> str:
    main()
    return Path("data/report/index.html").read_text()


@pytest.mark.slow
def test_the_page_loads_nothing_from_anywhere(repository: Path):
    found = Addresses()
    found.feed(page())
    assert found.addresses and all(
        a.startswith(("data:image/", "#", "viewer.html", "run.html")) for a in found.addresses
    )
    assert not re.search(r"@import|url\(", page())


@pytest.mark.slow
def test_text_from_models_and_the_web_is_escaped(repository: Path):
    text = page()
    found = Addresses()
    found.feed(text)
    assert not found.tags & {"script", "iframe", "object", "embed"}
    assert (
        text.count("&lt;script&gt;alert(") == 8
    )  # the document, the pilot's opening; text and match of three removals
    assert "{{ 7 * 7 }}" in text


@pytest.mark.slow
def test_control_characters_reach_no_page(repository: Path):
    text = page()
    assert "Bread[31m rises because yeast breathes." in text and not has_controls(text)


def test_a_card_cell_cannot_break_out_of_its_table(repository: Path):
    write_documents(
        repository / "data/decontaminate/web-blogpost.parquet",
        [document(format="blog|post\nx", text="One short text.")],
    )
    main()
    card = Path("data/corpus/README.md").read_text()
    assert "| blog\\|post x | 1 |" in card
    front = yaml.safe_load(card.split("---")[1])
    assert front["size_categories"] == ["n<1K"]
    assert [c["config_name"] for c in front["configs"]] == ["default", "web"]  # khanacademy has no document


def test_the_cards_licence_follows_the_rows_and_the_generator(repository: Path):
    from huggingface_hub import DatasetCard, DatasetCardData

    made = {"model": "mistralai/Mixtral-8x7B-Instruct-v0.1", "sampling": '{"temperature": 0.5, "top_k": null}'}
    rows = [document(text=f"Rain {n}.", seed_licence=name, **made) for n, name in enumerate(["CC-BY-SA-4.0", "MIT"])]
    write_documents(repository / "data/decontaminate/web-blogpost.parquet", rows)
    (repository / "metrics/sources").mkdir()
    (repository / "metrics/sources/web.json").write_text(json.dumps({"dataset": "owner/web|pages"}))
    (repository / "metrics/clean.json").write_text(json.dumps(METRICS["clean"] | {"language": "no"}))
    publish(collect(1, 2), "tiny")
    card = DatasetCard.load(Path("data/corpus/README.md"))
    assert isinstance(card.data, DatasetCardData)
    assert (card.data.license, card.data.language, card.data.pretty_name) == (
        "cc-by-sa-4.0",
        ["no"],  # Norwegian, and no word for false
        "Cosmopedia (tiny)",
    )
    assert "CC-BY-SA-4.0 is share-alike" in card.text and "Sampling: temperature 0.5." in card.text
    assert "| web | owner/web\\|pages | sha256:0 | MIT | https://opensource.org/license/mit |" in card.text
    assert "| mistralai/Mixtral-8x7B-Instruct-v0.1 | 0 | Apache-2.0 |" in card.text


@pytest.mark.slow
def test_load_dataset_reads_the_corpus_whole_and_by_source(repository: Path, monkeypatch: pytest.MonkeyPatch):
    import datasets

    write_documents(repository / "data/decontaminate/stanford-textbook.parquet", [document(text="Tides turn.")])
    publish(collect(1, 2), "tiny")
    whole, web = (
        datasets.load_dataset("data/corpus", *name, split="train", cache_dir=str(repository / "cache"))
        for name in ([], ["web"])
    )
    assert "Tides turn." in whole["text"] and "Tides turn." not in web["text"]
    front = yaml.safe_load(Path("data/corpus/README.md").read_text().split("---")[1])
    names = [config["config_name"] for config in front["configs"]]
    others = [
        datasets.load_dataset("data/corpus", n, split="train", cache_dir=str(repository / "cache")) for n in names
    ]
    assert [loaded.num_rows for loaded in others] == [4, 1, 3] and names == ["default", "stanford", "web"]
    assert (whole.num_rows, web.num_rows) == (4, 3) and whole.column_names[1:7] == PUBLISHED


def test_a_pattern_of_the_card_matches_files_of_its_folder(repository: Path):
    publish(collect(1, 2), "tiny")
    front = yaml.safe_load(Path("data/corpus/README.md").read_text().split("---")[1])
    assert all(list(Path("data/corpus").glob(config["data_files"])) for config in front["configs"])
    assert sorted(p.name for p in Path("data/corpus").rglob("*")) == ["README.md", "web-blogpost.parquet"]


@pytest.mark.slow
def test_the_same_inputs_give_the_same_bytes_at_any_commit_and_place(
    repository: Path, monkeypatch: pytest.MonkeyPatch
):
    def outputs() -> dict[str, bytes]:
        main()
        files = [*Path("data/report").rglob("*.*"), *Path("data/corpus").iterdir(), *Path("metrics").rglob("*.*")]
        return {str(path): path.read_bytes() for path in files if path.name != "run.html"}

    first = outputs()
    monkeypatch.setenv("DVC_EXP_NAME", "another")
    monkeypatch.setenv("COSMO_COMPUTE", "slurm-h100")
    for command in (["init", "-q"], ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "--allow-empty"]):
        subprocess.run(["git", *command, *(["-m", "t"] if "commit" in command else [])], check=True)
    assert len(first) == 26 and outputs() == first
    assert not [name for name, content in first.items() if name.endswith(".svg") and b"<dc:date>" in content]


@pytest.mark.parametrize(
    "name", ["metrics/dedup.json", "metrics/plots/train_loss.csv", "data/clean/removed/removed.parquet"]
)
def test_a_required_file_that_is_missing_is_an_error(repository: Path, name: str):
    Path(name).unlink()
    with pytest.raises(DataError, match=re.escape(f"{name} is missing")):
        main()


@pytest.mark.slow
def test_a_metric_that_is_not_there_is_a_dash(repository: Path):
    text = page()
    assert re.search(r"validation perplexity</td><td>–</td>", text)
    Path("metrics/export.json").write_text(json.dumps({"logits_max_difference": 1.5e-7}))
    assert "1.5e-07" in page() and "1.5e-07" not in text


def test_every_stage_and_reason_is_accounted_for(repository: Path):
    text = page()
    for heading in ("clean: refusal (1)", "dedup: near (1)", "decontaminate: contaminated (2)"):
        assert heading in text
    assert '<td>arc_easy</td><td class="n">2 (1)</td>' in text


def test_a_prompt_that_was_not_drawn_is_no_duplicate(repository: Path):
    facts = collect(1, 2)
    facts.metrics["prompts"]["removed"] = {"duplicate_prompt": 1, "not_drawn": 2000}
    assert {name: note for name, _, _, note in funnel(facts)}["prompts"] == "2,000 not drawn, 1 duplicates"


@pytest.mark.slow
def test_natural_text_is_in_the_mix_and_in_nothing_that_is_published(repository: Path):
    page_text = "A page of somebody else about bread."
    before = headline(collect(1, 2))
    write_documents(Path("data/decontaminate/web-natural.parquet"), [natural_document(page_text)])
    path = Path("data/dedup/removed/removed.parquet")
    rows = [*read_rows([path], REMOVED)]
    gone = rows[0] | {"completion_id": "web/1", "style": "natural", "text": page_text}
    write_table(path, [*rows, gone], REMOVED)
    assert page_text not in page() and headline(collect(1, 2)) == before
    assert not list(Path("data/corpus").glob("*natural*"))
    card = Path("data/corpus/README.md").read_text()
    assert "(1.5 epochs) of 25% synthetic, 75% web text, reaches" in card and "natural" not in card
    assert '<td>web</td><td class="n">75.0%</td><td class="n">120</td>' in page()


def test_evidence_that_is_no_json_is_shown_as_it_is():
    assert evidence("not json") == [("evidence", "not json")]
    assert evidence('{"kept": "a", "ratio": 0.123456}') == [("kept", "a"), ("ratio", "0.123")]


def test_the_headline_numbers_are_few_flat_and_free_of_text_times_and_costs(repository: Path):
    numbers = headline(collect(1, 2))
    assert len(numbers) <= 16 and all(isinstance(value, int | float) for value in numbers.values())
    assert numbers["kept"] == 0.4286 and numbers["contaminated"] == 0.4 and numbers["duplicates"] == 0.1667
    assert numbers["early_acc_norm"] == 0.25 and numbers["train_loss"] == 2.0
    assert not {"documents", "prompts"} & set(numbers) and collect(1, 2).documents == 3  # counters are on the page
    assert (numbers["heldout_bpb"], numbers["early_bpb"], numbers["early_acc_norm_floor"]) == (1.75, 2.5, 0.375)
    assert "loss" not in numbers and "early_acc_norm_se" not in numbers  # this corpus has no validation split


def test_several_seeds_add_their_spread_to_the_headline_numbers(repository: Path):
    Path("metrics/train.json").write_text(
        json.dumps(METRICS["train"] | {"validation_loss": 3.0, "validation_loss_sd": 0.1})
    )
    scores = METRICS["evaluate"] | {
        "panels": {"early": SCORES | {"tasks": ["arc_easy"], "acc_norm_sd": 0.02, "bpb_sd": 0.03}},
        "heldout": {"together": HELDOUT | {"bpb_sd": 0.04}},
    }
    Path("metrics/evaluate.json").write_text(json.dumps(scores))
    numbers = headline(collect(1, 2))
    assert (numbers["loss"], numbers["loss_sd"], numbers["early_acc_norm_sd"]) == (3.0, 0.1, 0.02)
    assert (numbers["early_bpb_sd"], numbers["heldout_bpb_sd"]) == (0.03, 0.04)


def test_scores_are_shown_next_to_their_floors(repository: Path):
    facts = collect(1, 2)
    (task, average) = score_rows(facts)
    assert task[:5] == ["arc easy", "4", "2.500", "0.500", "4.500"] and task[5:8] == ["0.250", DASH, "0.375"]
    assert task[-1] == "acc, bpb" and average[0] == "average: early"
    assert floor_note(SCORES) == "floor 0.375, not informative at this size"
    assert "3 items are longer than the model" in cut_note(facts)
    page = render(facts, "tiny", draw_all(facts, repository / "figures"), 100)
    assert "guessing" not in page and "<td>stories</td>" in page and "1.75" in page and "3 items are longer" in page


def test_openings_are_counted_before_and_after_cleaning_and_any_text_can_be_a_label(repository: Path):
    before, after = collect(1, 1).openings
    assert (before.rows, after.rows) == (4, 3) and "rain falls when" in before.counts & after.counts
    hostile = '<script>alert("x")</script> | {{'
    assert (before.counts[hostile], after.counts[hostile]) == (2, 1)
    assert printable("$x^{ \x1b[1m日本 " + "w" * 50) == "“$x^{ ?[1m?? " + "w" * 28 + "”" and printable("") == "(empty)"


def test_the_openings_of_a_large_cell_are_those_of_its_first_rows():
    openings = Openings()
    openings.add(pl.Series(["One two three four.", "one  two\nthree", "", "One"]))
    assert openings.counts == {"one two three": 2, "": 1, "one": 1} and not openings.complete
    openings.add(pl.Series(["One two three again"] * ENOUGH))
    assert openings.complete and openings.rows == ENOUGH
    assert openings.most_common() == ("one two three", (ENOUGH - 2) / ENOUGH)


def test_what_each_source_and_style_lost_is_in_a_table(repository: Path):
    facts = collect(1, 1)
    counts = {"clean": (10, 9, 1), "dedup": (9, 6, 3), "decontaminate": (6, 6, 0)}
    for stage, (rows, kept, removed) in counts.items():
        cell = {"rows_in": rows, "rows_kept": kept, "rows_removed": removed}
        facts.metrics[stage]["cells"] = {"web-blogpost": cell, "web-natural": cell}
    assert by_cell(facts) == [["web-blogpost", "10", "10.0%", "33.3%", "0.0%", "6"]]
    bars = [bar for stage in removals(facts).axes[0].containers for bar in stage]
    assert [(bar.get_x(), bar.get_width()) for bar in bars] == [(0, 10), (10, 30), (40, 0)]  # % of the completions


def test_the_run_page_says_what_each_stages_last_run_took(repository: Path):
    def lines(run: str, stage: str, began: float, profile: str = "tiny", **ended: object) -> list[dict]:
        first = {"run": run, "stage": stage, "began": began, "profile": profile}
        return [first, {"run": run, "ended": began + 1500, **ended}] if ended else [first]

    done = {"outcome": "done"}
    entries = [
        *lines("a", "clean", 1000.0, cpu_seconds=7.0, peak_mb=9000, **done),  # an earlier run
        *lines("b", "prompts", 2000.0, **done),  # of a version that did not measure
        *lines("c", "clean", 4000.0, cpu_seconds=1234.5, peak_mb=321, **done),
        *lines("d", "clean", 6000.0, cpu_seconds=1.0, peak_mb=1, outcome="failed"),
        *lines("e", "train", 7000.0),  # still running
        *lines("f", "train", 8000.0, profile="other", cpu_seconds=5.0, peak_mb=5, **done),
    ]
    write_text(repository / ".store/runs/stages.jsonl", "\n".join(map(json.dumps, entries)))
    assert stage_rows("tiny") == [
        ["prompts", "1,500", "-", "-"],
        ["clean", "1,500", "1,234", "321"],
        ["all of them", "3,000", "1,234", "321"],
    ]
    assert '<td>clean</td><td class="n">1,500</td><td class="n">1,234</td><td class="n">321</td>' in render_run("tiny")
    assert "What each stage took" not in render_run("unknown")


def test_where_and_at_what_cost_is_on_a_page_of_its_own(repository: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DVC_EXP_NAME", "two-audiences")
    record = {"sent": 7, "actual": {"gpu_hours": 1.25}, "latency_seconds": {"p50": 0.5}, "retries": {HOSTILE: 1}}
    write_text(repository / ".store/runs/generate.json", json.dumps(record))
    write_text(repository / ".store/runs/pilot.json", '{"sent": ')  # a killed run's: the report goes on without it
    rate = {"tokens_per_second": 25.92, "gpus": 0, "measured": HOSTILE}
    rates = {
        "local SmolLM2": rate,
        "damaged": 3,
        'slurm ["SmolLM2", "r1", null]': rate | {"tokens_per_second": 12345.6},
    }
    write_text(repository / ".store/rates.json", json.dumps(rates))
    write_text(repository / ".store/train/rates.json", '{"transformers 3443136 x1": 1234.5}')
    monkeypatch.setattr("stages.report.run_record.changed_params", lambda now: {"clean.min_tokens": "90"})
    run = render_run("tiny")
    assert '<td>SmolLM2 on slurm</td><td class="n">12,346</td>' in run
    assert '<td>transformers 3,443,136 parameters x1</td><td class="n">1,234</td>' in run
    assert '<td>local SmolLM2</td><td class="n">25.9</td>' in run and "<td>clean.min_tokens</td><td>90</td>" in run
    assert all(
        text in run for text in ("two-audiences", "git revision", "unknown", "<td>actual: gpu hours</td><td>1.25</td>")
    )
    assert "<script>" not in run and "pilot" not in run and "<svg" not in run
    curve = "seconds,tokens_per_second,endpoints\n0.0,0.0,1\n30.0,1500.0,1\n120.0,750.0,1\n"
    write_text(repository / ".store/runs/generate.throughput.csv", curve)
    run = render_run("tiny")
    assert 'points="0.0,100.0 150.0,0.0 600.0,50.0"' in run and "at most 1,500, over 2 minutes" in run
