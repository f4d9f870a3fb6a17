"""Whether retrieve finds what was planted, and how fast: recall at 3, and queries per CPU second.

    python -m perf.retrieve                                  # 1,000, 10,000 and 100,000 passages: 3 CPU minutes
    python -m perf.retrieve --sizes 1000 --runs 1            # seconds
    python -m perf.retrieve --peers /tmp/peers               # also rank_bm25, installed there (pip install --target)
    python -m perf.retrieve --passages data/knowledge/passages.parquet   # real passages; a query is half of a sentence

Made-up passages of 100 words: general words by Zipf's law, 20 words of one of 50 topics, and three names, each of
which four other passages have too. A planted query is another text about the same: two of the names (of five queries
one has a single name), five of the passage's topic words and seven others of the topic, 40 general words. As many
queries have no passage: their names are nowhere. Every side gets the same words. `search` is the stage's own code;
bm25s is used as its README does, rank_bm25 is BM25Okapi. CPU seconds are this process's, medians of the runs.
"""

import stages  # noqa: F401, I001 - before numpy: it lets threads sleep, as they do in the stage

import argparse
import importlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from cosmopedia.core.params import section
from stages.retrieve.index import Block, Statistics, compiled_scorer, save_block, search
from stages.retrieve.passages import BLOCK
from stages.retrieve.words import Vocabulary, terms_of, vocabulary_of

QUERIES = 200  # planted; as many without a passage
SLOW = 20  # queries that a peer without an index is asked
TOP = 3
GENERAL, TOPICS, TOPIC_WORDS, SHARED = 30_000, 50, 400, 5


class Planted(NamedTuple):
    """Passages, queries, and the number of the passage that each query is about; -1: there is none."""

    passages: list[str]
    queries: list[str]
    wanted: list[int]


def made(count: int, seed: int) -> Planted:
    """`count` made-up passages and 2 x QUERIES queries."""
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, GENERAL + 1)
    general = rng.choice(GENERAL, size=(count, 77), p=weights / weights.sum())
    topics, subjects = rng.integers(0, TOPICS, count), rng.integers(0, TOPIC_WORDS, (count, 20))
    names = rng.permutation(np.repeat(np.arange(-(-3 * count // SHARED)), SHARED))[: 3 * count].reshape(count, 3)

    def text(*parts: list[str]) -> str:
        return " ".join(rng.permutation([word for part in parts for word in part]))

    def of_topic(topic: int, numbers: Any) -> list[str]:
        return [f"t{topic}x{number}" for number in numbers]

    passages = [
        text([f"g{n}" for n in general[row]], of_topic(topics[row], subjects[row]), [f"n{n}" for n in names[row]])
        for row in range(count)
    ]
    queries, wanted = [], []
    for number, target in enumerate(rng.choice(count, QUERIES, replace=False).tolist()):
        own = [f"n{n}" for n in names[target][: 1 if number % 5 == 0 else 2]]
        for there, named, shared in ((target, own, 5), (-1, [f"nowhere{number}", f"nor{number}"], 0)):
            others = [f"g{n}" for n in rng.choice(GENERAL, size=40, p=weights / weights.sum())]
            about = [*subjects[target][:shared], *rng.integers(0, TOPIC_WORDS, 12 - shared)]
            queries.append(text(named, of_topic(topics[target], about), others))
            wanted.append(there)
    return Planted(passages, queries, wanted)


def real(path: Path) -> Planted:
    """The passages of a table; a query is the middle sentence of one without the words that begin with a capital."""
    passages = pq.read_table(path)["text"].to_pylist()
    queries, wanted = [], []
    for number, text in enumerate(passages):
        sentences = text.split(". ")
        words = [word for word in sentences[len(sentences) // 2].split() if not word[0].isupper()]
        queries.append(" ".join(words[::2]))  # every other word
        wanted.append(number)
    return Planted(passages, queries, wanted)


class Side(NamedTuple):
    """One way to search: what it took to index, and what answers queries with the numbers of passages, best first."""

    name: str
    index_s: float
    answer: Callable[[list[str]], list[list[int]]]
    slow: bool = False


def ours(planted: Planted, folder: Path, common: float) -> tuple[Side, Callable[[list[str]], Any]]:
    """The stage's way, and its answers with their scores."""
    terms_of(planted.passages[:2])  # compilers
    begin = time.process_time()
    starts = range(0, len(planted.passages), BLOCK)
    counted = [terms_of(planted.passages[at : at + BLOCK]) for at in starts]
    vocabulary: Vocabulary = vocabulary_of(terms.words for terms, _ in counted)
    kept = vocabulary.without_common(max(1, int(common * len(planted.passages))))
    whole = Statistics(len(planted.passages), float(np.concatenate([sizes for _, sizes in counted]).mean()))
    for at, (terms, sizes) in zip(starts, counted, strict=True):
        save_block(folder / f"{at:09d}", terms, sizes, kept, whole)
    took = time.process_time() - begin
    scorer = compiled_scorer()
    blocks = [Block(folder / f"{at:09d}", at, scorer) for at in starts]

    def scored(queries: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        return [*search(blocks, kept.queries(queries), TOP, 1e-9)]

    return Side("search", took, lambda queries: [p.tolist() for p, _ in scored(queries)]), scored


def peers(planted: Planted) -> Iterator[Side]:
    """bm25s as its README has it, with its compiled part, and rank_bm25 where it is installed."""
    bm25s = importlib.import_module("bm25s")
    begin = time.process_time()
    tokens = bm25s.tokenize(planted.passages, stopwords=None, show_progress=False)
    model = bm25s.BM25(backend="numba")
    model.index(tokens, show_progress=False)
    took = time.process_time() - begin

    def answer(queries: list[str]) -> list[list[int]]:
        words = bm25s.tokenize(queries, stopwords=None, show_progress=False)
        return model.retrieve(words, k=TOP, n_threads=1, show_progress=False).documents.tolist()

    yield Side("bm25s", took, answer)
    try:
        rank = importlib.import_module("rank_bm25")
    except ImportError:
        return
    begin = time.process_time()
    okapi = rank.BM25Okapi([text.split() for text in planted.passages])
    took = time.process_time() - begin

    def ranked(queries: list[str]) -> list[list[int]]:
        return [np.argsort(-okapi.get_scores(query.split()), kind="stable")[:TOP].tolist() for query in queries]

    yield Side("rank_bm25", took, ranked, slow=True)


def recall(answers: list[list[int]], wanted: list[int]) -> float:
    """Of the queries that a passage was planted for, the share that has it among the answers."""
    hits = [want in answer for answer, want in zip(answers, wanted, strict=True) if want >= 0]
    return sum(hits) / len(hits)


def measured(side: Side, planted: Planted, runs: int) -> tuple[float, float]:
    """(queries per CPU second, recall at 3)."""
    several = slice(SLOW if side.slow else None)
    queries, wanted = planted.queries[several], planted.wanted[several]
    side.answer(queries[:2])  # compilers
    times = []
    answers: list[list[int]] = []
    for _ in range(1 if side.slow else runs):
        begin = time.process_time()
        answers = side.answer(queries)
        times.append(time.process_time() - begin)
    return len(queries) / statistics.median(times), recall(answers, wanted)


def kept_above(answers: list[tuple[np.ndarray, np.ndarray]], wanted: list[int], least: float) -> tuple[float, float]:
    """Shares of the queries with and without a passage whose best score is at least `least`."""
    best = np.array([scores[0] if len(scores) else 0.0 for _, scores in answers])
    planted = np.array(wanted) >= 0
    return float((best[planted] >= least).mean()), float((best[~planted] >= least).mean()) if (~planted).any() else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="numbers of passages")
    parser.add_argument("--runs", type=int, default=3, help="of which the median is taken")
    parser.add_argument("--peers", type=Path, help="a folder with packages to compare with")
    parser.add_argument("--passages", type=Path, help="a table of passages, instead of made-up ones")
    options = parser.parse_args()
    if options.peers:
        sys.path.append(str(options.peers))
    params = section("retrieve")
    least = float(params["min_score"])
    lines = []
    print(f"{'passages':>9} {'':<10} {'index CPU s':>11} {'queries/CPU s':>13} {'ratio':>6} {'recall at 3':>11}")
    for size in [0] if options.passages else options.sizes:
        planted = real(options.passages) if options.passages else made(size, seed=size)
        count = len(planted.passages)
        with tempfile.TemporaryDirectory() as folder:
            own, scored = ours(planted, Path(folder) / "index", float(params["common_words"]))
            rate, found = measured(own, planted, options.runs)
            print(f"{count:>9,} {own.name:<10} {own.index_s:>11.2f} {rate:>13,.0f} {'1.0':>6} {found:>11.3f}")
            for side in peers(planted):
                other, share = measured(side, planted, options.runs)
                figures = f"{side.index_s:>11.2f} {other:>13,.0f} {rate / other:>6.1f} {share:>11.3f}"
                print(f"{'':>9} {side.name:<10} {figures}", flush=True)
            with_one, without = kept_above(scored(planted.queries), planted.wanted, least)
        shares = f"{with_one:.1%} of queries with a passage are above it, {without:.1%} of those without"
        print(f"{'':>9} min_score {least:g}: {shares}", flush=True)
        lines.append(f"{count:,}: {found:.3f}, {rate:,.0f}/s")
    print(f"retrieve: recall at 3 and queries per CPU second by passages: {'; '.join(lines)}")


if __name__ == "__main__":
    main()
