"""Evaluation sets in one shape: the cloze forms of Cosmopedia (evaluation/lighteval_tasks.py), and sets that are only
searched for in the corpus.

A form takes a record of the public schema and gives query, choices (continuations with their leading space), gold, and
what decontamination matches: the bare question, the right answer's text, and texts of the item that leak without the
question (`other_forms`). `evaluate.tasks` says which are scored;
those that have no wrong answers to choose from (GSM8K, TriviaQA) have one choice and cannot be.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from cosmopedia.core.errors import DataError
from cosmopedia.core.text import half_pair


@dataclass(frozen=True)
class Cloze:
    """One item: `choices` are scored as continuations of `query`; `gold` is the right one's position."""

    query: str
    choices: list[str]
    gold: int
    question: str
    answer: str
    other_forms: dict[str, str] = field(default_factory=dict)  # by name
    group: str | None = None  # a part of the task that is also scored by itself


class Fields:
    """A record's columns, each checked as it is read; `DataError` names the place, the column and what was wanted."""

    def __init__(self, values: dict[str, Any], place: str):
        self.values, self.place = values, place

    def wrong(self, column: str, wanted: str) -> DataError:
        """The error for a column that is not as wanted."""
        value = repr(self.values[column])[:80] if column in self.values else f"columns {sorted(self.values)}"
        return DataError(f"{self.place}: column {column!r} must be {wanted}, found {value}; fix or remove the row")

    def text(self, column: str, empty: bool = False) -> str:
        """A string, stripped."""
        value = self.values.get(column)
        if not isinstance(value, str) or not (empty or value.strip()):
            raise self.wrong(column, "a text" if empty else "a text that is not empty")
        return value.strip()

    def texts(self, column: str, value: object = None) -> list[str]:
        """Two strings or more, stripped."""
        value = self.values.get(column) if value is None else value
        if not isinstance(value, list) or len(value) < 2 or not all(isinstance(v, str) and v.strip() for v in value):
            raise self.wrong(column, "a list of two or more texts")
        return [v.strip() for v in value]

    def label(self, column: str, count: int, first: int = 0) -> int:
        """A position below `count`, from a number or digits that begin at `first`."""
        value = self.values.get(column)
        digits = str(value).strip() if isinstance(value, (int, str)) and not isinstance(value, bool) else ""
        position = int(digits) - first if re.fullmatch(r"-?\d+", digits) else -1
        if not 0 <= position < count:
            raise self.wrong(column, f"a label from {first} to {first + count - 1} (a test split may have none)")
        return position

    def lettered(self) -> tuple[list[str], int]:
        """`choices` {text, label} and `answerKey`, as ARC and OpenBookQA have them."""
        choices = self.values.get("choices")
        if not isinstance(choices, dict) or not {"text", "label"} <= choices.keys():
            raise self.wrong("choices", "an object with the lists text and label")
        texts, labels, key = self.texts("choices", choices["text"]), choices["label"], self.values.get("answerKey")
        if not isinstance(labels, list) or len(labels) != len(texts) or key not in labels:
            raise self.wrong("answerKey", f"one of the labels {labels}, as many as choices")
        return texts, labels.index(key)


def checked(item: Cloze, place: str) -> Cloze:
    """The item itself. `DataError` when a form has left a part of it without text, such as an ending "[header]", or a
    part holds half of a surrogate pair."""
    parts = {"query": item.query, "question": item.question, "answer": item.answer}
    parts |= {f"choice {number}": choice for number, choice in enumerate(item.choices)}
    for name, text in parts.items():
        if not text.strip():
            raise DataError(f"{place}: {name} has no text left in the form of its task; fix or remove the row")
    for name, text in (parts | item.other_forms).items():
        half = half_pair(text)
        if half is not None:
            raise DataError(f"{place}: {name} holds half of a surrogate pair ({half}), no text; fix or remove the row")
    return item


def _scored(query: str, choices: list[str], gold: int, question: str, **other_forms: str) -> Cloze:
    return Cloze(query, [f" {choice}" for choice in choices], gold, question, choices[gold], other_forms)


def arc(row: Fields) -> Cloze:
    question = row.text("question")
    return _scored(f"Question: {question}\nAnswer:", *row.lettered(), question)


def boolq(row: Fields) -> Cloze:
    """google/boolq has `answer` (true or false); SuperGLUE's copy has `label` (0 or 1)."""
    question, passage, answer = row.text("question"), row.text("passage"), row.values.get("answer")
    if "answer" not in row.values and "label" in row.values:
        answer = bool(row.label("label", 2))
    if not isinstance(answer, bool):
        raise row.wrong("answer", "true or false")
    bare = question.removesuffix("?")
    query = f"{passage}\nQuestion: {bare}?\nAnswer:"
    return _scored(query, ["no", "yes"], int(answer), question, passage=passage)


def hellaswag(row: Fields) -> Cloze:
    context = f"{row.text('ctx_a')} {row.text('ctx_b', empty=True).capitalize()}".strip()
    endings = [_without_brackets(ending) for ending in row.texts("endings")]
    query = _without_brackets(f"{row.text('activity_label')}: {context}")
    return _scored(query, endings, row.label("label", len(endings)), _without_brackets(context))


def _without_brackets(text: str) -> str:
    """Without the artefacts of HellaSwag's WikiHow part ([header], [title], [step])."""
    return re.sub(r"\[.*?\]", "", text.replace(" [title]", ". ")).replace("  ", " ").strip()


def piqa(row: Fields) -> Cloze:
    goal, solutions = row.text("goal"), [row.text("sol1"), row.text("sol2")]
    return _scored(f"Question: {goal}\nAnswer:", solutions, row.label("label", 2), goal)


def siqa(row: Fields) -> Cloze:
    query = f"{row.text('context')} {row.text('question')}"
    answers = [row.text(f"answer{letter}") for letter in "ABC"]
    return _scored(query, answers, row.label("label", 3, first=1), query)


def winogrande(row: Fields) -> Cloze:
    before, gap, after = row.text("sentence").partition("_")
    if not gap or not before.strip():
        raise row.wrong("sentence", "a sentence with a gap _ that does not begin it")
    endings = [f"{row.text(option)} {after.strip()}" for option in ("option1", "option2")]
    gold, sentence = row.label("answer", 2, first=1), f"{before.strip()} _ {after.strip()}"
    return _scored(before.strip(), endings, gold, before.strip(), sentence=sentence)


def openbookqa(row: Fields) -> Cloze:
    question = row.text("question_stem")
    return _scored(question, *row.lettered(), question)


def mmlu(row: Fields) -> Cloze:
    question, choices = row.text("question"), row.texts("choices")
    subject = row.text("subject")
    query = f"The following are questions about {subject.replace('_', ' ')}.\nQuestion: {question}\nAnswer:"
    return replace(_scored(query, choices, row.label("answer", len(choices)), question), group=subject)


def commonsense_qa(row: Fields) -> Cloze:
    """The bare question, as in Cosmopedia's task file; lighteval's own and lm-eval's match letters."""
    question = row.text("question")
    return _scored(question, *row.lettered(), question)


def gsm8k(row: Fields) -> Cloze:
    """The question and the result after ####, and by itself the worked answer between them.

    With it an item would be twice as long, so that a document with the whole question, worked in other words, would
    match less than half of it. Its <<48/2=24>> marks are the dataset's own and left out.
    """
    question, (worked, mark, result) = row.text("question"), row.text("answer").rpartition("####")
    if not mark or not result.strip():
        raise row.wrong("answer", "a worked answer that ends with #### and the result")
    query, worked = f"Question: {question}\nAnswer:", re.sub(r"<<[^<>]*>>", "", worked).strip()
    return _scored(query, [result.strip()], 0, question, worked_answer=worked)


def triviaqa(row: Fields) -> Cloze:
    """The question and the answer's usual form; its aliases are other spellings of it."""
    question, answer = row.text("question"), row.values.get("answer")
    value = answer.get("value") if isinstance(answer, dict) else None
    if not isinstance(value, str) or not value.strip() or value == "<unk>":
        raise row.wrong("answer", "an object with the text value (the test split has none)")
    return _scored(f"Question: {question}\nAnswer:", [value.strip()], 0, question)


def mmlu_pro(row: Fields) -> Cloze:
    question, options = row.text("question"), row.texts("options")
    query = f"The following are questions about {row.text('category')}.\nQuestion: {question}\nAnswer:"
    return _scored(query, options, row.label("answer_index", len(options)), question)


FORMS: dict[str, Callable[[Fields], Cloze]] = {
    "arc_easy": arc,
    "arc_challenge": arc,
    "boolq": boolq,
    "hellaswag": hellaswag,
    "piqa": piqa,
    "siqa": siqa,
    "winogrande": winogrande,
    "openbookqa": openbookqa,
    "mmlu": mmlu,
    "gsm8k": gsm8k,
    "commonsense_qa": commonsense_qa,
    "triviaqa": triviaqa,
    "mmlu_pro": mmlu_pro,
}
