"""What decontamination finds: items planted in passages in the forms in which they leak, edited, and hidden by marks.

Called by `python -m perf.decontaminate`; `published` is the published rule with its normalisation, `new` what
params.yaml has. Passages and items are the repository's samples, or real ones by option.
"""

import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from cosmopedia.contamination.forms import forms_of
from cosmopedia.contamination.index import DecontaminateParams, Index
from cosmopedia.corpus.words import words
from cosmopedia.records.reading import read_records
from stages.benchmarks.cloze import FORMS, Fields
from stages.decontaminate.pipeline import BATCH

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "data/samples"
LENGTHS = ((1, 4), (5, 6), (7, 9), (10, 14), (15, 29), (30, 10_000))  # words of what is planted, without labels
EDITED = (25, 7)  # words, at least, of items that are edited or hidden
DETECTORS = ("published", "forms", "tolerant")
HEAD = "".join(f"{name:>11}" for name in (*DETECTORS, "any"))
SECTION = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["decontaminate"]

Row = dict[str, Any]


def sample_items() -> Iterator[Row]:
    """BENCHMARK rows of the repository's own evaluation sets."""
    for task, form in FORMS.items():
        records, _ = read_records(str(SAMPLES / f"benchmarks/{task}.jsonl"), None, None, None)
        for number, record in enumerate(records):
            cloze = form(Fields(record.values, record.place))
            others = [{"form": name, "text": text} for name, text in cloze.other_forms.items()]
            yield {**vars(cloze), "item_id": f"{task}/{number:06d}", "task": task, "other_forms": others}


def given_items(path: Path) -> Iterator[Row]:
    """BENCHMARK rows of lines of `task_name` and `text`: the question; choices or the answer on lines below."""
    dice = random.Random(3)
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        item = json.loads(line)
        task = item["task_name"]
        question, *below = [one.strip() for one in item["text"].split("\n") if one.strip()]
        row: Row = {"item_id": f"{task}/{number:06d}", "task": task, "choices": [], "gold": 0, "other_forms": []}
        if task.startswith("gsm8k"):
            row |= {"answer": below[-1].removeprefix("#### ")}
            row["other_forms"] = [{"form": "worked_answer", "text": " ".join(below[:-1])}]
        elif task.startswith("bbh"):
            question, row["answer"] = " ".join([question, *below[:-1]]), below[-1]
        elif task.startswith("boolq"):
            row |= {"choices": ["no", "yes"], "gold": int(below[0] == "true")}
        else:
            row |= {"choices": below, "gold": dice.randrange(len(below))}
        if task.startswith("winogrande"):
            before, _, after = question.partition("_")
            row["other_forms"] = [{"form": "sentence", "text": question}]
            question, row["choices"] = before.strip(), [f"{choice} {after.strip()}" for choice in below]
        if row["choices"]:
            row["answer"] = row["choices"][row["gold"]]
        yield row | {"question": question}


def passages(path: Path | None) -> list[str]:
    """A parquet file's column `text`, or the sample pages that have no benchmark item."""
    if path:
        import pyarrow.parquet as pq

        return pq.read_table(path, columns=["text"])["text"].to_pylist()
    planted_items = json.loads((SAMPLES / "web_planted.json").read_text(encoding="utf-8"))["overlaps"]
    left_out = {row["id"] for row in planted_items}
    texts: dict[str, None] = {}
    for line in (SAMPLES / "web/pages.jsonl").read_text(encoding="utf-8").splitlines():
        page = json.loads(line)
        if page["id"] not in left_out:
            texts[page["text"]] = None
    return [*texts]


def listed(row: Row) -> str:
    letters = [f"{letter}) {choice.strip()}" for letter, choice in zip("ABCDEFGHIJ", row["choices"], strict=False)]
    return "\n".join([row["question"], *letters, f"Answer: {'ABCDEFGHIJ'[row['gold']]}"])


Planted = tuple[str, str]  # what is planted, and the words of the item in it
PLANTS: dict[str, Callable[[Row], Planted | None]] = {
    "glued": lambda row: (f"{row['question']} {row['answer']}", f"{row['question']} {row['answer']}"),
    "cloze": lambda row: (
        f"Question: {row['question']}\nAnswer: {row['answer']}",
        f"{row['question']} {row['answer']}",
    ),
    "chat": lambda row: (
        f"**User:** {row['question']}\n\n**Assistant:** The right answer is: {row['answer']}",
        f"{row['question']} {row['answer']}",
    ),
    "choices": lambda row: (
        (listed(row), " ".join([row["question"], *row["choices"]])) if len(row["choices"]) > 1 else None
    ),
    "question": lambda row: (row["question"], row["question"]),
    "other": lambda row: (row["other_forms"][0]["text"],) * 2 if row["other_forms"] else None,
}


def every(step: int) -> Callable[[str, random.Random], str]:
    """Every `step`-th word replaced."""

    def edited(text: str, dice: random.Random) -> str:
        several = text.split()
        for place in range(dice.randrange(step), len(several), step):
            several[place] = dice.choice(("another", "certain", "various", "usual", "former"))
        return " ".join(several)

    return edited


def by_chance(step: int) -> Callable[[str, random.Random], str]:
    """Each word replaced with probability 1 / `step`."""
    return lambda text, dice: " ".join(
        dice.choice(("another", "certain", "various")) if dice.random() < 1 / step else word for word in text.split()
    )


def inside(mark: str) -> Callable[[str, random.Random], str]:
    """A character inside every word of four letters or more."""
    return lambda text, _: re.sub(r"(?<=\w\w)(?=\w\w)", mark, text, count=0)


EDITS: dict[str, Callable[[str, random.Random], str]] = {
    "1 word in 13": every(13),
    "1 word in 8": every(8),
    "1 in 8, by chance": by_chance(8),
    "1 word in 5": every(5),
    "markdown emphasis": lambda text, _: " ".join(f"_{w}_" if n % 5 == 2 else w for n, w in enumerate(text.split())),
    "zero-width spaces": inside("\u200b"),
    "soft hyphens": inside("\u00ad"),
    "full-width letters": lambda text, _: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text),
}


def planted(passage: str, text: str, dice: random.Random) -> str:
    """A passage with a text after one of its sentences."""
    ends = [match.end() for match in re.finditer(r"\. ", passage)] or [0]
    at = dice.choice(ends)
    return f"{passage[:at]}\n\n{text}\n\n{passage[at:]}"


def flagged(index: Index, texts: list[str]) -> dict[str, set[int]]:
    """The numbers of the texts that each detector calls contaminated."""
    found: dict[str, set[int]] = {name: set() for name in DETECTORS}
    for first in range(0, len(texts), BATCH):
        for number, what in index.findings(texts[first : first + BATCH]):
            for match in what.matches:
                for detector in match.detectors(index.rule):
                    found[detector].add(first + number)
    return found


class Indexes:
    """The published rule's index and the new one, of the same items."""

    def __init__(self, items: list[Row]):
        old = SECTION | {"normalisation": "published", "forms": None, "tolerant": None, "ratio": "plain"}
        forms = [form for row in items for form in forms_of(row)]
        self.old = Index(forms, DecontaminateParams.model_validate(old))
        self.new = Index(forms, DecontaminateParams.model_validate(SECTION))

    def counts(self, texts: list[str]) -> list[int]:
        """Texts found by the published rule, by all forms, by the tolerant detector, and by any."""
        new = flagged(self.new, texts)
        old = flagged(self.old, texts)["published"]
        return [len(old), len(new["forms"]), len(new["tolerant"]), len(new["forms"] | new["tolerant"])]


def length_class(text: str) -> tuple[int, int]:
    size = len(words(text))
    return next((bounds for bounds in LENGTHS if bounds[0] <= size <= bounds[1]), LENGTHS[0])


def report(items_file: Path | None, passages_file: Path | None, limit: int, clean: int) -> str:
    """Print the tables; returns a summary."""
    dice = random.Random(7)
    items = [*(given_items(items_file) if items_file else sample_items())]
    texts = passages(passages_file)
    indexes = Indexes(items)
    chosen = dice.sample(items, min(limit, len(items)))
    print(f"{len(items):,} items, {len(texts):,} passages; forms looked for: {indexes.new.by_form}")
    print(f"\n{'form':20} {'words':>8} {'planted':>8}{HEAD}")
    worst, total = 1.0, [0] * 5
    for name, plant in PLANTS.items():
        by_length: dict[tuple[int, int], list[str]] = {bounds: [] for bounds in LENGTHS}
        for row in chosen:
            if what := plant(row):
                by_length[length_class(what[1])].append(planted(dice.choice(texts), what[0], dice))
        for (low, high), several in by_length.items():
            if several:
                counts = indexes.counts(several)
                shares = [count / len(several) for count in counts]
                length = f"{low}-{high}" if high < 1000 else f"{low}+"
                print(
                    f"{name:20} {length:>8} {len(several):8,}{''.join(f'{share:11.3f}' for share in shares)}",
                    flush=True,
                )
                if low >= 7:
                    worst = min(worst, shares[1])
                    total = [a + b for a, b in zip(total, [*counts, len(several)], strict=True)]
    for least in EDITED:
        enough = [row for row in items if least <= len(words(f"{row['question']} {row['answer']}"))]
        edited = dice.sample(enough, min(60, len(enough)))
        print(f"\n{f'found of {len(edited)} items of {least} words or more':38}{HEAD}")
        for name, change in EDITS.items():
            changed = [change(f"{row['question']} {row['answer']}", dice) for row in edited]
            several = [planted(dice.choice(texts), text, dice) for text in changed]
            print(f"{name:38}{''.join(f'{count:11}' for count in indexes.counts(several))}", flush=True)
    untouched = texts[:clean]
    counts = indexes.counts(untouched)
    print(
        f"\n{f'flagged of {len(untouched):,} passages without items':38}{''.join(f'{count:11}' for count in counts)}"
    )
    return (
        f"7 words or more: published {total[0] / total[4]:.3f}, forms {total[1] / total[4]:.3f} (worst {worst:.3f});"
        f" flagged of {len(untouched):,} clean: {counts[0]}, {counts[1]}, tolerant {counts[2]}"
    )
