"""An article cut into passages at the ends of its paragraphs."""

import re

PARAGRAPHS = re.compile(r"\n[ \t]*\n\s*")
SENTENCES = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][\"”’)\]]))\s+(?=[\"“‘(\[]?[A-Z0-9])")
LONG = 2  # times `words`: a longer paragraph is cut too, at the ends of lines, of sentences, or else of words
HEADING_WORDS = 12  # a shorter line without a mark at its end is a heading, which stays with what follows it


def passages(text: str, words: int, min_words: int) -> list[str]:
    """Runs of whole paragraphs of about `words` words each; of more only where one paragraph has more.

    A run ends where it is nearest to `words`. A heading ends no passage, and one of fewer than `min_words` at the end
    joins the one before. White space within a line and blank lines are unified.
    """
    found: list[list[str]] = []
    current: list[str] = []
    for paragraph in _paragraphs(text, words):
        size = _words(current)
        over = size + len(paragraph.split()) - words
        if size and not _is_heading(current[-1]) and over > 0 and over > words - size:
            found.append(current)
            current = []
        current.append(paragraph)
    if current and found and _words(current) < min_words:
        found[-1] += current
    elif current:
        found.append(current)
    return ["\n\n".join(run) for run in found]


def _paragraphs(text: str, words: int) -> list[str]:
    """The paragraphs, the long ones in parts."""
    parts = []
    for paragraph in PARAGRAPHS.split(text):
        lines = [" ".join(line.split()) for line in paragraph.splitlines()]
        whole = "\n".join(line for line in lines if line)
        if len(whole.split()) <= LONG * words:
            parts.append(whole)
        else:
            parts += [part for line in whole.splitlines() for part in _sentences(line, words)]
    return [part for part in parts if part]


def _sentences(line: str, words: int) -> list[str]:
    """A line in runs of whole sentences of about `words` words; a sentence of more than twice as many is cut."""
    runs: list[str] = []
    for sentence in SENTENCES.split(line):
        several = sentence.split()
        if len(several) > LONG * words:
            runs += [" ".join(several[at : at + words]) for at in range(0, len(several), words)]
        elif runs and len(runs[-1].split()) + len(sentence.split()) <= words:
            runs[-1] += f" {sentence}"
        else:
            runs.append(sentence)
    return runs


def _words(paragraphs: list[str]) -> int:
    return sum(len(paragraph.split()) for paragraph in paragraphs)


def _is_heading(paragraph: str) -> bool:
    return len(paragraph.split()) <= HEADING_WORDS and not paragraph.rstrip().endswith((".", "!", "?", ":", ";", ")"))
