"""A corpus of made-up rows, as a finished run leaves it: cell files with the stages' contracts, sharded, sorted by id.

Ids are those that `prompts` would give. Texts are short (about 60 characters of the row's own, the same for prompt,
extract and text), so that 30 million rows fit a laptop's disk; everything but the text columns is of its usual size.
clean, dedup and decontaminate have the same files (hard links): clean removes one row in a hundred, the rest stays.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cosmopedia.tables.cell_files import shard_names
from cosmopedia.tables.contracts import DOCUMENT, PROMPT, REMOVED
from cosmopedia.tables.parquet import TableWriter
from stages.prompts.ids import HEX, digests, prompt_ids
from stages.tokenize_corpus.shards import DOCUMENTS

STYLES = {
    "web": ("blogpost", "textbook_academic", "textbook_narrative", "wikihow"),
    "ultrachat": ("forum_story", "morality_story", "problem_solving_story", "reddit_post", "young_children_story"),
    "openhermes": ("problem_solving_story", "reddit_post", "young_children_story"),
    "openstax": ("college", "middle_school", "researchers", "young_children"),
    "automathtext": ("college", "grade_school"),
    "stanford": ("textbook",),
    "wikihow": ("article",),
}
CELLS = [(source, style) for source, styles in STYLES.items() for style in styles]
LICENCES = {"web": "ODC-By-1.0", "openstax": "CC-BY-4.0", "wikihow": "CC-BY-NC-SA-3.0"}
TOPICS = np.array([f"Topic number {number:03d}" for number in range(145)])
SHARD = 200_000  # rows of a file, about 400 MB of full texts
REMOVED_EVERY = 100
PER_DOCUMENT = 500  # tokens


def made_corpus(root: Path, rows: int, changed_every: int = 0) -> None:
    """Write data/{prompts,generate,clean,dedup,decontaminate,tokenize_corpus} and a model's record below `root`.

    `changed_every`: every so many rows the text, its tokens and its key are other ones.
    """
    per_cell = rows // len(CELLS)
    kept_ids = []
    lost: list[pa.Table] = []
    sources: dict[str, tuple[np.ndarray, list[str]]] = {}
    for source, style in CELLS:
        if source not in sources:
            sources = {source: _source_rows(source, per_cell)}  # those of one source are in memory
        order, names = sources[source]
        for path, documents in _shards(source, style, order, names, changed_every):
            gone = pa.array(np.arange(len(documents)) % REMOVED_EVERY == 0)
            _write(root / "data/prompts" / path, documents.select(PROMPT.schema.names), PROMPT)
            _write(root / "data/generate" / path, documents, DOCUMENT)
            kept = documents.filter(pc.invert(gone))  # type: ignore[attr-defined]
            _write(root / "data/clean" / path, kept, DOCUMENT)
            for stage in ("dedup", "decontaminate"):
                _link(root / "data/clean" / path, root / "data" / stage / path)
            kept_ids.append(kept["completion_id"])
            lost.append(_removed(documents.filter(gone)))
    _write(root / "data/clean/removed/removed.parquet", pa.concat_tables(lost).sort_by("completion_id"), REMOVED)
    for stage in ("dedup", "decontaminate"):
        _write(root / "data" / stage / "removed/removed.parquet", REMOVED.schema.empty_table(), REMOVED)
    _tokens(root / "data/tokenize_corpus", pa.chunked_array([c for ids in kept_ids for c in ids.chunks]))
    model = root / "models/train/seed-1/training.json"
    model.parent.mkdir(parents=True, exist_ok=True)
    model.write_text(json.dumps({"dataset_hash": "made", "epochs": 1.0, "steps": 100, "tokens": 1}))


def _source_rows(source: str, count: int) -> tuple[np.ndarray, list[str]]:
    """The rows' digests in ascending order, and their ids in that order."""
    names = [f"{source}/{number:09d}" for number in range(count)]
    rows = digests(names)
    order = np.lexsort((rows[:, 1], rows[:, 0]))
    return rows[order], [names[n] for n in order]


def _shards(
    source: str, style: str, rows: np.ndarray, names: list[str], changed_every: int
) -> Iterator[tuple[str, pa.Table]]:
    files = shard_names(f"{source}-{style}", -(-len(rows) // SHARD))
    for number, path in enumerate(files):
        part = slice(number * SHARD, (number + 1) * SHARD)
        yield path, _documents(source, style, rows[part], names[part], changed_every)


def _documents(source: str, style: str, rows: np.ndarray, names: list[str], changed_every: int) -> pa.Table:
    count = len(rows)
    dice = np.random.default_rng(int(rows[0, 1]))
    ids = prompt_ids(rows, style, "general")
    tokens = dice.integers(300, 900, count)
    own = [pc.binary_join_element_wise("Made-up text about ", pa.array(names), " as ", style, " ", ids, "")]  # type: ignore[attr-defined]
    text = own[0]
    keys = _hex(dice, count)
    if changed_every:
        other = np.arange(count) % changed_every == 1
        text = pc.if_else(other, pc.binary_join_element_wise(text, pa.scalar("and more"), " "), text)  # type: ignore[attr-defined]
        tokens = tokens + 2 * other
        keys = pc.if_else(other, _hex(dice, count), keys)  # type: ignore[attr-defined]
    topics = (
        pa.array(TOPICS[dice.integers(0, len(TOPICS), count)]) if source == "web" else pa.nulls(count, pa.string())
    )
    values: dict[str, object] = {
        "completion_id": pc.binary_join_element_wise(ids, "0", "-"),  # type: ignore[attr-defined]
        "prompt_id": ids,
        "prompt": own[0],
        "text": text,
        "text_token_length": tokens,
        "seed_data": own[0],
        "seed_id": pa.array(names),
        "topic": topics,
        "key": keys,
        "sampling_seed": dice.integers(0, 2**62, count),
    }
    constant = {
        "format": style, "audience": "general", "source": source, "style": style, "topic_named": source == "web",
        "seed_revision": "0" * 40, "seed_licence": LICENCES.get(source, "CC0-1.0"), "sample_index": 0,
        "template": f"prompts/{source}/{style}.txt", "template_hash": "0" * 32, "finish_reason": "eos_token",
        "prompt_tokens": 300, "model": "mistralai/Mixtral-8x7B-Instruct-v0.1", "model_revision": "0" * 40,
        "sampling": "{}", "engine": "made-up/1",
    }  # fmt: skip
    values |= {name: pa.repeat(value, count) for name, value in constant.items()}
    return pa.table(
        [
            pa.array(values[n]) if not isinstance(values[n], pa.ChunkedArray) else values[n]
            for n in DOCUMENT.schema.names
        ],
        names=DOCUMENT.schema.names,
    ).cast(DOCUMENT.schema)


def _hex(dice: np.random.Generator, count: int) -> pa.Array:
    digits = HEX[np.frombuffer(dice.bytes(16 * count), np.uint8)]
    ends = np.arange(0, 32 * count + 1, 32, dtype=np.int32)
    return pa.StringArray.from_buffers(count, pa.py_buffer(ends), pa.py_buffer(digits))


def _removed(documents: pa.Table) -> pa.Table:
    values = {
        "reason": pa.repeat("short", len(documents)),
        "evidence": pa.repeat('{"tokens": 12}', len(documents)),
    }
    columns = [values[name] if name in values else documents[name] for name in REMOVED.schema.names]
    return pa.table(columns, schema=REMOVED.schema)


def _tokens(folder: Path, ids: pa.ChunkedArray) -> None:
    """Where each document is in the token shards, in their (random) order; one in a hundred is for validation."""
    order = np.random.default_rng(1).permutation(len(ids))
    cut = len(order) // 100
    flat = pa.concat_arrays([chunk.cast(pa.large_string()) for chunk in ids.chunks])
    for split, part in (("validation", order[:cut]), ("train", order[cut:])):
        (folder / split).mkdir(parents=True, exist_ok=True)
        starts = np.arange(len(part), dtype=np.int64) * PER_DOCUMENT
        with pa.parquet.ParquetWriter(folder / split / "documents.parquet", DOCUMENTS, compression="zstd") as writer:
            for first in range(0, len(part), 1_000_000):
                some = part[first : first + 1_000_000]
                start = starts[first : first + len(some)]
                lengths = np.full(len(some), PER_DOCUMENT, np.uint32)
                columns = [flat.take(pa.array(some)).cast(pa.string()), (start // 10**9).astype(np.int32)]
                columns += [start % 10**9, lengths]
                writer.write_table(pa.table(columns, schema=DOCUMENTS), row_group_size=10_000)
    corpus = {"dataset_hash": "made", "documents": len(order), "tokens": len(order) * PER_DOCUMENT}
    (folder / "corpus.json").write_text(json.dumps(corpus))


def _write(path: Path, table: pa.Table, contract: object) -> None:
    with TableWriter(path, contract) as writer:  # type: ignore[arg-type]
        writer.write_table(table)


def _link(path: Path, link: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    os.link(path, link)
