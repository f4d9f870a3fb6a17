"""Where a text that was cut at max_new_tokens can end: after its last full sentence, list item, verse, or block.
And whether a text ends in such an end.

Sentences are spaCy's (rules, no model). Code, formulae and tables are blocks that stay whole or go whole.
"""

import re
from collections import deque
from functools import cache
from itertools import takewhile
from typing import TYPE_CHECKING, Literal, NamedTuple

import regex

from cosmopedia.lean_imports import hidden

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Token

PIECE = 20_000  # characters of a paragraph's end in which its last sentence is looked for
SHORT_LINE = 80  # characters: paragraphs of such lines without full stops are verse or lists
FENCE = re.compile(r"[ \t]*(```|~~~)")
FORMULA = {"$$": "$$", r"\[": r"\]"}
ENVIRONMENT = re.compile(r"[ \t]*\\begin\{(\w{1,40}\*?)\}")
ITEM = re.compile(r"[ \t]*(?:[-*+•] |(?:\d{1,3}|[a-zA-Z])[.)] |\(\w{1,3}\) )")
HEADING = re.compile(r"[ \t]*(?:#{1,6} |\*\*[^*\n]*\*\*:?[ \t]*\Z)")
# No sentence ends in code, formulae, addresses and runs of marks.
MASKED = re.compile(r"`[^`\n]+`|\$[^$\n]{1,300}\$|\\\(.{1,300}?\\\)|https?://[^\s)]+|[^\w\s]{50,}")
DELIMITER = re.compile(r"\*\*|(?<!\w)\*(?=\w)|(?<=\S)\*(?!\w)|[“”()`]|(?<!\d)\"|\$\$?(?!\d)|\\[()]")
PAIRS = {"”": "“", ")": "(", r"\)": r"\("}
LONGEST_ASIDE = 300  # characters of a quotation, an emphasis or the like that a sentence stands in
MARKS = frozenset(".!?…。！？؟।")
CLOSERS = frozenset("\"'”’»)]*_」』")
GOES_ON = regex.compile(r"\S|\s+[\p{Ll}\d]")  # what follows no end: "Is it far?" he; No. 5
# What the text's very last full stop may not end: "$3." of $3.50, and words without vowels ("sq.", "Hr."; not "TV.")
UNSURE_END = re.compile(r"(?:\d\.|(?<![^\W\d_])[b-df-hj-np-tv-xzB-DF-HJ-NP-TV-XZ][b-df-hj-np-tv-xz]{1,3}\.\s*)\Z")
NUMBER_ALONE = re.compile(r"(?:\A|\n)[ \t]{0,20}\(?(?:\d{1,3}|[a-zA-Z])[.)]\Z")
# What spaCy's English has no exception for; a full stop behind these ends no sentence.
ABBREVIATIONS = """\
Fig. Figs. fig. figs. Eq. Eqs. eq. eqs. Ref. Refs. Sec. sec. Ch. ch. Chap. chap. Vol. vol. Vols. Nos.
nos. pp. p. ed. eds. Ed. Eds. trans. incl. approx. ca. c. cf. Cf. al. etc. resp. est. Dept. dept.
Univ. Assoc. Prop. Thm. Lem. Def. avg. Capt. Lt. Cmdr. Sgt. Maj. Hon. Pres. Sra.
Mme. Mlle. Fr. Sr. Mt. Ft. Ave. Blvd. Rd. viz. vs. Op. op. Nr. Jan. Feb. Apr. Jun.
Jul. Aug. Sep. Sept. Oct. Nov. Dec.
""".split()  # noqa: SIM905


class Block(NamedTuple):
    """A paragraph, or a fence, formula or table with all its lines; `whole`: it was closed."""

    kind: Literal["prose", "fence", "formula", "table"]
    start: int
    end: int
    whole: bool


def to_last_sentence(text: str, language: str = "en") -> str:
    """`text` up to its last full sentence, list item, verse or closed block; "" when it has none."""
    found = blocks(text)
    for block in reversed(found):
        last = block is found[-1]
        if block.kind != "prose":
            if block.whole:
                return text[: block.end]
            continue
        unsure = last and UNSURE_END.search(text, max(block.start, len(text) - SHORT_LINE)) is not None
        end = prose_end(text[block.start : block.end - unsure], language, last)
        if end:
            return text[: block.start + end]
    return ""


def is_finished(text: str) -> bool:
    """Does a text end in an end? By its last marks alone: "Dr." passes for one, and spaCy is not needed.

    A last list item or verse may go without a mark, unless others of its paragraph have one.
    """
    found = blocks(text)
    if not found or found[-1].kind != "prose":
        return bool(found) and found[-1].whole
    *before, last = text[found[-1].start : found[-1].end].split("\n")
    if _marked(last):
        return True
    form = ITEM.match(last) is not None or _is_verse([*before, last])
    return form and not any(map(_marked, before))


def _marked(line: str) -> bool:
    return line.rstrip("".join(CLOSERS) + " ")[-1:] in MARKS


def blocks(text: str) -> list[Block]:
    """The blocks of a text in order; one pass over its lines."""
    found: list[Block] = []
    closer, kind, start, end, position = "", "", 0, 0, 0

    def close(whole: bool) -> None:
        nonlocal kind
        if kind:
            found.append(Block(kind, start, end, whole))  # type: ignore[arg-type]
        kind = ""

    for line in text.splitlines(keepends=True):
        bare = line.strip()
        if closer:
            end = position + len(line.rstrip())
            if bare.startswith(closer) if kind == "fence" else closer in line:
                close(True)
                closer = ""
        else:
            opened = _opener(line)
            table = bare.startswith("|")
            if opened or not bare or table != (kind == "table"):
                close(kind != "table" or _full_row(text[start:end]))
            if bare and not kind:
                kind, start = (opened[0] if opened else "table" if table else "prose"), position
            end = position + len(line.rstrip()) if bare else end
            if opened:
                closer = opened[1]
                if kind == "formula" and closer in line.strip()[2:]:
                    close(True)
                    closer = ""
        position += len(line)
    close(not closer and (kind != "table" or _full_row(text[start:end])))
    return found


def _opener(line: str) -> tuple[str, str] | None:
    """(kind, what closes it) of the block that a line opens, or None."""
    fence = FENCE.match(line)
    if fence:
        return "fence", fence[1]
    environment = ENVIRONMENT.match(line)
    if environment:
        return "formula", rf"\end{{{environment[1]}}}"
    bare = line.lstrip()
    if bare[:2] in FORMULA:
        return "formula", FORMULA[bare[:2]]
    return None


def _full_row(table: str) -> bool:
    """Does a table end in a row with as many cells as its first one?"""
    rows = table.splitlines()
    return len(rows) > 2 and rows[-1].rstrip().endswith("|") and rows[-1].count("|") == rows[0].count("|")


def prose_end(paragraph: str, language: str, last: bool) -> int:
    """Where a paragraph can end: its length when nothing of it is cut, 0 when nothing of it can stay."""
    lines = paragraph.split("\n")
    if len(lines) == 1 and HEADING.match(paragraph):
        return 0
    end = sentence_end(paragraph, language)
    if ITEM.match(lines[-1]) or _is_verse(lines[:-1] if last else lines):
        if not last:
            return len(paragraph)
        return max(end, len("\n".join(lines[:-1]).rstrip()) if _ends_in_item_or_verse(lines[:-1]) else 0)
    return end


def _ends_in_item_or_verse(lines: list[str]) -> bool:
    return bool(lines) and (ITEM.match(lines[-1]) is not None or _is_verse(lines))


def _is_verse(lines: list[str]) -> bool:
    return len(lines) > 2 and all(len(line) <= SHORT_LINE for line in lines)


def sentence_end(paragraph: str, language: str) -> int:
    """The end of the last full sentence that lies outside code, formulae, emphasis, quotations and brackets; or 0."""
    skipped = max(0, len(paragraph) - PIECE)
    if MARKS.isdisjoint(paragraph[skipped:]):
        return 0
    piece = MASKED.sub(lambda match: "x" * len(match.group()), paragraph[skipped:])
    ends = _outside(piece, _sentence_ends(piece, language))
    return skipped + ends[-1] if ends else 0


def _sentence_ends(text: str, language: str) -> list[int]:
    ends = []
    for sentence in _splitter(language)(text).sents:
        end = _end_of_mark(text, [token for token in sentence if not token.is_space])
        if end and not GOES_ON.match(text, end) and not NUMBER_ALONE.search(text, sentence.start_char, end):
            ends.append(end)
    return ends


def _end_of_mark(text: str, words: "list[Token]") -> int:
    """The end of a sentence's mark and of what it closes; 0 without one. The marks that open the next may follow.

    An abbreviation is one token with its full stop, so that a mark by itself ends a sentence; an ellipsis does not.
    """
    behind = [*takewhile(lambda token: token.is_punct or not token.text.isalnum(), reversed(words))]
    marked = next((token for token in behind if MARKS.issuperset(token.text)), None)
    if marked is None or marked.text in ("..", "..."):
        return 0
    end = marked.idx + len(marked)
    while text[end : end + 1] in CLOSERS:
        end += 1
    return end


def _outside(text: str, ends: list[int]) -> list[int]:
    """Those of `ends` (ascending) at which no bracket, quotation, emphasis, code or formula is open."""
    outside: list[int] = []
    opened: dict[str, int] = {}  # by its opening mark, where; one that is not closed for long was no opening
    delimiters = deque(DELIMITER.finditer(text))
    for end in ends:
        while delimiters and delimiters[0].start() < end:
            delimiter = delimiters.popleft()
            mark = PAIRS.get(delimiter.group(), delimiter.group())
            if _opens(delimiter, text, mark in opened):
                opened[mark] = delimiter.start()
            else:
                opened.pop(mark, None)
        if all(end - start > LONGEST_ASIDE for start in opened.values()):
            outside.append(end)
    return outside


def _opens(delimiter: re.Match[str], text: str, is_open: bool) -> bool:
    """Does a mark open? Brackets say so, quotes and stars stand in front of a word and behind none."""
    mark = delimiter.group()
    if mark in PAIRS or mark in PAIRS.values():
        return mark not in PAIRS
    if mark in ("`", "$", "$$"):
        return not is_open
    before, behind = (
        text[max(0, delimiter.start() - 1) : delimiter.start()],
        text[delimiter.end() : delimiter.end() + 1],
    )
    return (not before or before.isspace() or before in '([“-—*"') and bool(behind.strip())


@cache
def _splitter(language: str) -> "Language":
    """spaCy's rules for a language's words, and for where sentences end."""
    with hidden(("torch",)):  # which spaCy's networks would use: 2 CPU s and 150 MB
        import spacy  # 1 s of CPU; most runs have no text that was cut

    try:
        splitter = spacy.blank(language)
    except ImportError:
        splitter = spacy.blank("xx")
    splitter.add_pipe("sentencizer")
    splitter.max_length = 2 * PIECE
    for word in ABBREVIATIONS:
        splitter.tokenizer.add_special_case(word, [{"ORTH": word}])  # type: ignore[union-attr]
    return splitter
