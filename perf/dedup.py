"""Near-duplicate search next to stock datatrove: CPU of the signatures, recall of planted edits, precision.

    python -m perf.dedup                                    # 2,000 made-up texts, two minutes
    python -m perf.dedup --passages FILE.parquet            # real ones: parquet or jsonl with a column `text`
    python -m perf.dedup --passages FILE.jsonl --column paragraph --documents 5000 --runs 5

Into the passages copies are planted of which 0, 2, 5, 10 and 20% of the words were edited: a third each replaced by
another word of the passages, left out, and followed by a word that was not there. Stock is datatrove's own signature
step with its English tokenizer (spaCy); ours is what the dedup stage runs. Both go through datatrove's buckets and
clusters. CPU seconds are of the signature step alone, in one process, the sides taking turns; the median counts.

Recall: copies that share a cluster with their original. Precision: of all pairs that met in a bucket, those whose
exact Jaccard similarity of word 5-grams reaches 0.5 (at 0.72 a pair meets with probability 0.65, at 0.5 with 0.05). A
copy at 20% has a similarity of about 0.2: no MinHash of these bands should find it.
"""

import argparse
import contextlib
import io
import json
import random
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import polars as pl
from datatrove.data import Document
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupSignature,
)
from loguru import logger

from cosmopedia.corpus.minhash import jaccard
from cosmopedia.corpus.words import shingles
from stages.dedup.minhash import CLUSTER, Signatures

LEVELS = (0.0, 0.02, 0.05, 0.10, 0.20)
SIDES = ("stock", "ours")
SHORTEST, LONGEST = 150, 1000  # words of a passage
ALIKE = 0.5
CONFIG = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8, seed=1)


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


def signatures(side: str, folder: Path) -> MinhashDedupSignature:
    """The signature step of a side."""
    if side == "stock":
        return MinhashDedupSignature(str(folder), CONFIG)
    return Signatures(folder, CONFIG)


def measure(sides: list[str], texts: list[str], runs: int, folder: Path) -> dict[str, list[float]]:
    """CPU seconds of each side's signature step in each run; the files of the last run stay."""
    spent: dict[str, list[float]] = {side: [] for side in sides}
    for run in range(runs):
        for side in sides[:: 1 if run % 2 == 0 else -1]:
            step = signatures(side, folder / side / "signatures")
            step.get_shingles("The first call loads a tokenizer.")
            documents = iter([Document(text=text, id=str(n)) for n, text in enumerate(texts)])
            started = time.process_time()
            step.run(documents)
            spent[side].append(time.process_time() - started)
    return spent


def meet(folder: Path) -> tuple[set[tuple[int, int]], dict[int, int]]:
    """(pairs that share a bucket, cluster of each document that is in one) by datatrove's own steps."""
    signed, buckets, clusters = (str(folder / name) for name in ("signatures", "buckets", "clusters"))
    with contextlib.redirect_stderr(io.StringIO()):
        for rank in range(CONFIG.num_buckets):
            MinhashDedupBuckets(signed, buckets, config=CONFIG, lines_to_buffer=-1).run(
                rank=rank, world_size=CONFIG.num_buckets
            )
        MinhashDedupCluster(buckets, clusters, CONFIG, save_cluster_id=True).run()
    pairs = set()
    for path in sorted(Path(buckets).glob("*.dups")):
        for _, one, _, other in struct.iter_unpack("<4I", path.read_bytes()):
            pairs.add((min(one, other), max(one, other)))
    rows = [np.fromfile(path, dtype=CLUSTER).tolist() for path in Path(clusters).glob("*.clusters")]
    return pairs, dict(rows[0]) if rows else {}


def main(passages: list[str], what: str, runs: int) -> None:
    """Measure both sides and print the tables; the last line sums up."""
    logger.remove()
    texts, planted = plant(passages)
    words = sum(len(text.split()) for text in texts)
    print(f"{what}: {len(passages):,} passages and {len(planted):,} planted copies, {words:,} words; {runs} runs")
    sides = [side for side in SIDES if side == "ours" or find_spec("spacy")]
    if len(sides) < len(SIDES):
        print("stock: not run, its English tokenizer needs the package spacy")
    sets = [np.unique(shingles(text, CONFIG.n_grams)) for text in texts]
    alike = {level: [] for level in LEVELS}
    for copy, (source, level) in planted.items():
        alike[level].append(jaccard(sets[copy], sets[source]))
    print("\nedited   similarity (median)  " + "  ".join(f"recall {side}" for side in sides))
    recall: dict[str, dict[float, float]] = {}
    precision: dict[str, float] = {}
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        spent = measure(sides, texts, runs, Path(name))
        for side in sides:
            pairs, cluster = meet(Path(name) / side)
            together = {c: cluster.get(c, -1) == cluster.get(s, -2) for c, (s, _) in planted.items()}
            recall[side] = {
                level: statistics.mean(together[c] for c, (_, of) in planted.items() if of == level)
                for level in LEVELS
            }
            similarities = [jaccard(sets[one], sets[other]) for one, other in pairs]
            precision[side] = statistics.mean(value >= ALIKE for value in similarities) if similarities else 1.0
            least = min(similarities, default=1.0)
            lines.append(
                f"{side:6} {statistics.median(spent[side]):8.2f}  {min(spent[side]):7.2f}-{max(spent[side]):.2f}"
                f"  {len(pairs):6}  {precision[side]:9.4f}  {least:17.2f}"
            )
    for level in LEVELS:
        shares = "  ".join(f"{recall[side][level]:12.3f}" for side in sides)
        print(f"{level:6.0%}   {statistics.median(alike[level]):19.2f}  {shares}")
    print("\nside   CPU s (median)     range   pairs  precision  least similarity", *lines, sep="\n")
    median = {side: statistics.median(spent[side]) for side in sides}
    ratio = f"{median['stock'] / median['ours']:.1f} times cheaper than stock's {median['stock']:.2f}; " * (
        len(sides) > 1
    )
    by_level = {side: "/".join(f"{recall[side][level]:.2f}" for level in LEVELS) for side in sides}
    print(
        f"\nours: {median['ours']:.2f} CPU s for {len(texts):,} signatures, {ratio}recall at 0/2/5/10/20% edits"
        f" {', '.join(f'{side} {by_level[side]}' for side in sides)};"
        f" precision {', '.join(f'{side} {precision[side]:.3f}' for side in sides)}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m perf.dedup")
    parser.add_argument("--passages", type=Path, help="parquet or jsonl; without it texts are made up")
    parser.add_argument("--column", default="text")
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    if given.passages is None:
        main(made_up(given.documents), "made-up texts", given.runs)
    elif not given.passages.is_file():
        sys.exit(f"{given.passages} is no file; give a parquet or jsonl file with a column {given.column!r}")
    else:
        main(read_passages(given.passages, given.column, given.documents), given.passages.name, given.runs)
