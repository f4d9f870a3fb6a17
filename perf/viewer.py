"""What the viewer, the page of two runs and the map cost with 100,000 made documents and points, in a real Chromium.

    python -m perf.viewer                     # 100,000 documents of 200 words
    python -m perf.viewer --documents 20000 --words 600

Printed are the CPU seconds and bytes of each page's making, then, in the browser: until the list is there, a filter,
the first search (which unpacks every text), the next one (texts are kept), a scroll to another part of the list, the
opening of a document; the same of the page of `cosmo report`, where all documents differ; of the map: until it is
there, a frame while it moves, and a lasso over half of it.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl

from cosmopedia.dataset_diff.report import COUNTS
from cosmopedia.dataset_diff.rows import Differences
from cosmopedia.execution.versions import Version
from stages.report.cosmo_report_page import render
from stages.report.map import render_map
from stages.report.viewer import Documents, render_viewer
from tests.support.chromium import Browser, chromium
from tests.support.documents import document

READY = "document.body.dataset.ready"
SYLLABLES = [
    "ba",
    "ce",
    "di",
    "fo",
    "gu",
    "ha",
    "je",
    "ki",
    "lo",
    "mu",
    "na",
    "pe",
    "ri",
    "so",
    "tu",
    "va",
    "we",
    "xi",
    "yo",
    "zu",
]


def made_documents(count: int, words: int) -> list[dict[str, Any]]:
    """Documents of made words, frequent and rare ones; a tenth was removed."""
    rng = random.Random(1)
    vocabulary = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) for _ in range(20_000)]
    weights = [1 / (rank + 10) for rank in range(len(vocabulary))]
    prompt = "Here is an extract from a web page: {} Write a part of a textbook about it, for {}."
    rows = []
    for number in range(count):
        text = " ".join(rng.choices(vocabulary, weights, k=words))
        gone = number % 10 == 0
        values = {"completion_id": f"{number:032x}-0", "text": f"Sure, here it is. {text}", "seed_id": f"web/{number}"}
        values |= {"source": ("web", "openstax", "stanford")[number % 3], "topic": f"topic {number % 50}"}
        values |= {"prompt": prompt.format(text[:300], "pupils"), "text_token_length": words}
        state = (
            {"state": "dedup: near", "evidence": '{"kept": "0-0"}'} if gone else {"state": "kept", "evidence": None}
        )
        rows.append(document(**values) | state | {"clean": text})
    return rows


def made_points(count: int) -> pl.DataFrame:
    """Points around 60 middles."""
    rng = random.Random(1)
    middles = [(rng.random(), rng.random()) for _ in range(60)]
    clusters = [rng.randrange(60) for _ in range(count)]
    columns = {"row_id": [f"web/{n:09}" for n in range(count)], "cluster": clusters}
    columns |= {axis: [rng.gauss(middles[c][side], 0.03) for c in clusters] for side, axis in enumerate("xy")}
    columns |= {"source": ["web"] * count, "topic": [f"topic {c}" for c in clusters]}
    columns |= {"state": ["kept" if c % 5 else "dropped" for c in clusters], "excerpt": ["It begins " * 12] * count}
    return pl.DataFrame(columns)


def made_differences(rows: list[dict[str, Any]]) -> Differences:
    """The documents as two runs have them: a word in twenty is another one, and every tenth document is new."""
    rng, differing = random.Random(2), []
    for row in rows:
        before = " ".join(word if rng.random() > 0.05 else "other" for word in row["clean"].split())
        values = {"id": row["completion_id"], "kind": "changed", "reason": "model or sampling", "text": before}
        values |= {"text_b": row["clean"], "prompt_b": row["prompt"], "seed_id_b": row["seed_id"]}
        values |= {"tokens_a": row["text_token_length"], "tokens_b": row["text_token_length"]}
        if row["state"] != "kept":
            values |= {"kind": "added", "reason": "dedup: near", "text": None, "tokens_a": None}
        differing.append(row | values)
    return Differences(differing, len(differing))


def render_compared(found: Differences) -> str:
    """The page of two folders without scores and settings."""
    versions = (Version("one", "folder"), Version("other", "folder"))
    counts = dict.fromkeys((*COUNTS, "changed"), len(found.rows))
    figures = {"a": {"name": "one"}, "b": {"name": "other"}, "stage": "clean", "same": True, "totals": counts}
    scores = {"lines": [], "head": [], "rows": [], "problem": "made"}
    return render(versions, figures | {"groups": []}, found, scores)


def timed(browser: Browser, script: str) -> float:
    """Milliseconds that a script takes in the page."""
    return browser.run(
        f"(async () => {{ const start = performance.now(); {script}; return performance.now() - start; }})()"
    )


def made(path: Path, render: Any) -> str:
    """Write a page; how large it is and what it cost."""
    start = time.process_time()
    path.write_text(render(), encoding="utf-8")
    return f"{path.stat().st_size / 1e6:.0f} MB in {time.process_time() - start:.1f} CPU s"


def measure_viewer(browser: Browser, path: Path, fragment: str = "") -> dict[str, float]:
    """Milliseconds of what a reader waits for."""
    start = time.perf_counter()
    browser.open(path, fragment, READY)
    times = {"list there": 1000 * (time.perf_counter() - start)}
    choose = "$('source').value = {}; $('source').onchange()"
    times["filter"] = statistics.median(timed(browser, choose.format(json.dumps(v))) for v in ("web", "stanford", ""))
    times["first search"] = timed(browser, "state.q = 'bacedi fogu'; await search()")
    times["next search"] = timed(browser, "state.q = 'hajeki'; await search()")
    browser.run("state.q = ''; search()")
    far = "$('rows').scrollTop = {}; drawRows(); $('rows').getBoundingClientRect()"
    times["scroll"] = statistics.median(timed(browser, far.format(place * 70_000)) for place in range(1, 40))
    times["open"] = statistics.median(
        timed(browser, f"at = {n * 97}; state.id = rows.ids[{n * 97}]; await show({n * 97})") for n in range(9)
    )
    return times


def measure_map(browser: Browser, path: Path) -> dict[str, float]:
    start = time.perf_counter()
    browser.open(path, ready=READY)
    times = {"map there": 1000 * (time.perf_counter() - start)}
    times["frame"] = statistics.median(timed(browser, "pan(7, 3); draw()") for _ in range(30))
    times["hover"] = statistics.median(timed(browser, f"hover([{x}, 300])") for x in range(100, 800, 50))
    times["lasso"] = timed(browser, "choose([[0, 0], [500, 0], [500, 900], [0, 900]]); draw()")
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--words", type=int, default=200)
    options = parser.parse_args()
    rows = made_documents(options.documents, options.words)
    with tempfile.TemporaryDirectory() as name, chromium() as browser:
        folder = Path(name)
        browser.size(1300, 850)
        print("viewer.html:", made(folder / "viewer.html", lambda: render_viewer(Documents(rows, len(rows)), "made")))
        viewer = measure_viewer(browser, folder / "viewer.html")
        found = made_differences(rows)
        print("compare.html:", made(folder / "compare.html", lambda: render_compared(found)))
        compared = measure_viewer(browser, folder / "compare.html", "#view=documents")
        points = made_points(options.documents)
        print("map.html:", made(folder / "map.html", lambda: render_map(points, "made")))
        the_map = measure_map(browser, folder / "map.html")
        assert not browser.messages and not browser.requests, (browser.messages, browser.requests)
    print(f"{options.documents:,} documents of {options.words} words, ms:")
    for name, times in (("viewer", viewer), ("compare", compared), ("map", the_map)):
        print(f"  {name}: {', '.join(f'{what} {time:,.0f}' for what, time in times.items())}")


if __name__ == "__main__":
    main()
