"""A small run as its stages leave it, made by hand: five documents, one of them removed by each of three stages."""

import json
import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from cosmopedia.tables.contracts import (
    DOCUMENT,
    FAILED,
    PARAPHRASE,
    PROMPT,
    REJECTED,
    REMOVED,
    SOURCE,
    TOPIC,
    TOPIC_OF_ROW,
)
from cosmopedia.tables.parquet import write_table
from tests.support.documents import document

KEPT, OTHER, SHORT, COPY, LEAKED = (f"{n:x}" * 32 for n in range(1, 6))  # prompt ids
FAILED_ID, REMOVED_ID = "6" * 32, "7" * 32
CELL = "web-blogpost.parquet"
TEXT = "The tide comes in twice a day, because the Earth turns under the pull of the Moon."
DOCUMENTS = pa.schema(
    [("completion_id", pa.string()), ("shard", pa.int32()), ("start", pa.int64()), ("tokens", pa.uint32())]
)


def made_rows() -> dict[str, dict]:
    """The generated documents by prompt id."""
    texts = {
        KEPT: f"Sure! Here it is.\n\n{TEXT}",
        OTHER: "A mill grinds grain between two stones.",
        SHORT: "Too short.",
        COPY: TEXT,
        LEAKED: "What is the boiling point of water? It is 100 degrees.",
    }
    return {
        prompt_id: document(
            completion_id=f"{prompt_id}-0", prompt_id=prompt_id, text=text, text_token_length=len(text.split()),
            topic="Tides", topic_named=True, seed_id=f"web/{number}", key=f"key-{number}",
            seed_licence="CC-BY-4.0" if prompt_id == OTHER else "CC0-1.0",
        )
        for number, (prompt_id, text) in enumerate(texts.items())
    }  # fmt: skip


def write_cell(folder: Path, rows: list[dict], name: str = CELL) -> None:
    """Documents of one cell."""
    write_table(folder / name, rows, DOCUMENT)


def removed(folder: Path, *rows: tuple[dict, str, object]) -> None:
    """A stage's table of removed documents: (document, reason, evidence)."""
    table = [
        {"completion_id": row["completion_id"], "source": row["source"], "style": row["style"], "text": row["text"]}
        | {"reason": reason, "evidence": json.dumps(evidence)}
        for row, reason, evidence in rows
    ]
    write_table(folder / "removed/removed.parquet", table, REMOVED)


def finished_run(root: Path) -> None:
    """Put data/ and models/ of the run below `root`."""
    shutil.copytree(_made().name, root, dirs_exist_ok=True)


@cache
def _made() -> TemporaryDirectory[str]:
    """The run, written once and copied from here."""
    folder = TemporaryDirectory(prefix="finished-run-")
    root = Path(folder.name)
    data, rows = root / "data", made_rows()
    write_cell(data / "generate", list(rows.values()))
    failed = {
        "completion_id": f"{FAILED_ID}-0",
        "prompt_id": FAILED_ID,
        "key": "k",
        "reason": "server",
        "detail": "500",
    }
    write_table(data / "generate/failed/failed.parquet", [{**failed, "attempts": 3}], FAILED)
    clean = {prompt_id: dict(row) for prompt_id, row in rows.items() if prompt_id != SHORT}
    clean[KEPT]["text"] = TEXT
    write_cell(data / "clean", list(clean.values()))
    removed(data / "clean", (rows[SHORT], "short", {"tokens": 2}))
    write_cell(data / "dedup", [clean[KEPT], clean[OTHER], clean[LEAKED]])
    evidence = {"kept": f"{KEPT}-0", "kind": "exact", "jaccard": 1.0}
    removed(data / "dedup", (rows[COPY], "exact", evidence))
    write_cell(data / "decontaminate", [clean[KEPT], clean[OTHER]])
    removed(data / "decontaminate", (rows[LEAKED], "contaminated", {"items": [{"item_id": "arc_easy/000001"}]}))
    _before(data, rows)
    _after(root)
    return folder


def _before(data: Path, rows: dict[str, dict]) -> None:
    prompts = [{name: row[name] for name in PROMPT.schema.names} for row in rows.values()]
    prompts.append(prompts[0] | {"prompt_id": FAILED_ID})
    write_table(data / "prompts" / CELL, prompts, PROMPT)
    lost = {"row_id": REMOVED_ID, "reason": "near_duplicate_prompt", "detail": "like web/1", "row": "{}"}
    write_table(data / "prompts/removed/removed.parquet", [lost], REJECTED)
    source = {"source": "web", "original_id": "", "title": "Tides", "text": "boiling water", "context": "{}"}
    source |= {"url": "https://tides.example", "licence": "CC0-1.0", "revision": "sha256:0"}
    write_table(data / "sources/web.parquet", [{**source, "row_id": row["seed_id"]} for row in rows.values()], SOURCE)
    write_table(data / "topics/web.parquet", [{"row_id": "web/0", "cluster": 4, "topic": "Tides"}], TOPIC_OF_ROW)
    decided = {"decision": "keep", "reason": "it is physics", "decided_by": "label", "mixed": False, "size": 9}
    topic = {"cluster": 4, "topic": "Tides", "label": "Sea", "educational_score": 8, **decided}
    write_table(data / "topics/topics.parquet", [topic], TOPIC)


def _after(root: Path) -> None:
    data = root / "data"
    write_table(data / "paraphrases/pairs.parquet", [], PARAPHRASE)
    for split, row in (("train", (f"{KEPT}-0", 0, 1234, 18)), ("validation", (f"{OTHER}-0", 2, 0, 9))):
        (data / "tokenize_corpus" / split).mkdir(parents=True)
        table = pa.table([[value] for value in row], schema=DOCUMENTS)
        pq.write_table(table, data / "tokenize_corpus" / split / "documents.parquet")
    (data / "tokenize_corpus/corpus.json").write_text('{"dataset_hash": "abc"}')
    for model, digest in (("seed-1", "abc"), ("seed-2", "another corpus")):
        (root / "models/train" / model).mkdir(parents=True)
        record = {"dataset_hash": digest, "steps": 10, "tokens": 100, "epochs": 2.5}
        (root / "models/train" / model / "training.json").write_text(json.dumps(record))
