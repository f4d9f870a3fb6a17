"""The labelling prompt (curation/label.txt) and the answer to it."""

import re
from dataclasses import dataclass
from pathlib import Path
from string import Template

from cosmopedia.errors import ConfigError
from cosmopedia.text import read_text, without_controls

TEMPLATE = Path("curation/label.txt")
SLOTS = {"count", "examples"}
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
    """The labelling template, without its leading # lines. `ConfigError` for a missing file or a wrong slot."""
    try:
        lines = read_text(path).splitlines()
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing; restore it with git") from None
    while lines and lines[0].startswith("#"):
        lines.pop(0)
    template = Template("\n".join(lines).strip())
    slots = set(template.get_identifiers()) if template.is_valid() else None
    if slots is None or "examples" not in slots or slots - SLOTS:
        raise ConfigError(
            f"{path}: wanted $examples and, if you like, $count, and no other slot (a dollar sign is written $$);"
            f" found {'a slot that does not parse' if slots is None else sorted(slots)}"
        )
    return template


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
