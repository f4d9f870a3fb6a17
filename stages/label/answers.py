"""The labelling prompt (curation/label.txt) and the answer to it."""

import re
from dataclasses import dataclass
from pathlib import Path
from string import Template

from cosmopedia.generation.template import read_template
from cosmopedia.text import without_controls

TEMPLATE = Path("curation/label.txt")
LONGEST_TOPIC = 80  # characters; the prompt asks for five words

_FORM = re.compile(
    r"\btopics?\b(?:\W*[:=-]|\W+is\b)\W*(?P<topic>\w(?:(?!\btopic\W*:).)*?)"
    r"[\s.,;:|*_()\"'–—-]+(?:the\s+)?education(?:al)?\s+(?:value|score|rating)(?:\s+(?:rating|score))?"
    r"(?:\W*[:=-]|\W+is\b)\W*(?P<score>\d+)(?!\.?\d)(?:\s*(?:/|out\s+of)\s*(?P<scale>\d+))?",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True)
class Answer:
    """A model's answer about a cluster: the topic's name and its educational value, 1-10."""

    topic: str
    score: int


def read_label_template(path: Path = TEMPLATE) -> Template:
    """The labelling template. `ConfigError` for a missing file or a wrong slot."""
    return read_template(path, {"examples"}, frozenset({"count"}))


def labelling_prompt(texts: list[str], template: Template, example_chars: int) -> str:
    """The prompt for one cluster's example texts, before any chat template.

    Each text is on one line, cut to `example_chars` characters at the end of a word.
    """
    numbered = "\n".join(f"{n}. {excerpt(text, example_chars)}" for n, text in enumerate(texts, 1))
    return template.substitute(count=len(texts), examples=numbered)


def excerpt(text: str, chars: int) -> str:
    """The first `chars` characters on one line, cut back to the end of a word; a single longer word is cut inside."""
    line = " ".join(text.split())
    if len(line) <= chars:
        return line
    head, gap, _ = line[: chars + 1].rpartition(" ")
    return head if gap else line[:chars]


def expected_answer(topic: str, score: int) -> str:
    """An answer in the form that the template asks for."""
    return f"Topic: {topic}. Educational value rating: {score}."


def parse_answer(text: str) -> Answer | None:
    """The topic and score in a model's answer, or None.

    Markdown, line breaks, "Educational score: 7/10" and the like are understood. A missing part, a score that is no
    whole number from 1 to 10, a scale other than 10, and an empty or too long topic give None.
    """
    match = _FORM.search(without_controls(text))
    if match is None or (match["scale"] or "10") != "10":
        return None
    score = int(match["score"])
    topic = " ".join(match["topic"].replace("_", " ").split()).strip("*\"'`.,;: ")
    topic += ")" * (topic.count("(") - topic.count(")"))
    if not 1 <= score <= 10 or not 0 < len(topic) <= LONGEST_TOPIC or topic.casefold() in ("the topic", "topic"):
        return None
    return Answer(topic, score) if re.search(r"[^\W\d_]", topic) else None
