"""What decontamination finds, and CPU time, memory and decisions next to the published script's.

    python -m perf.decontaminate                                   # the repository's samples and made-up texts
    python -m perf.decontaminate --documents 1000 --runs 1         # smaller
    python -m perf.decontaminate --documents                       # only what is found
    python -m perf.decontaminate --completions texts.parquet --passages clean.parquet --items items.jsonl   # real ones

`--completions` and `--passages` are parquet files with a column `text`, `--items` a jsonl file of `task_name` and
`text` (the question, and its choices or answer on lines below). perf/contamination_forms.py says what is planted in
passages; then twenty documents get an item planted word for word, for the comparison.

The published script, restated: an n-gram of the items leads to the last item that has it; a document's 10-grams are
looked up in the order of a set, the first hit is compared by difflib, and the document goes if the ratio is above 0.5;
`datasets.map` and `filter` carry it out. Ours: the stage as it runs, from parquet to parquet, with contracts, lineage
columns, evidence and reports, by the published rule and its words; `all detectors` is the stage as params.yaml has it.
`rule alone` is either without reading and writing. Each side runs in a process of its own, in turn with the others;
imports are not counted, child processes are. Each run has another PYTHONHASHSEED.
"""

import argparse
import contextlib
import difflib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
OURS, PUBLISHED, OURS_RULE, PUBLISHED_RULE = "ours", "published", "ours, rule alone", "published, rule alone"
TWO = "ours, 2 workers"
ALL = "ours, all detectors"
# What makes the stage the published rule.
PUBLISHED_ONLY = {"published": "remove", "forms": None, "tolerant": None, "normalisation": "published"}
CELLS, NGRAM, MIN_BLOCK, MAX_RATIO = 4, 10, 5, 0.5
PLANTS = 20  # documents that get an item word for word
EDIT_EVERY = 100  # of this many made-up documents one gets an edited item
MADE_ITEMS = 6000


def invented(count: int) -> tuple[list[str], list[dict[str, str]]]:
    """Documents of 600 made-up words and items of 6 to 80; a fifth of the items begin with one of ten templates."""
    import numpy as np

    dice = np.random.default_rng(1)
    spelled = ["".join(dice.choice(list("etaoinshrdlucmfw"), size)) for size in dice.integers(2, 9, 30_000)]
    weights = 1 / np.arange(1, len(spelled) + 1)
    weights /= weights.sum()

    def words(size: int) -> list[str]:
        return [spelled[word] for word in dice.choice(len(spelled), size, p=weights)]

    templates = [words(14) for _ in range(10)]
    items = []
    for number in range(MADE_ITEMS):
        head = templates[number // 5 % 10] if number % 5 == 0 else []
        items.append({"task_name": f"task_{number % 6}", "text": " ".join(head + words(int(dice.integers(6, 67))))})
    texts = [f"{' '.join(words(300))}. {' '.join(words(300))}." for _ in range(count)]
    for number in range(50, count, EDIT_EVERY):  # a tenth of an item's words changed
        edited = items[number % MADE_ITEMS]["text"].split()
        edited[::10] = words(len(edited[::10]))
        texts[number] = f"{texts[number]} {' '.join(edited)}. {' '.join(words(40))}."
    return texts, items


def given(completions: Path, items: Path, count: int) -> tuple[list[str], list[dict[str, str]]]:
    """The first `count` real documents (over and over, where there are fewer), and the items."""
    import pyarrow.parquet as pq

    texts = pq.read_table(completions, columns=["text"])["text"].to_pylist()
    with items.open(encoding="utf-8") as lines:
        return [texts[number % len(texts)] for number in range(count)], [json.loads(line) for line in lines]


def make(folder: Path, texts: list[str], items: list[dict[str, str]]) -> None:
    """The repository that both sides work in, with verbatim items planted and noted in plants.json."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import yaml

    from cosmopedia.core.rng import draw_u64
    from cosmopedia.tables.contracts import BENCHMARK, DOCUMENT, PARAPHRASE
    from cosmopedia.tables.parquet import write_table

    texts, plants = list(texts), {}
    for number in range(0, len(texts), max(1, len(texts) // PLANTS)):
        chosen = draw_u64(1, "plant", number) % len(items)
        end = texts[number].find(". ", draw_u64(1, "place", number) % len(texts[number])) + 2
        texts[number] = f"{texts[number][:end]}\n\n{items[chosen]['text']}\n\n{texts[number][end:]}"
        plants[f"d{number:06d}"] = f"{items[chosen]['task_name']}/{chosen:06d}"
    (folder / "plants.json").write_text(json.dumps(plants), encoding="utf-8")
    ids = [f"d{number:06d}" for number in range(len(texts))]
    pq.write_table(pa.table({"id": ids, "completion": texts}), folder / "completions.parquet", compression="zstd")
    names = [f"{item['task_name']}/{number:06d}" for number, item in enumerate(items)]
    columns = {"item_id": names, **{name: [item[name] for item in items] for name in ("task_name", "text")}}
    pq.write_table(pa.table(columns), folder / "items.parquet", compression="zstd")
    lineage = {field.name: "" for field in DOCUMENT.schema} | {"topic": None, "topic_named": False}
    numbers = {"text_token_length": 0, "sample_index": 0, "prompt_tokens": 0, "sampling_seed": 0}
    rows = [
        lineage | numbers | {"completion_id": i, "text": text, "source": "web", "style": str(number % CELLS)}
        for number, (i, text) in enumerate(zip(ids, texts, strict=True))
    ]
    for cell in range(CELLS):
        write_table(folder / f"data/dedup/web-{cell}.parquet", rows[cell::CELLS], DOCUMENT)
    tasks: dict[str, list[dict[str, Any]]] = {}
    for name, item in zip(names, items, strict=True):
        row: dict[str, Any] = {"item_id": name, "task": item["task_name"], "query": "", "choices": [" "], "gold": 0}
        row |= {"group": None} | {"question": item["text"], "answer": "", "other_forms": [], "revision": ""}
        tasks.setdefault(item["task_name"], []).append(row)
    for task, several in tasks.items():
        write_table(folder / f"data/benchmarks/{task}.parquet", several, BENCHMARK)
    write_table(folder / "data/paraphrases/pairs.parquet", [], PARAPHRASE)
    section = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["decontaminate"]
    (folder / "everything.yaml").write_text(yaml.safe_dump(section), encoding="utf-8")
    section |= PUBLISHED_ONLY
    (folder / "params.yaml").write_text(yaml.safe_dump({"profile": "p", "decontaminate": section}), encoding="utf-8")
    (folder / "profiles").mkdir()
    (folder / "profiles/p.yaml").write_text("decontaminate: {}\n", encoding="utf-8")
    (folder / "compute").mkdir()


def everything() -> dict[str, Any]:
    """The stage with all detectors."""
    published_rule = Path("params.yaml").read_text(encoding="utf-8")
    section = Path("everything.yaml").read_text(encoding="utf-8")
    changed = "profile: p\ndecontaminate:\n" + "".join(f"  {line}\n" for line in section.splitlines())
    Path("params.yaml").write_text(changed, encoding="utf-8")
    try:
        return ours(1)
    finally:
        Path("params.yaml").write_text(published_rule, encoding="utf-8")


def ours(workers: int) -> dict[str, Any]:
    """The stage on this folder's cells; what it removed and why."""
    import yaml

    cluster = yaml.safe_load((ROOT / "compute/local.yaml").read_text(encoding="utf-8"))
    cluster["data"] |= {"tasks": workers, "workers": workers}
    Path("compute/local.yaml").write_text(yaml.safe_dump(cluster), encoding="utf-8")
    os.environ["COSMO_STORE"] = str(Path("store").resolve())
    import pyarrow as pa

    from cosmopedia.corpus import pipeline as cells
    from cosmopedia.tables.contracts import REMOVED
    from cosmopedia.tables.parquet import read_rows
    from stages.decontaminate import __main__ as decontaminate

    cells.WORTH_SECONDS = 0
    # imports are not counted: datatrove looks through all installed packages once, pyarrow imports pandas, and
    # compiled code is loaded
    cells.removed_writer(Path("unused"))
    pa.array([""])
    load_compiled_code()
    started, began = cpu(), time.monotonic()
    decontaminate.main()
    took = {"cpu": cpu() - started, "wall": time.monotonic() - began}
    rows = read_rows(["data/decontaminate/removed/removed.parquet"], REMOVED)
    removed = {row["completion_id"]: json.loads(row["evidence"])["items"] for row in rows}
    metrics = json.loads(Path("metrics/decontaminate.json").read_text(encoding="utf-8"))
    return took | {"removed": removed, "rules": metrics["rules"], "pairs": metrics["candidates"]["pairs"]}


def load_compiled_code() -> None:
    """Find one item in one document."""
    import yaml

    from cosmopedia.contamination.forms import Form
    from cosmopedia.contamination.index import DecontaminateParams, Index

    section = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))["decontaminate"]
    text = "a word and then some more words of which the last one is changed here"
    forms = [Form("a", "a", "question_answer", (text, "yes")), Form("b", "a", "choices", ("why so", "now", "no"))]
    index = Index([*forms, Form("b", "a", "question", ("why so",))], DecontaminateParams.model_validate(section))
    assert [*index.findings([f"{text[:-4]}there, why so? now or no"])]


def ours_rule() -> dict[str, Any]:
    """The rule on lists in memory."""
    import pyarrow.parquet as pq
    import yaml

    from cosmopedia.contamination.forms import QUESTION_ANSWER, Form
    from cosmopedia.contamination.index import DecontaminateParams, Index
    from stages.decontaminate.pipeline import BATCH

    section = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))["decontaminate"]
    texts, items = pq.read_table("completions.parquet").to_pylist(), pq.read_table("items.parquet").to_pylist()
    load_compiled_code()
    started, removed = cpu(), {}
    rule = DecontaminateParams.model_validate(section)
    index = Index((Form(item["item_id"], item["task_name"], QUESTION_ANSWER, (item["text"],)) for item in items), rule)
    for first in range(0, len(texts), BATCH):
        batch = texts[first : first + BATCH]
        for number, found in index.findings([row["completion"] for row in batch]):
            if any(match.detectors(rule) for match in found.matches):
                removed[batch[number]["id"]] = True
    return {"cpu": cpu() - started, "removed": removed}


def words_of(text: str) -> list[str]:
    """The published script's words."""
    bare = "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")
    return re.findall(r"\w+", bare.lower())


def ngrams_of(words: list[str]) -> set[tuple[str, ...]]:
    """In the order of a set, which follows PYTHONHASHSEED."""
    return set(zip(*(words[k:] for k in range(NGRAM)), strict=False))


def lookup_of(items: list[dict[str, str]]) -> dict[tuple[str, ...], int]:
    """The item that each n-gram leads to: the last that has it."""
    return {ngram: number for number, item in enumerate(items) for ngram in ngrams_of(words_of(item["text"]))}


def first_hit(completion: str, lookup: dict[tuple[str, ...], int]) -> int | None:
    """The item that a document is compared with."""
    return next((lookup[ngram] for ngram in ngrams_of(words_of(completion)) if ngram in lookup), None)


def ratio_of(completion: str, item: str) -> float:
    """The share of the item that difflib finds in blocks of more than 5 characters."""
    document, wanted = " ".join(words_of(completion)), " ".join(words_of(item))
    blocks = difflib.SequenceMatcher(None, document, wanted, autojunk=False).get_matching_blocks()
    found = "".join(document[at : at + size] for at, _, size in blocks if size > MIN_BLOCK)
    return len(" ".join(found.split())) / len(wanted)


def published() -> dict[str, Any]:
    """The published script, restated: parquet to parquet."""
    import datasets

    datasets.disable_progress_bars()
    started, began = cpu(), time.monotonic()
    items = datasets.load_dataset("parquet", data_files="items.parquet", split="train", cache_dir="cache").to_list()  # type: ignore[union-attr]
    lookup = lookup_of(items)
    data: Any = datasets.load_dataset("parquet", data_files="completions.parquet", split="train", cache_dir="cache")

    def retrieve(batch: dict[str, list]) -> dict[str, list]:
        hits = [(text, first_hit(text, lookup)) for text in batch["completion"]]
        return {"completion": [t for t, i in hits if i is not None], "item": [i for _, i in hits if i is not None]}

    report = data.map(retrieve, batched=True, batch_size=1000, remove_columns=data.column_names)
    report = report.map(lambda row: {"ratio": ratio_of(row["completion"], items[row["item"]]["text"])})
    guilty = set(report.filter(lambda row: row["ratio"] > MAX_RATIO)["completion"])
    data.filter(lambda row: row["completion"] not in guilty).to_parquet("published.parquet")
    took = {"cpu": cpu() - started, "wall": time.monotonic() - began}
    tested = {row["completion"]: (items[row["item"]]["item_id"], row["ratio"]) for row in report}
    seen = {row["id"]: tested[row["completion"]] for row in data if row["completion"] in tested}
    return took | {"removed": {i: hit for i, hit in seen.items() if hit[1] > MAX_RATIO}, "tested": seen}


def published_rule() -> dict[str, Any]:
    """The published rule on lists in memory."""
    import pyarrow.parquet as pq

    texts, items = pq.read_table("completions.parquet").to_pylist(), pq.read_table("items.parquet").to_pylist()
    started, removed = cpu(), {}
    lookup = lookup_of(items)
    for row in texts:
        item = first_hit(row["completion"], lookup)
        if item is not None and ratio_of(row["completion"], items[item]["text"]) > MAX_RATIO:
            removed[row["id"]] = True
    return {"cpu": cpu() - started, "removed": removed}


SIDES = {
    OURS: lambda: ours(1),
    PUBLISHED: published,
    OURS_RULE: ours_rule,
    PUBLISHED_RULE: published_rule,
    TWO: lambda: ours(2),
    ALL: everything,
}


def cpu() -> float:
    """CPU seconds of this process and its ended children."""
    return sum(os.times()[:4])


def measure(side: str, folder: Path, seed: int) -> dict[str, Any]:
    """One side in a fresh process."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONHASHSEED": str(seed),
        "HF_HOME": str(folder / f"hub-{seed}"),
        "HF_HUB_OFFLINE": "1",
    }
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"):
        environment[name] = "1"
    command = [sys.executable, "-m", "perf.decontaminate", "--side", side]
    answer, complaint, peak = folder / "answer", folder / "complaint", 0.0
    with answer.open("w") as out, complaint.open("w") as err:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=err)
        while process.poll() is None:
            peak = max(peak, resident(process.pid))
            time.sleep(0.05)
    if process.returncode:
        sys.exit(f"{side} failed:\n{complaint.read_text()}")
    shutil.rmtree(folder / "cache", ignore_errors=True)
    return json.loads(answer.read_text().splitlines()[-1]) | {"peak": peak}


def resident(pid: int) -> float:
    """GB of memory that a process and its children share between them."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for one in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                total += one.memory_info().rss
    return total / 1e9


def reason(ids: list[str], texts: dict[str, str], tested: tuple[str, float] | None) -> str:
    """Why the published script keeps a document that holds the items `ids`."""
    long = [i for i in ids if len(words_of(texts[i])) >= NGRAM]
    if not long:
        return "the item has fewer than 10 words: never looked for"
    if tested is None:
        return "no 10-gram in common"
    other = ngrams_of(words_of(texts[tested[0]]))
    if any(ngrams_of(words_of(texts[i])) & other for i in long):
        return "the shared n-gram leads to a later item that has it too, and which matches less"
    return "the first n-gram of the set belongs to another item, which matches less"


def decisions(folder: Path, found: dict[str, list[dict[str, Any]]]) -> None:
    """Print plants found, what hash seeds change, and the decisions that differ, with their reasons."""
    import pyarrow.parquet as pq

    texts = {row["item_id"]: row["text"] for row in pq.read_table(folder / "items.parquet").to_pylist()}
    plants = json.loads((folder / "plants.json").read_text(encoding="utf-8"))
    mine, theirs = found[OURS][0]["removed"], [run["removed"] for run in found[PUBLISHED]]
    named = sum(plants[i] in {item["item_id"] for item in mine.get(i, [])} for i in plants)
    whole = sum(len(words_of(texts[item])) < 5 for item in plants.values())
    print(f"\nverbatim plants: {len(plants)}; ours removed {sum(i in mine for i in plants)} and named {named}", end="")
    print(f" ({whole} are items of fewer than 5 words)" if whole else "", end="")
    print(f"; published removed {' / '.join(str(sum(i in run for i in plants)) for run in theirs)}")
    same = all(run["removed"] == found[OURS][0]["removed"] for run in found[OURS] + found[TWO])
    print(f"ours: {len(mine)} removed, {'the same' if same else 'NOT THE SAME'} in every run and with 2 workers")
    once, always = set().union(*theirs), set(theirs[0]).intersection(*theirs)
    print(
        f"published: {' / '.join(str(len(run)) for run in theirs)} removed under {len(theirs)} hash seeds;"
        f" {len(once - always)} documents depend on the seed"
    )
    rules = found[OURS][0]["rules"]
    counts = ", ".join(
        f"{name} {count['documents']} documents ({count['items']} items)" for name, count in rules.items()
    )
    print(f"by ratio: {counts}; {found[OURS][0]['pairs']} pairs tested")
    reasons: Counter[str] = Counter()
    examples: dict[str, str] = {}
    tested = found[PUBLISHED][0]["tested"]
    for i in sorted(set(mine) - set(theirs[0])):
        why = reason([item["item_id"] for item in mine[i]], texts, tested.get(i))
        reasons[why] += 1
        best = max(mine[i], key=lambda item: item["ratio"])
        other = f"; tested {tested[i][0]} {tested[i][1]:.2f}" if i in tested else ""
        examples.setdefault(why, f"{i}: {best['item_id']} {best['ratio']:.2f}{other}")
    for i in sorted(set(theirs[0]) - set(mine)):
        reasons["removed by the published script alone"] += 1
        examples.setdefault("removed by the published script alone", f"{i}: {theirs[0][i]}")
    print(f"\n{'decisions that differ':>21}  reason, and the first (document: item, ratio)")
    for why, count in reasons.most_common():
        print(f"{count:21,}  {why}\n{'':21}  {examples[why]}")


def main(options: argparse.Namespace) -> None:
    """Print what is found, then each side's cost at each number of documents; the last line sums both up."""
    from perf.contamination_forms import report

    summary = report(options.items, options.passages, options.planted, options.clean)
    if not options.documents:
        print(f"\n{summary}")
        return
    print(f"\n{'documents':>9}  {'side':22}  {'CPU s':>7}  {'wall s':>7}  {'GB':>5}  {'documents a CPU s':>17}")
    medians: dict[str, float] = {}
    walls: dict[str, float] = {}
    for count in options.documents:
        found: dict[str, list[dict[str, Any]]] = {side: [] for side in options.sides}
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make(
                folder, *(given(options.completions, options.items, count) if options.completions else invented(count))
            )
            for run in range(options.runs):
                for side in options.sides:
                    found[side].append(measure(side, folder, run))
            for side, runs in found.items():
                medians[side] = statistics.median(run["cpu"] for run in runs)
                wall = statistics.median(run.get("wall", run["cpu"]) for run in runs)
                most, rate = max(run["peak"] for run in runs), f"{count / medians[side]:,.0f}"
                spent = ("–", "–") if side == TWO else (f"{medians[side]:.2f}", rate)  # its workers' are not counted
                print(f"{count:9,}  {side:22}  {spent[0]:>7}  {wall:7.2f}  {most:5.2f}  {spent[1]:>17}", flush=True)
                walls[side] = wall
            if count == options.documents[-1] and len(found) == len(SIDES):
                decisions(folder, found)
    if TWO in walls and OURS in walls:
        print(f"\n{options.documents[-1]:,} documents: 2 workers {walls[OURS] / walls[TWO]:.2f} times as fast as one")
    if len(medians) < len(SIDES):
        print(f"\n{summary}")
        return
    whole, rule = medians[PUBLISHED] / medians[OURS], medians[PUBLISHED_RULE] / medians[OURS_RULE]
    print(
        f"{summary}; {options.documents[-1]:,} documents: {medians[OURS]:.2f} CPU s ({medians[ALL]:.2f} with all"
        f" detectors), published {medians[PUBLISHED]:.2f},"
        f" {whole:.1f} times as much; the rule alone {medians[OURS_RULE]:.2f} and {medians[PUBLISHED_RULE]:.2f},"
        f" {rule:.1f} times"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m perf.decontaminate")
    parser.add_argument("--documents", type=int, nargs="*", default=[1000, 3000, 10_000], help="none: no cost")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--completions", type=Path, help="parquet file with a column text (default: made-up texts)")
    parser.add_argument("--items", type=Path, help="jsonl file of task_name and text (default: the samples)")
    parser.add_argument("--passages", type=Path, help="parquet file of texts without items (default: the samples)")
    parser.add_argument("--planted", type=int, default=1000, help="items to plant in every form")
    parser.add_argument("--clean", type=int, default=10_000, help="passages without items to look for")
    parser.add_argument("--sides", choices=SIDES, nargs="+", default=list(SIDES), help="default: all")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.completions and not chosen.items:
        parser.error("--completions needs --items")
    if chosen.side:
        print(json.dumps(SIDES[chosen.side]()))
    else:
        main(chosen)
