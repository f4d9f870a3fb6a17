"""The pilot's measures of single texts: what is counted, what is not, and that plants are found in cells of 20."""

import random

import pytest

from cosmopedia.corpus.sentences import is_finished
from perf.pilot import PLANTS, Gate, read_texts
from stages.pilot.gate import ADVICE, Thresholds, violations
from stages.pilot.shares import (
    Finding,
    Written,
    closings,
    copied,
    names,
    numbers,
    openings,
    refused,
    repeated,
    short,
    truncated,
    unfinished,
)

PER_CELL, CELLS = 20, 10
COPPER = "Copper carries heat and current well, and so a pan that has a copper base warms from edge to edge."
RIVER = "A river bends where its bank is soft, and each bend grows until the water cuts through its neck."


@pytest.fixture(scope="module")
def gate() -> Gate:
    return Gate()


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return read_texts([])


def written(*texts: str) -> list[Written]:
    return [Written(text) for text in texts]


@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_fault_is_named_by_its_measure(plant: str, gate: Gate, texts: list[str]) -> None:
    rng = random.Random(plant)
    share, measure, change = PLANTS[plant]
    found = [gate.named(change(rng.sample(texts, PER_CELL), rng, share)) for _ in range(CELLS)]
    assert sum(f"{measure}_share" in names for names in found) >= 0.8 * CELLS


def test_healthy_cells_are_not_named(gate: Gate, texts: list[str]) -> None:
    rng = random.Random(7)
    assert [gate.named(rng.sample(texts, PER_CELL)) for _ in range(2 * CELLS)] == [set()] * (2 * CELLS)


@pytest.mark.parametrize(
    ("text", "finished"),
    [
        ("It rains.", True),
        ('"Is it far?" he said. "No!"', True),
        ("**It rains.**", True),
        ("It rains because the", False),
        ("It rains in Paris,", False),
        ("- flour\n- water\n- salt", True),
        ("1. Sift the flour.\n2. Add the water and", False),
        ("The water sings\nThe heron stands\nThe wheel is slow\nThe lilies go", True),
        ("It rains.\n\n## Snow", False),
        ("It is\n\n$$x = 2$$", True),
        ("It is\n\n```\nprint(1)", False),
        ("", False),
    ],
)
def test_a_text_is_finished_where_a_sentence_item_verse_or_block_ends(text: str, finished: bool) -> None:
    assert is_finished(text) is finished


@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        ("I’m sorry, but I can’t help with that.", True),
        ("Sure! Unfortunately, your request goes beyond what I may write.", True),
        ("As an AI language model, I have no childhood.\n\n" + COPPER * 10, True),
        ('"I cannot write this letter," said Anna. She put the pen down.', False),
        ("I could not write to her in winter.", False),
        (f"{COPPER} {RIVER} {COPPER} I cannot write about this topic.", False),
    ],
)
def test_a_refusal_is_a_form_at_the_beginning(text: str, refuses: bool, gate: Gate) -> None:
    assert refused(written(text), gate.refusals).share == refuses


def test_a_text_that_was_cut_in_empty_lines_is_truncated() -> None:
    cut = Written("The tide comes in." + "\n" * 200, ended=False)
    assert truncated([cut, Written("It goes out.")]) == (0.5, "The tide comes in.")
    assert unfinished([cut._replace(ended=True, text="The tide comes" + "\n" * 200)]).share == 1.0


def test_short_is_against_the_median_of_the_cell() -> None:
    assert short(written(COPPER, RIVER, COPPER, "No, thanks."), 0.25) == Finding(0.25, "No, thanks.")
    assert short(written("No.", "Yes.", "Sure."), 0.25).share == 0


def test_a_text_that_repeats_itself_is_shown_by_what_it_repeats() -> None:
    assert repeated(written(COPPER, RIVER + " And so it goes on and on." * 20), 0.2) == Finding(
        0.5, "and so it goes on"
    )


def test_a_near_copy_and_a_body_under_another_title_are_copies() -> None:
    def share(other: str) -> float:
        return copied(written(RIVER, COPPER, other), 0.4).share

    assert share(COPPER.replace("current", "cold")) == share(f"A pan\n\n{COPPER}") == 2 / 3
    assert share("Ice floats on water, and that is odd. Few solids float on their own liquid.") == 0


def test_openings_and_closings_that_one_text_has_do_not_count(gate: Gate) -> None:
    starts = ["Have you ever", "Have you ever", "Once upon a", "Once upon a", "In a town", "Far from here"]
    plain = written(*(f"{start} a thing {n} was so." for n, start in enumerate(starts)))
    assert openings(plain, gate.rules) == Finding(4 / 6, "have you ever | once upon a")
    below_titles = written(*(f"# Part {n} of {n}\n\n{text.text}" for n, text in enumerate(plain)))
    assert openings(below_titles, gate.rules).share == 4 / 6
    ends = written(*(f"{COPPER[n:]} In conclusion, it {n} is." for n in range(3)), RIVER)
    assert closings(ends, gate.rules) == Finding(0.75, "in conclusion it")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("That day {} came home.", "Elara"),
        ("{} was the first.", "Elara"),
        ("They asked Dr. {} Chen about it.", "Elara"),
        ("Every {} was sold.", ""),
        ("This is rain. There was snow. Everyone has seen it.", ""),
        ("Then {} fell, as rain does; elara is a word here.", ""),
    ],
)
def test_a_name_has_a_capital_and_no_article(text: str, name: str) -> None:
    found = names(written(text.format("Elara"), text.format("Elara")))
    assert found.share == bool(name) and (found.example in ("Elara", "Chen") if name else not found.example)


def test_names_and_numbers_of_the_prompts_are_theirs() -> None:
    cell = [Written("When Elara came, 42 birds rose.", "Write about Elara and 42 birds.")] * 3
    assert (names(cell), numbers(cell)) == (Finding(0.0), Finding(0.0))
    cell = [*cell, Written("Today only Elara came with 42 of 100.", "Write about birds.")]
    assert (names(cell), numbers(cell)) == (Finding(0.25, "Elara"), Finding(0.25, "42"))


def test_every_threshold_has_advice_and_null_switches_it_off(gate: Gate, texts: list[str]) -> None:
    limits = {name for name in Thresholds.model_fields if name not in ("min_texts", "min_seen")}
    assert {name[4:].removesuffix("_share") for name in limits} == ADVICE.keys()
    figures = gate.figures(PLANTS["one closing"][2](texts[:PER_CELL], random.Random(0), 1.0))
    (named,) = violations("web-wikihow", figures, gate.limits)
    assert str(named) == (
        'web-wikihow: closings_share 1 (limit 0.35) "more about it" in 20 of 20: say in the template how to end, and'
        " that no summary is wanted"
    )
    assert violations("web-wikihow", figures, gate.limits.model_copy(update={"max_closings_share": None})) == []
