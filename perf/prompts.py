"""CPU time of the prompts stage next to the published method, on made-up web rows x the four published styles.

    python -m perf.prompts                               # 100,000 rows, medians of 3, about five minutes
    python -m perf.prompts --rows 100000 1000000 --runs 1    # how both grow, about fifteen minutes
    python -m perf.prompts --rows 10000000 --styles 3 --words 40 --runs 1 --sides ours --within /big/disk

The published method, restated: one style after the other, the rows shuffled, `datasets.map` with an f-string for each
row, the topic named by a coin, the result written by `to_parquet`. Ours: the stage as it runs, with contracts, lineage
columns, exact and (unless said otherwise) near duplicates. Each side runs in a process of its own; imports are not
counted, since a small run comes first in it; child processes are. The very first run compiles the kernels, whose
machine code is kept for all later ones.
"""

import argparse
import contextlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
STYLES = ("textbook_academic", "textbook_narrative", "blogpost", "wikihow")
WORDS = 160  # of a row, about 1,000 characters: what a prompt quotes
SIDES = ("ours", "ours without near duplicates", "published")
BATCH = 10_000
SMALL = 100  # rows of the run that comes before the one that is measured


def texts(count: int, words: int) -> Iterator[list[str]]:
    """Rows of words as frequent as in prose, `BATCH` at a time; one in a hundred nearly repeats the one before."""
    import numpy as np

    dice = np.random.default_rng(1)
    spelled = ["".join(dice.choice(list("etaoinshrdlucmfw"), size)) for size in dice.integers(2, 9, 30_000)]
    weights = np.cumsum(1 / np.arange(1, len(spelled) + 1))
    for first in range(0, count, BATCH):
        rows = min(BATCH, count - first)
        drawn = np.searchsorted(weights, dice.random((rows, words)) * weights[-1])
        made = [" ".join(map(spelled.__getitem__, row)) for row in drawn.tolist()]
        for n in range(1, rows, 100):
            made[n] = f"{made[n - 1].rsplit(' ', 1)[0]} changed"
        yield made


def make(folder: Path, count: int, words: int = WORDS, styles: int = len(STYLES)) -> None:
    """Source rows of one topic, settings and templates."""
    import pyarrow as pa
    import yaml

    from cosmopedia.tables.contracts import SOURCE, TOPIC_OF_ROW
    from cosmopedia.tables.parquet import TableWriter

    fixed = {"source": "web", "title": "", "context": "{}", "licence": "CC0-1.0", "revision": "r"}
    with (
        TableWriter(folder / "data/sources/web.parquet", SOURCE) as sources,
        TableWriter(folder / "data/topics/web.parquet", TOPIC_OF_ROW) as topics,
    ):
        for made in texts(count, words):
            ids = [f"web/{sources.rows + n:09d}" for n in range(len(made))]
            columns = {name: pa.repeat(value, len(ids)) for name, value in fixed.items()}
            columns |= {"row_id": ids, "original_id": ids, "text": made, "url": pa.nulls(len(ids), pa.string())}
            sources.write_table(pa.table(columns))
            topic = {"row_id": ids, "cluster": pa.repeat(pa.scalar(0, pa.int32()), len(ids))}
            topics.write_table(pa.table({**topic, "topic": pa.repeat("Geology", len(ids))}))
    section = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["prompts"]
    web = section["styles"]["cosmopedia"]["web"]
    section["styles"] = {"cosmopedia": {"web": {name: web[name] for name in STYLES[:styles]}}}
    section |= {"extract_chars": 1000, "per_cell": None, "presets": ["cosmopedia"]}
    (folder / "params.yaml").write_text(yaml.safe_dump({"profile": "p", "prompts": section}), encoding="utf-8")
    (folder / "profiles").mkdir()
    (folder / "profiles/p.yaml").write_text("prompts: {}\n", encoding="utf-8")
    (folder / "prompts").symlink_to(ROOT / "prompts")


def ours(near: bool) -> None:
    """The stage; `near`: with its search for near duplicates."""
    from stages.prompts import __main__ as prompts

    if not near:
        path = Path("params.yaml")
        path.write_text(path.read_text().replace("near_duplicate: 0.8", "near_duplicate: null"))
    started = cpu()
    prompts.main()
    report(started)


def published() -> None:
    """The published method, restated."""
    import datasets

    from stages.prompts.templates import read_template

    datasets.disable_progress_bars()
    bodies = {name: read_template("web", name).pieces for name in STYLES}
    started = cpu()
    rows = datasets.load_dataset("parquet", data_files="data/sources/web.parquet", split="train", cache_dir="cache")
    for name in STYLES:
        first, _, middle, _, last = bodies[name]

        def build(row: dict, first: str = first, middle: str = middle, last: str = last) -> dict:
            topic = ', within the context of "Geology"' if random.random() < 0.5 else ""
            return {"prompt": f"{first}{row['text'][:1000]}{middle}{topic}{last}"}

        made = rows.shuffle(seed=42).map(build)  # type: ignore[union-attr]
        made = made.add_column("style", [name] * len(made)).add_column("audience", ["general"] * len(made))
        made.to_parquet(f"published-{name}.parquet")
    report(started)


def side(name: str) -> None:
    """One side in this folder, with its figures as a line."""
    if name == "published":
        published()
    else:
        ours(name == "ours")


def cpu() -> float:
    """CPU seconds of this process and its ended children."""
    return sum(os.times()[:4])


def report(started: float) -> None:
    """Print what this process has taken since `started` CPU seconds."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"cpu": cpu() - started, "peak_mb": peak}))


def measure(side: str, count: int, words: int, styles: int, within: Path | None) -> dict[str, float]:
    """CPU seconds, wall seconds with imports and peak memory of one side, in a fresh process and folder."""
    with tempfile.TemporaryDirectory(dir=within) as name:
        folder = Path(name)
        make(folder, count, words, styles)
        make(folder / "small", SMALL, words, styles)
        environment = {key: value for key, value in os.environ.items() if key != "COSMO_STORE"}
        environment |= {"PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1"}
        started = time.monotonic()
        command = [sys.executable, "-m", "perf.prompts", "--side", side]
        done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"{side} failed")
        return {**json.loads(done.stdout.splitlines()[-1]), "wall": time.monotonic() - started}


def main(counts: list[int], runs: int, words: int, styles: int, sides: list[str], within: Path | None) -> None:
    """Measure the sides at each number of rows and print the table; the last line sums up the last number."""
    for side in sides:
        measure(side, 1000, words, styles, within)
    print(f"{'rows':>10}  {'side':30}  {'CPU s':>8}  {'prompts per CPU s':>17}  {'wall s':>7}  {'peak MB':>7}")
    spent: dict[str, float] = {}
    for count in counts:
        for side in sides:
            several = [measure(side, count, words, styles, within) for _ in range(runs)]
            spent[side], wall, peak = (median(run[name] for run in several) for name in ("cpu", "wall", "peak_mb"))
            rate = count * styles / spent[side]
            print(f"{count:10,}  {side:30}  {spent[side]:8.1f}  {rate:17,.0f}  {wall:7.1f}  {peak:7.0f}", flush=True)
    line = f"{counts[-1]:,} rows x {styles} styles: " + "; ".join(f"{s} {spent[s]:.1f} CPU s" for s in sides)
    if sides[-1] == SIDES[-1] and len(sides) > 1:
        ratios = " and ".join(f"{spent[sides[-1]] / spent[side]:.1f}" for side in sides[:-1])
        line += f", {ratios} times as much"
    print(line)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m perf.prompts")
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000])
    parser.add_argument("--runs", type=int, default=3, help="of which the medians are shown (3)")
    parser.add_argument("--words", type=int, default=WORDS, help=f"of a row ({WORDS})")
    parser.add_argument("--styles", type=int, default=len(STYLES), help=f"at most {len(STYLES)}, the default")
    parser.add_argument("--sides", choices=SIDES, nargs="+", default=list(SIDES), help="what is measured (all)")
    parser.add_argument("--within", type=Path, help="a folder for what is written, while it is needed")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        with contextlib.chdir("small"):  # imports, and the loading of compiled code, are not counted
            side(given.side)
        side(given.side)
    else:
        main(given.rows, given.runs, given.words, given.styles, given.sides, given.within)
