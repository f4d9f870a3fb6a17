"""The labelling prompt (curation/label.txt), the grammar of its answer, and what an answer says.

With a grammar a server can write nothing but the form that the template asks for. Others write JSON, tables, Markdown
or sentences: those are first brought into lines of `name: value`, and then read by the names. What could mean two
things, such as "7-8" or two topics, is no answer: a cluster gets another try, and a wrong name would stay.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from string import Template
from typing import Any

from cosmopedia.core.text import without_controls
from cosmopedia.generation.template import read_template

TEMPLATE = Path("curation/label.txt")
LONGEST_ANSWER = 1000  # characters; a longer text is no answer, and the patterns below may take quadratic time
LONGEST_TOPIC, MOST_WORDS = 80, 8  # characters, words; the prompt asks for five words

FORM = "Answer with one line in this form, and nothing else:\nTopic: the_topic. Educational value rating: score."

# A topic of one to three words in title case, as subjects are written. It does not begin with "The", "How" or "What",
# and has no capitals or marks inside: small models begin so, and then find no subject. Servers know different dialects
# of regular expressions: no look-ahead, no \b.
_WORD = "[A-Z][a-z]{2,13}"
_FIRST = (
    "([A-GI-SUVX-Z][a-z]{2,13}|H[aeiuy][a-z]{1,12}|Ho[a-vx-z][a-z]{0,11}|T[a-gi-z][a-z]{1,12}|Th[a-df-z][a-z]{0,11}"
    "|W[a-gi-z][a-z]{1,12})"
)
GRAMMAR = rf"Topic: {_FIRST}( (and |of |in )?{_WORD}){{0,2}}\. Educational value rating: (10|[1-9])\."

_THOUGHT = re.compile(r"<(think(?:ing)?|reasoning)>.*?</\1>", re.IGNORECASE | re.DOTALL)
_THOUGHT_TAG = re.compile(r"<(/?)(?:think(?:ing)?|reasoning)>", re.IGNORECASE)
_TAG = re.compile(r"<(/?)([a-z_ ]{1,40})>", re.IGNORECASE)
_MARKS = str.maketrans("：＝，；（）．／｜【】", ":=,;()./|[]")
_RANGE_OF_SCORES = re.compile(
    r"[(\[]?\s*(?:(?:on|using)\s+an?\s+)?(?:scale\s+)?(?:(?:from|of)\s+)?\b(?:0|1|one)\s*(?:-|–|—|to|/)\s*(?:10|ten)\b\s*[)\]]?"
    r"(?!\s*(?:/|out\s+of))",
    re.IGNORECASE,
)

_WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: number for number, word in enumerate(_WORDS, 1)}
_NUMBERS |= {w: n for n, w in enumerate("一二三四五六七八九十", 1)}
_NUMBER = r"(?:\d++|" + "|".join(_NUMBERS) + r")(?![^\W\d_])"
_CHINESE = r"主题|主題|话题|話題"
_TOPIC = re.compile(
    rf"(?:\b(?:topics?|topic[ _]name)\b|(?:^|\n)\W*(?:subject|theme|title|label|name|category)\b|{_CHINESE})"
    r"(?P<number>\s*#?\d+)?['\"”*_\s]*(?:[:=]|\s[-–—]\s|\bis\b:?)",
    re.IGNORECASE,
)
_SCORE = re.compile(
    r"(?:\b(?:(?:the|an?|its?|overall|with)\s+)*(?:education(?:al)?[ _-]+(?:value|level|quality|rating|score)"
    r"(?:[ _-]+(?:rating|score))?|(?:value[ _-]+)?(?:rating|score))\b"
    r"|教育(?:价值|價值)?(?:评分|評分|评级|分数)?|评分|評分|分数|得分)"
    r"['\"”*_\s]*(?:[:=]|\s[-–—]\s|\b(?:is|of)\b:?)",
    re.IGNORECASE,
)
_VALUE = re.compile(
    rf"[\s*_'\"“”`\[(]*(?:(?:about|around|approximately|roughly|an?)\s+|[~≈]\s*)?(?P<score>{_NUMBER})"
    rf"(?!\.\d|,\d|\s*[%+°]|\s*(?:-|–|—|to|or|and|bis|~|,)\s*{_NUMBER})"
    r"(?:[*_'\"”`\])]*\s*(?:/|out\s+of\b|of\b)\s*(?P<scale>\d+(?:\.\d+)?|[a-z]+))?",
    re.IGNORECASE,
)
_OF_TEN = re.compile(rf"(?<![\w./–—-])(?P<score>{_NUMBER})\s*(?:/|out\s+of)\s*(?:10|ten)\b(?!\.\d)", re.IGNORECASE)
_SHORT = re.compile(rf"(?P<topic>[^\n:|]+?)\s*[:|,(–—-]+\s*{_OF_TEN.pattern}\)?\.?", re.IGNORECASE)
_SENTENCE = re.compile(r"(?<=\w{3})[.!?]\s+(?=[A-Z]\w*\s+[a-z]+\s+\S+\s+\S)")  # where an explanation follows the topic
_INITIALS = re.compile(r"(?:\b[A-Za-z]\.){2,}$")
_AROUND = " *\"'“”‘’«»`,;:[]<>{}|–—-。"
_NO_TOPIC = re.compile(
    r"(?:the |a |your )*(?:topics?|title|name|score|none|n/?a|unknown|unclear|various(?: topics?)?|mixed|miscellaneous"
    r"|general|other|not applicable|no (?:common |clear |shared |single )*topic)"
    r"|(?:the|these|all) (?:texts?|extracts?|pages?)\b.*",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Answer:
    """A model's answer about a cluster: the topic's name and its educational value, 1-10."""

    topic: str
    score: int


def read_label_template(path: Path = TEMPLATE) -> Template:
    """The labelling template. `ConfigError` for a missing file or a wrong slot."""
    return read_template(path, {"examples"}, frozenset({"count", "keywords"}))


def labelling_prompt(
    texts: list[str], keywords: list[str], template: Template, example_chars: int, grammar: bool
) -> str:
    """The prompt for one cluster's example texts and its best keywords, before any chat template.

    Each text is on one line, cut to `example_chars` characters at the end of a word. Without a grammar the form of the
    answer is asked for; with one it need not be, and a small model answers with the form's own words.
    """
    numbered = "\n".join(f"{n}. {excerpt(text, example_chars)}" for n, text in enumerate(texts, 1))
    prompt = template.substitute(count=len(texts), examples=numbered, keywords=", ".join(keywords))
    return prompt if grammar else f"{prompt}\n{FORM}"


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
    """The topic and score in a model's answer, or None where one of them is missing or could be another.

    A score is a whole number from 1 to 10, in digits or as a word, alone or out of 10.
    """
    lines = _as_lines(without_controls(text)) if len(text) <= LONGEST_ANSWER else None
    if lines is None:
        return None
    scored, named = list(_SCORE.finditer(lines)), list(_TOPIC.finditer(lines))
    if not named and not scored and (short := _SHORT.fullmatch(lines.strip(" \n*_`"))):
        topics, scores = {_topic(short["topic"])}, {_number(short["score"])}
    elif any(match["number"] for match in named):
        return None
    else:
        of_ten = [] if scored else list(_OF_TEN.finditer(lines))
        scores = {_score(lines, match.end()) for match in scored} | {_number(match["score"]) for match in of_ten}
        ends = sorted(match.start() for match in (*scored, *named, *of_ten))
        topics = {_topic(_value(lines, match, ends)) for match in named}
    if len({topic and topic.casefold() for topic in topics}) != 1 or len(scores) != 1:
        return None
    topic, score = next(iter(topics)), next(iter(scores))
    return Answer(topic, score) if topic and score and 1 <= score <= 10 else None


def _as_lines(text: str) -> str | None:
    """The answer as lines of `name: value`, without thoughts; None when it ends in a thought or gives two objects."""
    text = _THOUGHT.sub("", text)
    tags = list(_THOUGHT_TAG.finditer(text))
    if tags and not tags[-1][1]:
        return None
    text = (text[tags[-1].end() :] if tags else text).translate(_MARKS)
    objects = _json_objects(text)
    if len(objects) > 1:
        return None
    if objects:
        names = {
            re.sub(r"(?<=[a-z])(?=[A-Z])", " ", key).replace("_", " "): value for key, value in objects[0].items()
        }
        return "\n".join(f"{name}: {value}" for name, value in names.items() if isinstance(value, str | int | float))
    text = _TAG.sub(
        lambda tag: "\n" if tag[1] else f"\n{tag[2].replace('_', ' ')}: ", re.sub(r"</?[bi]>|</?strong>", "", text)
    )
    return _RANGE_OF_SCORES.sub(" ", _table_as_lines(text).replace("**", "").replace("`", ""))


def _json_objects(text: str) -> list[dict[str, Any]]:
    """The JSON objects in a text, from left to right."""
    objects, start = [], text.find("{")
    while start >= 0:
        try:
            value, end = json.JSONDecoder().raw_decode(text, start)
            objects.append(value)
        except ValueError:
            end = start + 1
        start = text.find("{", end)
    return objects


def _table_as_lines(text: str) -> str:
    """A text whose table, if it has one, is lines: `name: value` from two columns, or from a head and one row."""
    lines = text.splitlines()
    rows = [[cell.strip(" *_`") for cell in line.strip().strip("|").split("|")] for line in lines if "|" in line]
    rows = [row for row in rows if not all(set(cell) <= set("-: ") for cell in row)]
    if len(rows) < 2 or len({len(row) for row in rows}) != 1:
        return text
    rest = [line for line in lines if "|" not in line]
    head, *body = rows
    if all(_is_name(name) for name in head):
        rows = [[name, value] for row in body for name, value in zip(head, row, strict=True)]
    return "\n".join([*rest, *(": ".join(row) for row in rows)])


def _is_name(cell: str) -> bool:
    return bool(_TOPIC.fullmatch(f"{cell}:") or _SCORE.fullmatch(f"{cell}:"))


def _value(lines: str, match: re.Match[str], ends: list[int]) -> str:
    """What follows a name: the rest of its line, or the next one, up to the next name."""
    end = next((end for end in ends if end > match.start()), len(lines))
    return lines[match.end() : max(end, match.end())].lstrip().partition("\n")[0]


def _topic(value: str) -> str | None:
    """A topic's name without the marks around it; None for what is none."""
    value = " ".join(_SENTENCE.split(value)[0].replace("_", " ").split())
    topic = value.lstrip(_AROUND + "#").rstrip(_AROUND)
    if not _INITIALS.search(topic):
        topic = topic.rstrip(_AROUND + ".")
    topic = topic.removesuffix("(").rstrip()
    topic += ")" * (topic.count("(") - topic.count(")"))
    words = topic.casefold().split()
    if len(topic) > LONGEST_TOPIC or len(words) > MOST_WORDS or _NO_TOPIC.fullmatch(topic):
        return None
    return topic if re.search(r"[^\W\d_]", topic) and not _loops(words) else None


def _loops(words: list[str]) -> bool:
    """Whether a name goes round in circles: "Anecdotes of Anecdotes", "Music Music Theory"."""
    long = Counter(word for word in words if len(word) > 3)
    same = long.total() > 1 and len(long) == 1
    return same or max(long.values(), default=0) > 2 or any(one == other for one, other in pairwise(words))


def _score(lines: str, start: int) -> int | None:
    """The number after the name of a score; None for a range, a fraction, another scale or no number."""
    match = _VALUE.match(lines, start)
    if match is None or (match["scale"] or "10").casefold() not in ("10", "ten"):
        return None
    return _number(match["score"])


def _number(text: str) -> int | None:
    return _NUMBERS.get(text.casefold()) or (int(text) if text.isdecimal() else None)
