"""What becomes of an answer: counts that can be true, and a thought apart from the text that follows it."""

from dataclasses import replace

import pytest

from cosmopedia.generation.answers import (
    Answer,
    AnswerReader,
    MalformedAnswer,
    UnusableAnswer,
    split_thought,
    with_thought,
)
from cosmopedia.generation.requests import Completion, Failure, PendingRequest, Request
from tests.support.dispatch import Words

READER = AnswerReader(Words(), 50)
PENDING = PendingRequest(Request("id", "three short words", 1, 0), "ab" * 16)


class Thinker(Words):
    """A model whose chat template ends in `<think>`."""

    opens_thought = True


def stored(text: str, **changes: object) -> Completion:
    return replace(Completion("ab" * 16, text, "eos_token", 9, 3, "e"), **changes)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("plain", ("", "plain", True)),
        (" plain, as it was \n", ("", " plain, as it was \n", True)),
        ("it says <think> here</think>", ("", "it says <think> here</think>", True)),
        ("<think>a plan</think>\n\nThe text.\n", ("a plan", "The text.", True)),
        ("\n<think>\n\n</think>\n\nThe text.", ("", "The text.", True)),
        ("<think>a</think>\n<think>b</think>c", ("a\n\nb", "c", True)),
        ("<think>a plan that never", ("a plan that never", "", False)),
        ("<think>a</think>", ("a", "", True)),
    ],
)
def test_a_thought_is_parted_from_the_text_that_follows(text: str, parts: tuple[str, str, bool]) -> None:
    assert split_thought(text) == parts
    thought, rest, ended = parts
    if thought and ended:
        assert split_thought(with_thought(thought, rest)) == parts


def test_thought_and_text_are_counted_apart() -> None:
    answer = Answer("<think>one two three</think> four five", "eos_token", 11, 3)
    served = READER.completion(PENDING, answer, "e")
    assert (served.text, served.tokens, served.thought) == (answer.text, 11, "")  # stored as it was served
    result = READER.result(served)
    assert isinstance(result, Completion)
    assert (result.text, result.tokens) == ("four five", 2 + 1)  # with the end of text
    assert (result.thought, result.thought_tokens) == ("one two three", 11 - 3)  # with its tags


@pytest.mark.parametrize(
    ("text", "reason"), [("<think>one two", "truncated_thought"), ("<think>one two</think>\n", "empty")]
)
def test_a_thought_alone_is_a_failure_whether_it_arrives_or_is_in_the_store(text: str, reason: str) -> None:
    with pytest.raises(UnusableAnswer) as error:
        READER.completion(PENDING, Answer(text, "length", 50, 3), "e")
    assert error.value.reason == reason
    failure = READER.result(stored(text))
    assert isinstance(failure, Failure) and failure.reason == reason


def test_a_thought_that_the_chat_template_opens_is_found() -> None:
    reader = AnswerReader(Thinker(), 50)
    served = reader.completion(PENDING, Answer("a plan</think>The text.", "eos_token", 6, 3), "e")
    result = READER.result(served)  # nothing but the text is needed to read it
    assert isinstance(result, Completion) and (result.thought, result.text) == ("a plan", "The text.")
    with pytest.raises(UnusableAnswer, match="ends inside its <think>, after 3 tokens; raise max_new_tokens"):
        reader.completion(PENDING, Answer("a longer plan", "length", 3, 3), "e")


def test_an_ordinary_completion_comes_out_as_it_went_in() -> None:
    assert READER.result(stored("four words of text")) == stored("four words of text")


@pytest.mark.parametrize("tokens", [0, -5, 51, 10**12])
def test_a_count_that_an_older_store_holds_is_corrected(tokens: int) -> None:
    result = READER.result(stored("four words of text", tokens=tokens, prompt_tokens=10**10))
    assert isinstance(result, Completion) and (result.tokens, result.prompt_tokens) == (5, 400)


def test_a_count_that_the_texts_length_belies_is_not_believed() -> None:
    assert READER.completion(PENDING, Answer("word " * 40, "eos_token", 1, 3), "e").tokens == 41
    assert READER.completion(PENDING, Answer("word " * 52, "length", None, 3), "e").tokens == 50
    with pytest.raises(MalformedAnswer, match="200 tokens, where 50 were allowed"):
        READER.completion(PENDING, Answer("word " * 200, "length", 50, 3), "e")
    with pytest.raises(MalformedAnswer, match="has 1,000,000 characters"):
        READER.completion(PENDING, Answer("x" * 10**6, "eos_token", 50, 3), "e")
