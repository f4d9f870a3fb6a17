"""No regular expression of the repository, params included, takes quadratic time on a hostile text."""

import ast
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
import regex

from cosmopedia.core.errors import ConfigError
from cosmopedia.core.params import read_yaml
from cosmopedia.corpus.chat import CLOSING_CHARS, Chat, ChatPatterns
from cosmopedia.corpus.chat import PATTERNS as CHAT_FILE
from cosmopedia.corpus.sentences import to_last_sentence
from cosmopedia.patterns import Pattern, compiled
from stages.clean.language import prose
from stages.label.answers import LONGEST_ANSWER, parse_answer
from tests.support.documents import ROOT

METHODS = {"compile", "search", "match", "fullmatch", "sub", "findall", "finditer", "split"}
UNITS = [
    *(
        "a",
        " ",
        "\n",
        "1",
        "`",
        "$",
        "<a",
        "(",
        "[",
        "*",
        "_",
        "#",
        "|",
        ".",
        "“",
        '"',
        "@",
        "-",
        "\\",
        "\t",
        "=",
        "{",
    ),
    *("a ", "a\n", "a@", "1.", "\\[", "\\(", "$$", "```", "\\begin{a}", "<a ", "- ", "\n\n", "a: ", "a.b", "<|"),
    *("https://", "here is a ", "note: ", "let me know if ", "sorry ", "I can't ", "word count", "<think>", "you "),
]
SIZE = 10_000  # characters; a quadratic pattern takes 0.1 s or more, a linear one a few milliseconds
LIMIT = 0.06  # CPU seconds
EXPECTED = {  # (file, pattern): why it may take more
    ("stages/benchmarks/cloze.py", r"\[.*?\]"): "the public evaluation's own; items are a few hundred characters",
}
BOUNDED = {"stages/label/answers.py"}  # files whose patterns see short texts only, with a test of that below
BEFORE, AFTER = ("", "Sure, here is "), ("\nx", "!")


def _flags(node: ast.Call, position: int) -> int:
    given = node.args[position:] + [word.value for word in node.keywords if word.arg == "flags"]
    code = compile(ast.Expression(given[0]), "flags", "eval") if given else None
    return int(eval(code, {"re": re, "regex": regex})) if code else 0


def _called(node: ast.AST) -> tuple[str, str] | None:
    """("re", "compile") of the call `re.compile(...)`."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
        return node.func.value.id, node.func.attr
    return None


def in_code() -> Iterator[tuple[str, Any]]:
    """(file:line, how it is applied) of every pattern in the code that is a literal."""
    for path in sorted(p for folder in ("cosmopedia", "stages") for p in (ROOT / folder).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        file = path.relative_to(ROOT).as_posix()
        used = {called for called in map(_called, ast.walk(tree)) if called is not None}
        names = {id(node.value): node.targets[0].id for node in ast.walk(tree)
                 if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)}  # fmt: skip
        for node in ast.walk(tree):
            called = _called(node)
            if called is None or called[0] not in ("re", "regex") or called[1] not in METHODS:
                continue
            assert isinstance(node, ast.Call)
            literal = node.args[0]
            if not isinstance(literal, ast.Constant) or (file, literal.value) in EXPECTED or file in BOUNDED:
                continue
            flags = _flags(node, 1) if called[1] == "compile" else 0
            pattern = {"re": re, "regex": regex}[called[0]].compile(literal.value, flags)
            methods = {method for name, method in used if name == names.get(id(node))} or {called[1]}
            at_start = methods <= {"match", "fullmatch"}
            yield f"{file}:{node.lineno}", pattern.match if at_start else pattern.finditer


def in_params(value: Any, key: str, lists: dict[str, list[str]]) -> Iterator[tuple[str, Any]]:
    """Every string of a section that is used as a pattern."""
    if isinstance(value, dict):
        for name, below in value.items():
            yield from in_params(below, f"{key}.{name}", lists)
    elif isinstance(value, list):
        for number, below in enumerate(value):
            yield from in_params(below, f"{key}.{number}", lists)
    elif isinstance(value, str) and ("\\" in value or "(?" in value):
        yield key, compiled(value, lists).match if value.startswith(r"\A") else compiled(value, lists).finditer


PARAMS = read_yaml(ROOT / "params.yaml")
CHAT_PATTERNS = ChatPatterns.read(ROOT)
CHAT = Chat(CHAT_PATTERNS, PARAMS["clean"]["max_refusal_words"])
PATTERNS = {
    **dict(in_code()),
    **dict(in_params(PARAMS, "params", {})),
    **dict(in_params(read_yaml(ROOT / CHAT_FILE), "chat", CHAT_PATTERNS.lists)),
}


def seconds(apply: Any, text: str) -> float:
    start = time.process_time()
    matches = apply(text)
    if isinstance(matches, Iterator):
        for _ in matches:
            pass
    return time.process_time() - start


def test_the_patterns_are_found() -> None:
    assert len(PATTERNS) > 90
    assert {"chat.openings.hello.pattern", "chat.refusals.refusal"} <= PATTERNS.keys()


def test_no_group_of_re_gives_nothing_back() -> None:
    """Python before 3.11.5 matches `(...)*+` and `(?>...)` wrongly (gh-106052), and Debian 12 has 3.11.2."""
    patterns = {place: apply.__self__ for place, apply in PATTERNS.items()}
    theirs = {place: one.pattern for place, one in patterns.items() if isinstance(one, re.Pattern)}
    possessive = re.compile(r"(?<!\\)\)(?:[*+?]|\{[\d,]+\})\+|\(\?>")
    assert len(theirs) > 50
    assert [place for place, pattern in theirs.items() if possessive.search(pattern)] == []


@pytest.mark.slow
@pytest.mark.parametrize("place", PATTERNS)
def test_a_pattern_is_linear(place: str) -> None:
    size = CLOSING_CHARS if place.startswith("chat.closings") else SIZE  # all that a closing is tried on
    for unit in UNITS:
        for before, after in zip(BEFORE, AFTER, strict=True):
            text = before + unit * (size // len(unit)) + after
            # The best of three where the machine was busy.
            assert any(seconds(PATTERNS[place], text) < LIMIT for _ in range(3)), unit


@pytest.mark.slow
def test_a_hostile_label_is_read_in_no_time_or_not_at_all() -> None:
    for unit in UNITS:
        assert seconds(parse_answer, (unit * LONGEST_ANSWER)[:LONGEST_ANSWER]) < 0.5, unit
    assert parse_answer("Topic: Law. Educational value rating: 8." + " " * LONGEST_ANSWER) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("unit", "megabytes"),
    [
        ("a", 10),
        ("<a ", 10),
        ("a. ", 10),
        ("(“", 10),
        ("`", 1),
        ("\\[", 1),
        ("$$x ", 1),
        ("\\begin{a}", 1),
        ("a\n\n", 1),
    ],
)
def test_a_large_hostile_document_is_cleaned(unit: str, megabytes: int) -> None:
    text = unit * (megabytes * 1_000_000 // len(unit))
    start = time.process_time()
    prose(text)
    to_last_sentence(text)
    assert CHAT.strip_openings(text).cut == CHAT.strip_closings(text).cut == []
    assert CHAT.refusal(text) is None
    assert time.process_time() - start < 12


def test_a_pattern_of_a_user_that_never_ends_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cosmopedia.patterns.SECONDS", 0.1)
    with pytest.raises(ConfigError, match=r"openings\.mine: .* takes more than 0\.1 s on a text of 61 char"):
        Pattern("curation/chat.yaml: openings.mine", r"\A(?:a|aa)+c").match("a" * 60 + "b")
