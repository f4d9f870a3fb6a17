"""Literal rows for tests, and a small repository to run a stage in."""

import json
from collections.abc import Iterable
from pathlib import Path

import yaml

from cosmopedia.core.rng import content_hash
from cosmopedia.corpus.components import NATURAL
from cosmopedia.tables.contracts import BENCHMARK, DOCUMENT, MIXED, PARAPHRASE
from cosmopedia.tables.parquet import write_table
from stages.natural.documents import BLANK
from tests.support.own_params import copy_chat_patterns

ROOT = Path(__file__).parents[2]
PAIRS = Path("data/paraphrases/pairs.parquet")


def document(**overrides: object) -> dict:
    """A DOCUMENT row. `completion_id` follows from the text, unless given."""
    text = str(
        overrides.get("text", "Water boils at a lower temperature on a mountain, because the air presses less.")
    )
    prompt_id = content_hash("prompt", text)
    row = {
        "completion_id": f"{prompt_id}-0",
        "prompt": "Write a short piece for high school students about boiling water.",
        "text_token_length": len(text.split()),
        "text": text,
        "seed_data": "boiling water",
        "format": "textbook_academic_tone",
        "audience": "general",
        "prompt_id": prompt_id,
        "source": "web",
        "style": "blogpost",
        "topic": None,
        "topic_named": False,
        "seed_id": "web/1",
        "seed_revision": "sha256:0",
        "seed_licence": "CC0-1.0",
        "template": "prompts/web/blogpost.txt",
        "template_hash": "0",
        "key": content_hash("key", text),
        "sample_index": 0,
        "finish_reason": "eos_token",
        "prompt_tokens": 12,
        "model": "tiny",
        "model_revision": "0",
        "sampling": "{}",
        "sampling_seed": 1,
        "engine": "cpu",
    }
    return {**row, **overrides}


def write_documents(path: Path, rows: Iterable[dict]) -> None:
    """Write DOCUMENT rows to one file, sorted by id; source and style follow from the file's name.

    What is written to data/decontaminate is in the mix, once.
    """
    source, _, style = path.stem.partition("-")
    rows = [{**row, "source": source, "style": style} for row in rows]
    write_table(path, rows, DOCUMENT)
    if path.parent.name == "decontaminate":
        write_mix(path.parents[1] / "mix" / path.name, {row["completion_id"]: 1 for row in rows})


def write_mix(path: Path, copies: dict[str, int]) -> None:
    """Write MIXED rows to one file."""
    write_table(path, [{"completion_id": name, "copies": number} for name, number in copies.items()], MIXED)


def natural_document(text: str, component: str = "web", **overrides: object) -> dict:
    """A DOCUMENT row of natural text, as the stage natural writes it."""
    name = f"{component}/{content_hash(text)}"
    lineage = {"seed_id": f"{component}/1", "seed_revision": "sha256:0", "seed_licence": "CC0-1.0"}
    own = {"completion_id": name, "text": text, "text_token_length": len(text.split())}
    return BLANK | own | lineage | {"source": component, "style": NATURAL} | overrides


def write_items(folder: Path, task: str, pairs: Iterable[tuple[str, str]]) -> None:
    """Write BENCHMARK rows of (question, answer) to `<folder>/<task>.parquet`."""
    rows = [
        {
            "item_id": f"{task}/{position:06d}",
            "task": task,
            "group": None,
            "query": question,
            "choices": [f" {answer}", " something else"],
            "gold": 0,
            "question": question,
            "answer": answer,
            "other_forms": [],
            "revision": "sha256:0",
        }
        for position, (question, answer) in enumerate(pairs)
    ]
    write_table(folder / f"{task}.parquet", rows, BENCHMARK)


def repository(
    folder: Path, section: str, cluster_tasks: int = 1, cluster_workers: int = 1, **changes: object
) -> None:
    """Give a folder one stage's parameters (params.yaml and the smoke profile, with `changes`) and a compute file.

    A change goes to the file that has the leaf, so that a test cannot invent one. decontaminate gets a table without
    paraphrases, unless there is one.
    """
    if section == "decontaminate" and not (folder / PAIRS).exists():
        write_table(folder / PAIRS, [], PARAPHRASE)
    (folder / "profiles").mkdir(exist_ok=True)
    (folder / "compute").mkdir(exist_ok=True)
    left = dict(changes)
    for name in ("params.yaml", "profiles/smoke.yaml"):
        values = yaml.safe_load((ROOT / name).read_text(encoding="utf-8")).get(section) or {}
        values |= {key: left.pop(key) for key in list(left) if key in values}
        head = {"profile": "smoke"} if name == "params.yaml" else {}
        (folder / name).write_text(yaml.safe_dump({**head, section: values}), encoding="utf-8")
    assert not left, f"{section} has no parameter(s) {sorted(left)}"
    copy_chat_patterns(folder)
    compute = yaml.safe_load((ROOT / "compute/local.yaml").read_text(encoding="utf-8"))
    compute["data"] |= {"tasks": cluster_tasks, "workers": cluster_workers}
    (folder / "compute/local.yaml").write_text(yaml.safe_dump(compute), encoding="utf-8")


def byte_tokenizer(folder: Path) -> Path:
    """A tokenizer of bytes (ids 2-257; <s> is 0, </s> is 1) as Hugging Face files; returns its tokenizer.json."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({"<s>": 0, "</s>": 1, **{byte: 2 + i for i, byte in enumerate(alphabet)}}, []))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder / "tokenizer.json"


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, by its path in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
