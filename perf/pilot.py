"""How often the pilot's gate names healthy cells, and how often cells with planted faults.

    python -m perf.pilot                                # texts from data/samples
    python -m perf.pilot --texts FILE.parquet ...       # real ones (column `text`)
    python -m perf.pilot --per-cell 8 --share 0.25      # smaller cells, plants in a quarter of them

A cell is a draw of texts; a plant puts one fault into some of them. Printed are the share of healthy cells that is
named, by measure; and for each plant how many cells are named, how many by the measure that is meant for it, and how
many by what the pilot measured before it looked at single texts (the most common opening, averages).
"""

import argparse
import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from cosmopedia.core.params import check, read_yaml
from cosmopedia.corpus.chat import Chat, ChatPatterns
from cosmopedia.generation.requests import Completion
from stages.pilot.gate import Thresholds, violations
from stages.pilot.measures import measure
from stages.pilot.shares import Refusals, TextRules

SAMPLES = Path("data/samples")
BEFORE = {"opening_share", "truncated_share", "distinct_2", "compression_ratio"}
WORDINGS = {
    "refusals": [
        "I'm sorry, but I can't write this textbook unit as the extract promotes a product.",
        "Unfortunately, I am unable to create content from this web page. It has too little to go on.",
        "As an AI language model, I don't have opinions, so a personal anecdote is beyond me.",
        "I apologize for the inconvenience, but this request goes against my guidelines.",
        "I must respectfully decline to generate this story. Please try another topic.",
        "It would not be appropriate for me to continue with this text.",
        "Thank you for the prompt. Regrettably, producing such an article is something I have to refuse.",
        "This is outside of what I can do. Could you please provide a longer extract?",
    ],
    "later refusals": [  # unknown to the forms in params.yaml
        "I'm unable to complete this; the page is only a list of advertisements.",
        "Sadly, a chapter cannot be written on the basis of so little.",
        "This prompt asks for something that I'm not permitted to produce.",
        "I prefer not to turn this extract into a lesson.",
        "My apologies, no article can be made of what you sent.",
        "Writing such a story would be against my principles.",
        "We don't support requests of this kind.",
        "There is nothing in your message that a textbook could be built upon.",
    ],
    "openings": [
        "Have you ever wondered why it matters? ",
        "In today's fast-paced world, we seldom stop to look. ",
        "Once upon a time, in a small town, somebody asked a question. ",
        "Imagine that you are standing in a room. ",
    ],
    "closings": [
        "\n\nIn conclusion, it is worth the effort to learn more about it.",
        "\n\nRemember, every expert was once a beginner.",
        "\n\nSo the next time you see it, stop and think.",
        "\n\nAnd they all lived happily ever after.",
    ],
    "people": [
        "It was {} who first noticed this.",
        "For {}, the question had never been an idle one.",
        "{} looked at the result twice before writing it down.",
        "A neighbour once asked {} about it over lunch.",
        "That evening {} told the others what had happened.",
        "Years later {} would still remember the day.",
    ],
    "doctors": [
        "Dr. Elara Chen was the first to notice this.",
        "Dr. Elara Chen had seen it before.",
        "One day a letter from Dr. Elara Chen arrived.",
    ],
}
NAMES = ["Elara", "Sarah", "Timmy", "Lily", "Marcus", "Amara", "Zoë", "Grace"]
Plant = Callable[[list[str], random.Random, float], list[str]]


def insert(text: str, sentence: str, rng: random.Random) -> str:
    """`text` with a sentence behind one of its sentences."""
    at = rng.choice([match.end() for match in re.finditer(r"\.(?= )", text)] or [len(text)])
    return f"{text[:at]} {sentence}{text[at:]}"


def some(texts: list[str], share: float, change: Callable[[int, str], str]) -> list[str]:
    """`texts` with the first ones changed."""
    count = round(share * len(texts))
    return [change(number, text) for number, text in enumerate(texts[:count])] + texts[count:]


def half(text: str) -> str:
    return text[: len(text) // 2]


def looped(text: str) -> str:
    """The first third, and then one sentence of it again and again."""
    start = text[: len(text) // 3]
    sentence = f" {' '.join(start.split()[-12:])}."
    return start + sentence * (2 * len(start) // len(sentence) + 1)


def edited(text: str, rng: random.Random) -> str:
    """A near copy: every tenth word is another."""
    words = text.split(" ")
    return " ".join(rng.choice(words) if rng.random() < 0.1 else word for word in words)


def named(texts: list[str], rng: random.Random, share: float) -> list[str]:
    name = rng.choice(NAMES)
    return some(texts, share, lambda n, text: insert(text, rng.choice(WORDINGS["people"]).format(name), rng))


def wordings(kind: str, join: Callable[[str, str], str]) -> Plant:
    """Each of the wordings in as many texts."""
    return lambda texts, rng, share: some(
        texts, share, lambda n, text: join(WORDINGS[kind][n % len(WORDINGS[kind])], text)
    )


PLANTS: dict[str, tuple[float, str, Plant]] = {  # share of the texts, measure that sees it, what is done
    "refusals in eight wordings": (0.4, "refused", wordings("refusals", lambda refusal, text: refusal)),
    "refusals before a text": (0.4, "refused", wordings("refusals", lambda refusal, text: f"{refusal}\n\n{text}")),
    "later refusals": (0.4, "refused", wordings("later refusals", lambda refusal, text: refusal)),
    "later, before a text": (0.4, "refused", wordings("later refusals", lambda refusal, text: f"{refusal}\n\n{text}")),
    "looped bodies": (0.4, "repeated", lambda texts, rng, share: some(texts, share, lambda n, text: looped(text))),
    "copies of one text": (0.25, "copied", lambda texts, rng, share: some(texts, share, lambda n, text: texts[0])),
    "near copies of one": (
        0.25, "copied", lambda texts, rng, share: some(texts, share, lambda n, text: edited(texts[0], rng)),
    ),
    "one body, its own start": (
        0.5, "copied",
        lambda texts, rng, share: some(texts, share, lambda n, text: f"{text[:200]}\n\n{texts[0][200:]}"),
    ),
    "one closing": (
        1.0, "closings", lambda texts, rng, share: some(texts, share, lambda n, text: text + WORDINGS["closings"][0]),
    ),
    "four closings": (0.8, "closings", wordings("closings", lambda closing, text: text + closing)),
    "four openings": (0.8, "openings", wordings("openings", lambda opening, text: opening + text)),
    "four openings, a title": (0.8, "openings", wordings("openings", lambda o, text: f"# {text[:30]}\n\n{o}{text}")),
    "cut mid-sentence": (
        1.0, "unfinished", lambda texts, rng, share: some(texts, share, lambda n, text: half(text).rstrip(".!? \n")),
    ),
    "one name for every person": (1.0, "name", named),
    "one doctor": (1.0, "name", lambda texts, rng, share: some(
        texts, share, lambda n, text: insert(text, rng.choice(WORDINGS["doctors"]), rng))),
    "one number": (
        0.5, "number",
        lambda texts, rng, share: some(texts, share, lambda n, text: insert(text, "There were 42 of them.", rng)),
    ),
}  # fmt: skip


class Gate:
    """The repository's rules and limits."""

    def __init__(self) -> None:
        values = read_yaml(Path("params.yaml"))
        self.rules = check(values["pilot"]["rules"], TextRules, "pilot.rules")
        self.limits = check(values["pilot"]["thresholds"], Thresholds, "pilot.thresholds")
        chat = Chat(ChatPatterns.read(), values["clean"]["max_refusal_words"])
        self.refusals = Refusals(self.rules.refusal, chat)

    def figures(self, texts: list[str]) -> dict[str, Any]:
        """What the pilot measures of a cell of these texts."""
        tried = [("", Completion("", text, "eos_token", 1, 1, "")) for text in texts]
        return measure(tried, self.rules, self.refusals)

    def named(self, texts: list[str]) -> set[str]:
        """The measures by which a cell of these texts is named."""
        return {violation.measure for violation in violations("cell", self.figures(texts), self.limits)}


def read_texts(paths: list[Path]) -> list[str]:
    """The column `text` of parquet files, or the finished texts of data/samples."""
    if paths:
        return [text for path in paths for text in pl.read_parquet(path, columns=["text"])["text"].to_list() if text]
    planted = json.loads((SAMPLES / "web_planted.json").read_text(encoding="utf-8"))
    out = {row["id"] for rows in planted.values() for row in rows if isinstance(row, dict)}
    files = [SAMPLES / "web/pages.jsonl", SAMPLES / "generator/pieces.jsonl"]
    rows = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return [row["text"] for row in rows if row["text"].strip() and row.get("id") not in out]


def healthy(gate: Gate, texts: list[str], per_cell: int, cells: int, rng: random.Random) -> float:
    """The share of cells without a plant that is named; prints by which measures."""
    start = time.process_time()
    alarms = [gate.named(rng.sample(texts, per_cell)) for _ in range(cells)]
    seconds = (time.process_time() - start) / cells
    share = sum(map(bool, alarms)) / cells
    print(f"{len(texts)} texts; {cells} healthy cells of {per_cell} texts, {1000 * seconds:.0f} CPU ms each")
    print(f"named: {share:.2%} {dict(Counter(name for names in alarms for name in names))}\n")
    return share


def planted(gate: Gate, texts: list[str], per_cell: int, cells: int, share: float | None, rng: random.Random) -> int:
    """Prints which plants are named, and returns the least number of cells of one."""
    least = cells
    print(f"{f'of {cells} cells':28}share  named  by its measure     before")
    for plant, (own_share, expected, change) in PLANTS.items():
        drawn = (rng.sample(texts, per_cell) for _ in range(cells))
        found = [gate.named(change(cell, rng, share or own_share)) for cell in drawn]
        seen, own = sum(map(bool, found)), sum(f"{expected}_share" in names for names in found)
        before = sum(not BEFORE.isdisjoint(names) for names in found)
        print(f"{plant:28}{share or own_share:5.0%}  {seen:5}  {own:5} {expected:12}{before:5}")
        least = min(least, seen)
    return least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, nargs="*", default=[])
    parser.add_argument("--per-cell", type=int, default=20)
    parser.add_argument("--cells", type=int, default=50, help="per plant")
    parser.add_argument("--healthy", type=int, default=400, help="cells without a plant")
    parser.add_argument("--share", type=float, help="of a cell's texts that get a plant; else each plant's own")
    options = parser.parse_args()
    texts, rng, gate = read_texts(options.texts), random.Random(1), Gate()
    wrong = healthy(gate, texts, options.per_cell, options.healthy, rng)
    least = planted(gate, texts, options.per_cell, options.cells, options.share, rng)
    print(f"\n{wrong:.2%} of healthy cells named; every plant in {least} of {options.cells} cells or more")


if __name__ == "__main__":
    main()
