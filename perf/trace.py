"""`cosmo trace` and `cosmo diff` on made-up tables of a run: wall and CPU seconds of each question, and memory.

    python -m perf.trace                                   # 1,500,000 rows, a minute
    python -m perf.trace --rows 30000000 --keep FOLDER     # 30 million: 15 minutes and 12 GB for the tables, once
    python -m perf.trace --rows 30000000 --keep FOLDER --skip-diff

The tables (perf/made_corpus.py) are cell files with the stages' contracts in shards of 200,000 rows; ids, keys and
lineage are of their usual size, texts have about 80 characters instead of 3,000. So everything but the search for a
piece of text and the diff costs what it costs on real tables; the search is given per GB of text. Each question is
asked several times in this process, the files being in the page cache; the median counts. `the whole command` is
`cosmo trace <id>` as a process, with its imports.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from cosmopedia.dataset_diff.compare import compare
from cosmopedia.dataset_diff.report import report
from cosmopedia.execution.versions import Version
from cosmopedia.tracing import backward
from cosmopedia.tracing.corpus import Corpus
from cosmopedia.tracing.forward import trace
from cosmopedia.tracing.fragment import search
from perf.made_corpus import CELLS, TOPICS, made_corpus

GOAL_S = 5.0  # for 30 million rows on two cores
DIFF_ROWS = 1_000_000
TEXTS = 100_000  # that are searched, of 3,000 characters
ROOT = Path(__file__).parents[1]


def measured(question: Callable[[], Any], runs: int) -> tuple[float, float, Any]:
    """(wall, CPU) seconds, medians, and the last answer."""
    walls, cpus, answer = [], [], None
    for _ in range(runs):
        wall, cpu = time.perf_counter(), time.process_time()
        answer = question()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return statistics.median(walls), statistics.median(cpus), answer


def peak_mb() -> float:
    """The most memory that this process has had since it started, in MB; `ru_maxrss` has its parent's in it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1e3


def questions(folder: Path) -> dict[str, Callable[[], Any]]:
    """What is asked; each opens the tables anew."""
    version = Version("made", "folder", folder)
    middle = sorted((folder / "data/decontaminate").glob("*.parquet"))[len(CELLS) // 2]
    file = pq.ParquetFile(middle)
    row = file.read_row_group(file.num_row_groups // 2).slice(777, 1).to_pylist()[0]
    removed = pq.ParquetFile(folder / "data/clean/removed/removed.parquet")
    gone = removed.read_row_group(0, columns=["completion_id"])["completion_id"][99].as_py()

    def ask(**filters: str) -> Callable[[], Any]:
        return lambda: backward.affected(Corpus(version), filters)

    def without() -> Any:
        corpus = Corpus(version)
        return backward.without(corpus, backward.affected(corpus, {"licence": "CC-BY-4.0"}))

    return {
        "a completion's id": lambda: trace(Corpus(version), row["completion_id"], lambda *_: None),
        "a prompt's id": lambda: trace(Corpus(version), row["prompt_id"], lambda *_: None),
        "an id that clean removed": lambda: trace(Corpus(version), gone, lambda *_: None),
        "an id that is nowhere": lambda: trace(Corpus(version), "f" * 32, lambda *_: None),
        "--source web": ask(source="web"),
        "--template web/wikihow": ask(template="web/wikihow"),
        "--licence CC-BY-4.0": ask(licence="CC-BY-4.0"),
        "--topic": ask(topic=str(TOPICS[3])),
        "--source-row": ask(source_row=row["seed_id"]),
        "--licence --without": without,
    }


def ask_all(folder: Path, runs: int) -> tuple[float, str]:
    """Print every question's cost; the longest wall time and its question."""
    longest = (0.0, "")
    for name, question in questions(folder).items():
        wall, cpu, _ = measured(question, runs)
        longest = max(longest, (wall, name))
        print(f"{name:28} {wall:8.2f} {cpu:8.2f}", flush=True)
    return longest


def whole_command(folder: Path) -> None:
    """`cosmo trace <id>` in a checkout whose data are the made tables."""
    for name in ("dvc.yaml", "params.yaml"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    first = sorted((folder / "data/decontaminate").glob("*.parquet"))[0]
    name = pq.ParquetFile(first).read_row_group(0, columns=["completion_id"])["completion_id"][5].as_py()
    command = [sys.executable, "-m", "cosmopedia.cli", "trace", name, "--json"]
    before, wall = os.times(), time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    wall, after = time.perf_counter() - wall, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    if done.returncode:
        raise SystemExit(f"cosmo trace failed: {done.stderr}")
    print(f"{'the whole command, by id':28} {wall:8.2f} {cpu:8.2f}", flush=True)


def search_texts(folder: Path, runs: int) -> float:
    """Print what a search that finds nothing costs per GB of text of real length; wall seconds per GB."""
    words = np.array(["tide", "moon", "because", "the", "water", "slowly", "Made-up", "of", "a", "which"])
    dice = np.random.default_rng(1)
    texts = [" ".join(dice.choice(words, 600)) for _ in range(1000)]  # 3,000 characters
    file = folder / "web-blogpost.parquet"
    ids = [f"{n:032x}-0" for n in range(TEXTS)]
    pl.DataFrame({"completion_id": ids, "text": [f"{n} {texts[n % 1000]}" for n in range(TEXTS)]}).write_parquet(
        file, row_group_size=10_000
    )
    corpus = Corpus(Version("texts", "folder", direct={"data/decontaminate": folder}))
    per_gb = 0.0
    for kind, fragment in (("one word", "nowhere-to-be-found"), ("several words", "Made-up moon that is nowhere")):
        wall, cpu, found = measured(lambda: search(corpus, fragment, 10, 1e9), runs)  # noqa: B023
        read = found.read / 1e9
        per_gb = max(per_gb, wall / read)
        print(f"{'a piece of text, ' + kind:28} {wall:8.2f} {cpu:8.2f}   {wall / read:.1f} s per GB ({read:.2f} GB)")
    return per_gb


def diff_tables(rows: int) -> str:
    """Compare two made corpora, in a process of its own for its memory; a line about it."""
    with tempfile.TemporaryDirectory() as folder:
        for name, changed in (("a", 0), ("b", 10)):
            made_corpus(Path(folder) / name, rows, changed)
        script = f"from perf.trace import diff_once; diff_once({folder!r})"
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True)
        return done.stdout.strip()


def diff_once(folder: str) -> None:
    """Print the cost of one comparison."""
    start = peak_mb()
    versions = (Version("a", "folder", Path(folder) / "a"), Version("b", "folder", Path(folder) / "b"))
    stage = "decontaminate"
    wall, cpu, found = measured(lambda: report(versions, stage, compare(versions, stage, 3), 3), 1)
    totals = found["totals"]
    if not totals["changed"]:
        raise SystemExit("the made difference was not found")
    print(
        f"diff of {totals['rows_a']:,} rows with {totals['changed']:,} changed: {wall:.1f} s, {cpu:.1f} CPU s,"
        f" {peak_mb() - start:,.0f} MB above the imports' {start:,.0f}"
    )


def main() -> None:
    """Make the tables, ask, and print a summary."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_500_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="make the tables here, or use those that are here")
    parser.add_argument("--skip-diff", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        if not (folder / "models/train/seed-1/training.json").is_file():
            wall, cpu, _ = measured(lambda: made_corpus(folder, options.rows), 1)
            print(f"made {options.rows:,} rows in {wall:.0f} s, {cpu:.0f} CPU s", flush=True)
        print(f"{'':28} {'wall s':>8} {'CPU s':>8}")
        longest, question = ask_all(folder, options.runs)
        whole_command(folder)
        (Path(scratch) / "texts").mkdir()
        per_gb = search_texts(Path(scratch) / "texts", options.runs)
    print(f"memory of this process: {peak_mb():,.0f} MB")
    if not options.skip_diff:
        print(diff_tables(min(options.rows, DIFF_ROWS)))
    print(
        f"trace: the slowest question, {question}, took {longest:.2f} s on {options.rows:,} rows (goal {GOAL_S:g} s"
        f" on 30 million); a search {per_gb:.1f} s per GB of text"
    )


if __name__ == "__main__":
    main()
