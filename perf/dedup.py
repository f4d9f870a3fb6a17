"""Near-duplicate search next to stock datatrove, gaoya, rensa and datasketch: CPU, recall of planted edits, precision.

    python -m perf.dedup                                    # 2,000 made-up texts, two minutes
    python -m perf.dedup --passages FILE.parquet            # real ones: parquet or jsonl with a column `text`
    python -m perf.dedup --passages FILE.jsonl --column paragraph --documents 6700 --runs 5 --sides ours gaoya
    pip install --no-deps --target PEERS gaoya rensa datasketch && PYTHONPATH=PEERS python -m perf.dedup

Into the passages copies are planted of which 0, 2, 5, 10 and 20% of the words were edited: a third each replaced by
another word of the passages, left out, and followed by a word that was not there. Every side gets texts in memory and
has 14 buckets of 8 hashes over word 5-grams; its time ends when all texts are in its index. `ours` is the library's
words, the sketches and the pairs of documents with an equal key, exact duplicates included; `stage` is the dedup stage
as it runs, parquet to parquet: extracts compared, clusters verified, evidence written. Stock is datatrove's signature,
bucket and cluster steps with its English tokenizer (spaCy). CPU seconds of one process after imports; the sides take
turns, and the median counts. Finding the pairs in the peers' indexes is not counted.

Recall: copies that were paired with their original. Precision: of all pairs that share a bucket, those whose exact
Jaccard similarity of word 5-grams reaches 0.5 (at 0.72 a pair meets with probability 0.65, at 0.5 with 0.05). A copy
at 20% has a similarity of about 0.2: no MinHash of these bands should find it.
"""

import argparse
import contextlib
import io
import json
import os
import random
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from datatrove.data import Document
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupSignature,
)
from loguru import logger

from cosmopedia.corpus.minhash import jaccard
from cosmopedia.tables.contracts import DOCUMENT
from cosmopedia.tables.parquet import write_table
from stages.dedup.__main__ import main as dedup
from stages.dedup.clusters import join, pairs
from stages.dedup.index import KEY, Buckets
from stages.dedup.words import ANY_NUMBER, Shingles, fingerprints, hashed_words

LEVELS = (0.0, 0.02, 0.05, 0.10, 0.20)
PEERS = {"stock": "spacy", "gaoya": "gaoya", "rensa": "rensa", "datasketch": "datasketch"}  # side: package it needs
SHORTEST, LONGEST = 150, 1000  # words of a passage
ALIKE = 0.5
N, BUCKETS, HASHES = 5, 14, 8
CELLS = 4  # of the stage's input
ROOT = Path(__file__).parents[1]
Pairs = set[tuple[int, int]]


def made_up(count: int) -> list[str]:
    """Texts of 200-800 words: Zipf's law over 30,000 spelled words, sentences, paragraphs, some numbers."""
    dice = np.random.default_rng(1)
    spelled = ["".join(dice.choice(list("etaoinshrdlucmfw"), size)) for size in dice.integers(2, 9, 30_000)]
    weights = 1 / np.arange(1, len(spelled) + 1)
    texts = []
    for size in dice.integers(200, 800, count):
        drawn = [spelled[word] for word in dice.choice(len(spelled), size, p=weights / weights.sum())]
        place = 0
        while place < size:
            length = int(dice.integers(6, 25))
            drawn[place] = drawn[place].capitalize()
            end = min(place + length, int(size)) - 1
            drawn[end] += str(dice.choice([".", ".", ".", "?", ". In 1936,", ".\n\n"]))
            place += length
        texts.append(" ".join(drawn))
    return texts


def read_passages(path: Path, column: str, count: int) -> list[str]:
    """Passages of a file, drawn by seed, cut to 1,000 words; those below 150 words and exact repeats left out."""
    if path.suffix == ".parquet":
        texts = pl.read_parquet(path, columns=[column])[column].drop_nulls().to_list()
    else:
        texts = [text for line in path.open(encoding="utf-8") for text in _texts(json.loads(line), column)]
    cut = dict.fromkeys(" ".join(text.split(" ")[:LONGEST]) for text in texts if len(text.split()) >= SHORTEST)
    return random.Random(1).sample(list(cut), min(count, len(cut)))


def _texts(value: object, column: str) -> Iterator[str]:
    """The strings under a key, at any depth (OpenStax keeps its paragraphs in sections of chapters)."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == column and isinstance(inner, str):
                yield inner
            yield from _texts(inner, column)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, column)


def edited(text: str, share: float, vocabulary: list[str], dice: random.Random) -> str:
    """A copy with `share` of its words replaced, left out or followed by another, a third each."""
    words = text.split(" ")
    for place in sorted(dice.sample(range(len(words)), round(share * len(words))), reverse=True):
        kind = dice.randrange(3)
        words[place : place + 1] = [[dice.choice(vocabulary)], [], [words[place], dice.choice(vocabulary)]][kind]
    return " ".join(words)


def plant(passages: list[str]) -> tuple[list[str], dict[int, tuple[int, float]]]:
    """(texts in a drawn order, {position of a copy: (position of its original, share edited)})."""
    dice = random.Random(2)
    vocabulary = [word for text in passages[:200] for word in text.split()]
    each = len(passages) // (2 * len(LEVELS))
    copies = []
    for n, level in enumerate(LEVELS):
        for source in range(n * each, (n + 1) * each):
            copies.append((edited(passages[source], level, vocabulary, dice), source, level))
    texts = [*passages, *(text for text, _, _ in copies)]
    order = dice.sample(range(len(texts)), len(texts))
    place = {old: new for new, old in enumerate(order)}
    planted = {place[len(passages) + n]: (place[source], level) for n, (_, source, level) in enumerate(copies)}
    return [texts[old] for old in order], planted


def ours(texts: list[str]) -> Callable[[], Pairs]:
    """The stage's kernels; exact duplicates by their fingerprints, near ones by their sketches."""
    buckets = Buckets(N, BUCKETS, HASHES, 1, ())
    rows = []
    column = pa.chunked_array([texts])
    for first in range(0, len(texts), 2048):
        batch = column[first : first + 2048]
        keys = [fingerprints(batch, hashed_words(batch))[:, :1]]
        shingles = Shingles.of(hashed_words(batch, ANY_NUMBER), N)
        keys.append(buckets.keys(shingles))
        for each in keys:
            own = np.empty(each.shape, KEY)
            own["key"], own["document"] = each, np.arange(first, first + len(batch))[:, None]
            rows.append(own.ravel())
    joined = np.concatenate(rows)
    join(np.arange(len(texts)), pairs(joined))
    return lambda: met(joined)


def met(rows: np.ndarray) -> Pairs:
    """All pairs of documents with an equal key."""
    rows = rows[np.lexsort((rows["document"], rows["key"]))]
    groups = np.split(rows["document"], np.flatnonzero(np.diff(rows["key"])) + 1)
    return {pair for group in groups if len(group) > 1 for pair in combinations(np.unique(group).tolist(), 2)}


def stock(texts: list[str]) -> Callable[[], Pairs]:
    """datatrove's own steps, in a temporary folder."""
    config = MinhashConfig(n_grams=N, num_buckets=BUCKETS, hashes_per_bucket=HASHES, seed=1)
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stderr(io.StringIO()):
        signed, buckets, clusters = (f"{name}/{folder}" for folder in ("signatures", "buckets", "clusters"))
        documents = iter([Document(text=text, id=str(n)) for n, text in enumerate(texts)])
        MinhashDedupSignature(signed, config).run(documents)
        for rank in range(BUCKETS):
            MinhashDedupBuckets(signed, buckets, config=config, lines_to_buffer=-1).run(rank=rank, world_size=BUCKETS)
        MinhashDedupCluster(buckets, clusters, config, save_cluster_id=True).run()
        written = b"".join(path.read_bytes() for path in sorted(Path(buckets).glob("*.dups")))
    found = {(min(one, other), max(one, other)) for _, one, _, other in struct.iter_unpack("<4I", written)}
    return lambda: found


def gaoya(texts: list[str]) -> Callable[[], Pairs]:
    """A MinHashStringIndex: words and hashes in Rust."""
    from gaoya.minhash import MinHashStringIndex  # type: ignore[import-not-found]

    index = MinHashStringIndex(
        hash_size=32,
        jaccard_threshold=0.0,
        num_bands=BUCKETS,
        band_size=HASHES,
        analyzer="word",
        lowercase=True,
        ngram_range=(N, N),
    )
    for n, text in enumerate(texts):
        index.insert_document(n, text)
    return lambda: {(min(n, m), max(n, m)) for n, text in enumerate(texts) for m in index.query(text) if n != m}


def ngrams(text: str) -> list[str]:
    """As whoever calls a library of hashes would write them."""
    words = text.lower().split()
    return [" ".join(words[place : place + N]) for place in range(len(words) - N + 1)]


def rensa(texts: list[str]) -> Callable[[], Pairs]:
    """RMinHash with its index."""
    from rensa import RMinHash, RMinHashLSH  # type: ignore[import-not-found]

    size = BUCKETS * HASHES
    index = RMinHashLSH(threshold=ALIKE, num_perm=size, num_bands=BUCKETS)
    hashed = RMinHash.from_token_sets([ngrams(text) for text in texts], size, 1)
    index.insert_many(hashed)
    return lambda: {(min(n, m), max(n, m)) for n, own in enumerate(hashed) for m in index.query(own) if n != m}


def datasketch(texts: list[str]) -> Callable[[], Pairs]:
    """MinHash with its index."""
    from datasketch import MinHash, MinHashLSH  # type: ignore[import-not-found]

    index = MinHashLSH(num_perm=BUCKETS * HASHES, params=(BUCKETS, HASHES))
    sets = [[ngram.encode() for ngram in ngrams(text)] for text in texts]
    hashed = MinHash.bulk(sets, num_perm=BUCKETS * HASHES)
    for n, own in enumerate(hashed):
        index.insert(n, own)
    return lambda: {(min(n, m), max(n, m)) for n, own in enumerate(hashed) for m in index.query(own) if n != m}


def write_stage_input(folder: Path, texts: list[str]) -> None:
    """The texts as cells of documents, each with the one before it as its extract, and the repository's params."""
    for name in ("params.yaml", "profiles", "compute"):
        (folder / name).symlink_to(ROOT / name)
    numbers = {field.name: 0 for field in DOCUMENT.schema if pa.types.is_integer(field.type)}
    row = {field.name: "" for field in DOCUMENT.schema} | numbers | {"topic": None, "topic_named": False}
    rows = [
        {**row, "completion_id": f"{n:08d}", "text": text, "seed_data": texts[n - 1]} for n, text in enumerate(texts)
    ]
    for cell in range(CELLS):
        name = {"source": "web", "style": str(cell)}
        write_table(folder / f"data/clean/web-{cell}.parquet", [row | name for row in rows[cell::CELLS]], DOCUMENT)


def stage(texts: list[str]) -> Callable[[], Pairs]:
    """The stage, in the current folder."""
    with contextlib.redirect_stderr(io.StringIO()):
        dedup()
    return lambda: set()


SIDES: dict[str, Callable[[list[str]], Callable[[], Pairs]]] = {
    "ours": ours,
    "stage": stage,
    "gaoya": gaoya,
    "rensa": rensa,
    "datasketch": datasketch,
    "stock": stock,
}


def measure(sides: list[str], texts: list[str], runs: int) -> tuple[dict[str, list[float]], dict[str, Pairs]]:
    """CPU seconds of each side in each run, and the pairs of its last."""
    spent: dict[str, list[float]] = {side: [] for side in sides}
    found: dict[str, Pairs] = {}
    for side in sides:
        SIDES[side](texts[:50])  # imports, tokenizers and compiled code are loaded
    for run in range(runs):
        for side in sides[:: 1 if run % 2 == 0 else -1]:
            started = time.process_time()
            found_by = SIDES[side](texts)
            spent[side].append(time.process_time() - started)
            if run == runs - 1:
                found[side] = found_by()
            del found_by
    return spent, found


def roots_of(texts: int, found: Pairs) -> np.ndarray:
    """The cluster of each text."""
    roots = np.arange(texts)
    join(roots, np.array(sorted(found), np.int64).reshape(-1, 2))
    return roots


def main(passages: list[str], what: str, runs: int, wanted: list[str]) -> None:
    """Measure the sides and print the table; the last line sums up."""
    logger.remove()
    missing = [side for side in wanted if side in PEERS and not find_spec(PEERS[side])]
    for side in missing:
        print(
            f"{side}: not run, it needs the package {PEERS[side]} (pip install --target, see python -m perf.dedup -h)"
        )
    sides = [side for side in wanted if side not in missing]
    texts, planted = plant(passages)
    words = sum(len(text.split()) for text in texts)
    print(f"{what}: {len(passages):,} passages and {len(planted):,} planted copies, {words:,} words; {runs} runs")
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        os.environ["COSMO_STORE"] = str(Path("store").resolve())
        write_stage_input(Path(), texts)
        spent, found = measure(sides, texts, runs)
    shingles = Shingles.of(hashed_words(pa.chunked_array([texts]), ANY_NUMBER), N)
    sets = shingles.distinct()
    median = {side: statistics.median(values) for side, values in spent.items()}
    fastest = min((side for side in sides if side in PEERS), key=lambda side: median[side], default="")
    edits = "".join(f"{level:<6.0%}" for level in LEVELS)
    print(f"\nside        CPU s (median)          range    pairs  precision  recall at {edits}")
    lines = {}
    for side in sides:
        line = f"{side:10}  {median[side]:14.2f}  {min(spent[side]):6.2f}-{max(spent[side]):<6.2f}"
        if side != "stage":
            roots = roots_of(len(texts), found[side]).tolist()
            recall = [
                statistics.mean(roots[c] == roots[s] for c, (s, of) in planted.items() if of == level)
                for level in LEVELS
            ]
            right = [jaccard(sets[one], sets[other]) >= ALIKE for one, other in found[side]]
            precision = statistics.mean(right) if right else 1.0
            lines[side] = f"recall {'/'.join(f'{value:.2f}' for value in recall)}, precision {precision:.3f}"
            shares = "  ".join(f"{value:.2f}" for value in recall)
            line += f"  {len(found[side]):7,}  {precision:9.4f}            {shares}"
        print(line)
    peer = f"; {fastest}, the fastest of the others, {median[fastest]:.2f}" if fastest else ""
    print(
        f"\n{len(texts):,} documents: "
        + ", ".join(f"{side} {median[side]:.2f} CPU s" for side in ("ours", "stage") if side in median)
        + peer
        + "; "
        + "; ".join(f"{side}: {line}" for side, line in lines.items() if side in ("ours", fastest))
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m perf.dedup", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--passages", type=Path, help="parquet or jsonl; without it texts are made up")
    parser.add_argument("--column", default="text")
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    given = parser.parse_args()
    if given.passages is None:
        main(made_up(given.documents), "made-up texts", given.runs, given.sides)
    elif not given.passages.is_file():
        sys.exit(f"{given.passages} is no file; give a parquet or jsonl file with a column {given.column!r}")
    else:
        passages = read_passages(given.passages, given.column, given.documents)
        main(passages, given.passages.name, given.runs, given.sides)
