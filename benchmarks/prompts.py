"""CPU time of the prompts stage beside the published method, on made-up web rows x the four published styles.

    python -m benchmarks.prompts                  # 10,000 and 100,000 rows, about two minutes
    python -m benchmarks.prompts --rows 10000     # smaller

The published method, restated: one style after the other, the rows shuffled, `datasets.map` with an f-string for each
row, the topic named by a coin, the result written by `to_parquet`. Ours: the stage as it runs, with contracts, lineage
columns, exact and (unless said otherwise) near duplicates. Each side runs in a process of its own; imports are not
counted, child processes are.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
STYLES = ("textbook_academic", "textbook_narrative", "blogpost", "wikihow")
WORDS = 160  # of a row, about 1,000 characters: what a prompt quotes
SIDES = ("ours", "ours without near duplicates", "published")


def make(folder: Path, count: int) -> None:
    """Seed rows of one topic (1% near duplicates), settings and templates."""
    import numpy as np
    import yaml

    from stages.tables.contracts import SOURCE, TOPIC_OF_ROW
    from stages.tables.parquet import write_table

    dice = np.random.default_rng(1)
    spelled = ["".join(dice.choice(list("etaoinshrdlucmfw"), size)) for size in dice.integers(2, 9, 30_000)]
    weights = 1 / np.arange(1, len(spelled) + 1)
    drawn = dice.choice(len(spelled), (count, WORDS), p=weights / weights.sum())
    texts = [" ".join(spelled[word] for word in row) for row in drawn]
    for n in range(0, count, 100):
        texts[n] = f"{texts[n - 1].rsplit(' ', 1)[0]} changed"
    fixed = {"source": "web", "title": "", "context": "{}", "url": None, "licence": "CC0-1.0", "revision": "r"}
    rows = [{"row_id": f"web/{n:09d}", "original_id": str(n), "text": t, **fixed} for n, t in enumerate(texts)]
    write_table(folder / "data/sources/web.parquet", rows, SOURCE)
    topics = [{"row_id": row["row_id"], "cluster": 0, "topic": "Geology"} for row in rows]
    write_table(folder / "data/topics/web.parquet", topics, TOPIC_OF_ROW)
    section = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["prompts"]
    web = section["styles"]["cosmopedia"]["web"]
    section["styles"] = {"cosmopedia": {"web": {name: web[name] for name in STYLES}}}
    section |= {"extract_chars": 1000, "per_cell": None, "presets": ["cosmopedia"]}
    (folder / "params.yaml").write_text(yaml.safe_dump({"profile": "p", "prompts": section}), encoding="utf-8")
    (folder / "profiles").mkdir()
    (folder / "profiles/p.yaml").write_text("prompts: {}\n", encoding="utf-8")
    (folder / "prompts").symlink_to(ROOT / "prompts")


def ours(near: bool) -> None:
    """The stage; `near`: with its search for near duplicates."""
    from stages import prompts

    if not near:
        path = Path("params.yaml")
        path.write_text(path.read_text().replace("near_duplicate: 0.8", "near_duplicate: null"))
    started = cpu()
    prompts.main()
    print(json.dumps({"cpu": cpu() - started}))


def published() -> None:
    """The published method, restated."""
    import datasets

    from stages.prompting.templates import read_template

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
    print(json.dumps({"cpu": cpu() - started}))


def cpu() -> float:
    """CPU seconds of this process and its ended children."""
    return sum(os.times()[:4])


def measure(side: str, count: int) -> tuple[float, float]:
    """(CPU seconds, wall seconds with imports) of one side in a fresh process and folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, count)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1"}
        started = time.monotonic()
        command = [sys.executable, "-m", "benchmarks.prompts", "--side", side]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{side} failed:\n{done.stderr}")
        return json.loads(done.stdout.splitlines()[-1])["cpu"], time.monotonic() - started


def main(counts: list[int]) -> None:
    """Measure every side at each number of rows and print the table; the last line sums up the last number."""
    print(f"{'rows':>8}  {'side':30}  {'CPU s':>7}  {'rows x styles a CPU s':>21}")
    found: dict[str, float] = {}
    for count in counts:
        for side in SIDES:
            found[side], _ = measure(side, count)
            print(f"{count:8,}  {side:30}  {found[side]:7.2f}  {count * len(STYLES) / found[side]:21,.0f}", flush=True)
    took, without, theirs = (found[side] for side in SIDES)
    print(
        f"{counts[-1]:,} rows x {len(STYLES)} styles: {took:.1f} CPU s, {without:.1f} without near duplicates;"
        f" published {theirs:.1f}, {theirs / took:.1f} and {theirs / without:.1f} times as much"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prompts")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side == "published":
        published()
    elif given.side:
        ours(given.side == "ours")
    else:
        main(given.rows)
