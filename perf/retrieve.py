"""Whether retrieve finds what was planted, how fast, and what its scores are worth at any size of corpus.

    python -m perf.retrieve                                  # 1,000, 10,000 and 100,000 passages: 1-3 CPU minutes
    python -m perf.retrieve --sizes 1000 --runs 1            # seconds
    python -m perf.retrieve --texts FILE.parquet --away law,medicine     # real documents (text, group)
    python -m perf.retrieve --peers /tmp/peers               # also rank_bm25, installed there (pip install --target)
    python -m perf.retrieve --passages data/knowledge/passages.parquet   # real passages; a query is half of a sentence

Made-up passages of 100 words: general words by Zipf's law, 20 words of one of 50 topics, and three names, each of
which four other passages have too. A planted query is another text about the same: two of the names (of five queries
one has a single name), five of the passage's topic words and seven others of the topic, 40 general words. As many
queries have no passage: their names are nowhere. Every side gets the same words. `search` is the stage's own code;
bm25s is used as its README does, rank_bm25 is BM25Okapi. CPU seconds are this process's, medians of the runs.

With `--texts` a passage is 100 words of a document, and a query the first 400 characters of one: of documents whose
other passages are in the corpus, and of the groups `--away`, which are kept out of it whole. No test of recall, since
other documents may fit better.

The last table has, by three scores, the shares of queries above a threshold, of those with a passage and without.
The threshold is the one that 5% of the queries without a passage exceed at the first size; a score is of use where
that share stays, and the other is great.
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
from stages.retrieve.index import Block, Scale, Statistics, compiled_scorer, rarity, save_block, search
from stages.retrieve.passages import BLOCK
from stages.retrieve.words import Vocabulary, terms_of, vocabulary_of

QUERIES = 200  # planted; as many without a passage
SLOW = 20  # queries that a peer without an index is asked
TOP = 3
SCORES = ("the stage's", "BM25 over the root of the query's words", "BM25 over the sum of their weights")
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


def documents(path: Path, away: set[str], count: int) -> Planted:
    """About `count` passages of real documents, queries about some of them, and queries of the groups `away`."""
    table = pq.read_table(path, columns=["text", "group"])
    rng = np.random.default_rng(count)
    table = table.take(rng.permutation(table.num_rows))
    passages: list[str] = []
    queries: tuple[list[str], list[str]] = [], []  # with a passage, without
    for text, group in zip(table["text"].to_pylist(), table["group"].to_pylist(), strict=True):
        words = text.split()
        own = [" ".join(words[at : at + 100]) for at in range(0, max(len(words) - 40, 1), 100)]
        if group in away:
            queries[1].append(own[0][:400])
        elif len(own) > 1 and len(passages) < count:
            asked = len(queries[0]) < QUERIES and rng.random() < 0.5
            queries[0].extend([own[0][:400]] if asked else [])
            passages.extend(own[1:] if asked else own)
    without = queries[1][:QUERIES]
    return Planted(passages, [*queries[0], *without], [0] * len(queries[0]) + [-1] * len(without))


class Side(NamedTuple):
    """One way to search: what it took to index, and what answers queries with the numbers of passages, best first."""

    name: str
    index_s: float
    answer: Callable[[list[str]], list[list[int]]]
    slow: bool = False


def ours(planted: Planted, folder: Path, common: float) -> tuple[Side, Callable[[str], dict[str, float]]]:
    """The stage's way, and the best scores of a query: the stage's and two others."""
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

    scale = Scale(kept, whole)

    def answer(queries: list[str]) -> list[list[int]]:
        return [numbers.tolist() for numbers, _ in search(blocks, kept.queries(queries), scale, TOP, 1e-9)]

    def best_scores(text: str) -> dict[str, float]:
        (query,) = kept.queries([text])
        if not len(query.words):
            return dict.fromkeys(SCORES, 0.0)
        bm25 = max(float(block.scores(query.words).max()) for block in blocks)
        weights = float(rarity(kept.passages[query.words], whole).sum())
        divisors = (float(scale.divisor(query)), len(query.words) ** 0.5, weights)
        return {name: bm25 / divisor for name, divisor in zip(SCORES, divisors, strict=True)}

    return Side("search", took, answer), best_scores


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


class Above(NamedTuple):
    """The best scores of the queries with a passage, and of those without, by one score at one size."""

    planted: np.ndarray
    chance: np.ndarray

    def shares(self, least: float) -> str:
        return f"{(self.planted >= least).mean():.0%}, {(self.chance >= least).mean():.1%}"


def best_of(planted: Planted, best_scores: Callable[[str], dict[str, float]]) -> dict[str, Above]:
    """By each score, the best scores of all queries."""
    rows = [best_scores(query) for query in planted.queries]
    about = np.array(planted.wanted) >= 0
    columns = {name: np.array([row[name] for row in rows]) for name in SCORES}
    return {name: Above(values[about], values[~about]) for name, values in columns.items()}


def print_scores(sizes: dict[int, dict[str, Above]], min_score: float) -> None:
    """The table of shares above a threshold that was set at the first size."""
    print("\nqueries above the threshold, of those with a passage and of those without")
    print(f"{'':<42} {'threshold':>9} " + "".join(f"{size:>16,}" for size in sizes))
    first = next(iter(sizes.values()))
    thresholds = [(name, float(np.quantile(first[name].chance, 0.95))) for name in SCORES]
    for name, least in [(SCORES[0], min_score), *thresholds]:
        shares = "".join(f"{measured[name].shares(least):>16}" for measured in sizes.values())
        print(f"{name:<42} {least:>9.3f} {shares}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="numbers of passages")
    parser.add_argument("--runs", type=int, default=3, help="of which the median is taken")
    parser.add_argument("--peers", type=Path, help="a folder with packages to compare with")
    parser.add_argument("--passages", type=Path, help="a table of passages, instead of made-up ones")
    parser.add_argument("--texts", type=Path, help="a table of documents, instead of made-up ones; only the scores")
    parser.add_argument("--away", default="", help="groups of --texts that are kept out of the corpus, by commas")
    options = parser.parse_args()
    if options.peers:
        sys.path.append(str(options.peers))
    params = section("retrieve")
    common, lines = float(params["common_words"]), []
    scores: dict[int, dict[str, Above]] = {}
    if not options.texts:
        print(f"{'passages':>9} {'':<10} {'index CPU s':>11} {'queries/CPU s':>13} {'ratio':>6} {'recall at 3':>11}")
    for size in [0] if options.passages else options.sizes:
        if options.texts:
            planted = documents(options.texts, set(options.away.split(",")), size)
        else:
            planted = real(options.passages) if options.passages else made(size, seed=size)
        count = len(planted.passages)
        with tempfile.TemporaryDirectory() as folder:
            own, best_scores = ours(planted, Path(folder) / "index", common)
            if not options.texts:
                rate, found = measured(own, planted, options.runs)
                print(f"{count:>9,} {own.name:<10} {own.index_s:>11.2f} {rate:>13,.0f} {'1.0':>6} {found:>11.3f}")
                for side in peers(planted):
                    other, share = measured(side, planted, options.runs)
                    figures = f"{side.index_s:>11.2f} {other:>13,.0f} {rate / other:>6.1f} {share:>11.3f}"
                    print(f"{'':>9} {side.name:<10} {figures}", flush=True)
                lines.append(f"{count:,}: {found:.3f}, {rate:,.0f}/s")
            if not options.passages:
                scores[count] = best_of(planted, best_scores)
    if scores:
        print_scores(scores, float(params["min_score"]))
    if lines:
        print(f"\nretrieve: recall at 3 and queries per CPU second by passages: {'; '.join(lines)}")


if __name__ == "__main__":
    main()
