"""pilot: the figures mean what they say, the gate names cells and openings, nothing is paid for twice."""

import json
import shutil
from pathlib import Path

import pytest

from cosmopedia.core.errors import DataError
from cosmopedia.core.params import read_yaml
from cosmopedia.core.rng import draw_u64
from cosmopedia.generation.requests import Completion, Failure
from stages.generate import __main__ as generate
from stages.pilot import __main__ as pilot
from stages.pilot.measures import measure
from stages.pilot.prompt_draw import draw_prompts
from stages.pilot.shares import Refusals
from tests.support.documents import ROOT
from tests.support.fake_tgi import FakeTgi
from tests.support.prompt_rows import prompt_row, write_model, write_prompts, write_settings

JUDGED = {"pilot.thresholds.min_texts": 8}  # cells of 8 texts are judged
GATE = Path("data/pilot/gate.json")


@pytest.fixture
def folder(empty_folder: Path) -> Path:
    write_model(empty_folder)
    write_settings(empty_folder, ["http://127.0.0.1:9"])
    return empty_folder


def completion(text: str, finish_reason: str = "eos_token", tokens: int = 10) -> Completion:
    return Completion("00", text, finish_reason, tokens, 5, "fake/1")


def measured(*results: Completion | Failure) -> dict:
    params, _, chat, _ = pilot.settings()
    refusals = Refusals(params.rules.refusal, chat)
    return measure([("", result) for result in results], params.rules, refusals)


def test_openings_are_compared_without_case_and_punctuation(folder: Path) -> None:
    figures = measured(
        completion("Have you ever wondered about rain?"),
        completion("**Have** you, EVER seen snow?"),
        completion("Snow falls in winter."),
        completion("Ice floats, and that is odd."),
    )
    assert (figures["opening"], figures["opening_share"]) == ("have you ever", 0.5)


def test_truncation_refusals_and_failures_are_shares(folder: Path) -> None:
    figures = measured(
        completion("I'm sorry, but I cannot do that."),
        completion("As an AI language model, I have no view."),
        completion("Iron rusts in wet air.", "length", 30),
        completion("The word sorry has a long history.", tokens=50),
        Failure("00", "timeout", "", 3),
    )
    assert (figures["completions"], figures["failed_share"]) == (4, 0.2)
    assert (figures["refused_share"], figures["truncated_share"], figures["mean_tokens"]) == (0.5, 0.25, 25)


def test_the_most_frequent_openings_and_the_lengths_are_shown(folder: Path) -> None:
    texts = (
        ["Once upon a time there"] * 5 + ["In the beginning was"] * 3 + ["A cat sat on"] * 2 + ["Unlike the others"]
    )
    figures = measured(*(completion(text, tokens=10 * n) for n, text in enumerate(texts, 1)))
    assert [row["opening"] for row in figures["openings"]] == ["once upon a", "in the beginning", "a cat sat"]
    assert figures["openings"][1]["share"] == 3 / 11
    assert figures["tokens"] == {"min": 10, "p10": 20, "p50": 60, "p90": 100, "max": 110}


def test_each_audience_of_a_style_is_a_cell_of_its_own(folder: Path) -> None:
    rows = [{**prompt_row("web", "blogpost", n), "audience": ("college", "children")[n % 2]} for n in range(20)]
    write_prompts(folder, {"web-blogpost": rows})
    with FakeTgi() as server:
        write_settings(folder, [server.url], **{"pilot.per_cell": 3})
        assert "6 completions in 2 cells" in pilot.main()
    assert sorted(json.loads(Path("metrics/pilot.json").read_text())["cells"]) == [
        "web-blogpost (children)",
        "web-blogpost (college)",
    ]


def test_a_cell_that_repeats_itself_is_less_distinct_and_compresses_better(folder: Path) -> None:
    varied = measured(completion("One river bends north."), completion("Copper carries heat well."))
    same = measured(*[completion("One river bends north.")] * 8)
    assert varied["distinct_2"] == 1.0 and same["distinct_2"] == 3 / 24
    assert same["compression_ratio"] > 2 * varied["compression_ratio"]


def test_the_figures_do_not_move_with_the_size_of_the_pilot(folder: Path) -> None:
    def text(number: int) -> Completion:
        return completion(" ".join(f"word{draw_u64(1, number, position) % 100}" for position in range(150)))

    few, many = (measured(*map(text, range(count))) for count in (100, 400))
    assert few["distinct_2"] == pytest.approx(many["distinct_2"], rel=0.05)
    assert few["compression_ratio"] == pytest.approx(many["compression_ratio"], rel=0.05)


def script(prompt: str, n: int) -> object:
    return "length" if "web fact" in prompt else "ok"


def test_a_gate_that_stops_names_the_cell_and_the_opening(folder: Path, capsys: pytest.CaptureFixture) -> None:
    write_prompts(folder, {"web-blogpost": 12, "wikihow-wikihow": 12})
    thresholds = {"pilot.per_cell": 8, "pilot.gate": "stop", "pilot.rules.opening_words": 1, **JUDGED}
    with FakeTgi(script) as server:
        write_settings(folder, [server.url], **thresholds)
        with pytest.raises(DataError, match=r"web-blogpost: truncated_share 1 \(limit 0\.25\)") as stopped:
            pilot.main()
    assert 'wikihow-wikihow: opening_share 1 (limit 0.25) "text"' in str(stopped.value)
    assert "wikihow-wikihow: truncated_share" not in str(stopped.value)
    assert not GATE.exists() and json.loads(Path("metrics/pilot.json").read_text())["cells"].keys() == {
        "web-blogpost",
        "wikihow-wikihow",
    }
    assert "in 8 of 8: raise generate.sampling.max_new_tokens" in str(
        stopped.value
    )  # the example is before, the advice behind
    assert "web-blogpost     opening_share" in capsys.readouterr().out


@pytest.mark.slow
def test_a_gate_that_warns_lets_through_with_the_same_bytes(folder: Path) -> None:
    write_prompts(folder, {"web-blogpost": 12, "wikihow-wikihow": 0})
    gates = []
    with FakeTgi(script) as server:
        for words in (1, 3):
            write_settings(folder, [server.url], **{"pilot.per_cell": 8, "pilot.rules.opening_words": words, **JUDGED})
            assert "warnings (the gate only warns)" in pilot.main()
            gates.append(GATE.read_bytes())
            shutil.rmtree(".store")  # the second pilot finds what the first has paid for in its own out
        assert len(server.answered) == 8
    assert gates[0] == gates[1] and json.loads(gates[0]) == {"passed": True}


def test_a_fault_seen_too_few_times_is_chance(folder: Path) -> None:
    write_prompts(folder, {"web-blogpost": 12})
    with FakeTgi(script) as server:
        write_settings(folder, [server.url], **{"pilot.per_cell": 2, "pilot.gate": "stop"})
        assert "every cell within the thresholds" in pilot.main()


def test_small_cells_of_a_source_are_judged_together(folder: Path) -> None:
    write_prompts(folder, {"web-blogpost": 3, "web-textbook_academic": 3, "web-wikihow": 3, "wikihow-wikihow": 3})
    with FakeTgi(script) as server:
        write_settings(folder, [server.url], **{"pilot.per_cell": 3, "pilot.gate": "stop", **JUDGED})
        with pytest.raises(DataError, match=r"\(web, small cells\): truncated_share 1 ") as stopped:
            pilot.main()
    assert "(wikihow, small cells)" not in str(stopped.value) and "web-blogpost:" not in str(stopped.value)
    figures = json.loads(Path("metrics/pilot.json").read_text())
    assert figures["pools"]["(web, small cells)"]["completions"] == 9 and len(figures["cells"]) == 4


def test_a_pilot_of_any_profile_can_be_judged() -> None:
    limits = read_yaml(ROOT / "params.yaml")["pilot"]["thresholds"]
    assert limits["min_texts"] > limits["min_seen"]
    for name in ("rehearsal", "laptop", "cluster"):
        profile = read_yaml(ROOT / f"profiles/{name}.yaml")
        styles: dict[str, int] = {}
        for preset in profile["prompts"]["presets"]:
            for source, own in read_yaml(ROOT / "params.yaml")["prompts"]["styles"][preset].items():
                styles[source] = styles.get(source, 0) + len(own)
        # a small cell is judged together with the others of its source
        judged = [
            source for source, count in styles.items() if count * profile["pilot"]["per_cell"] >= limits["min_texts"]
        ]
        assert {"web", "openstax", "ultrachat", "openhermes"} <= set(judged), name


@pytest.mark.slow
def test_generate_does_not_pay_for_what_the_pilot_sent(folder: Path) -> None:
    write_prompts(folder, {"web-blogpost": 12, "wikihow-wikihow": 3})
    with FakeTgi() as server:
        write_settings(folder, [server.url], **{"pilot.per_cell": 4, "generate.samples_per_prompt": 2})
        assert "7 completions in 2 cells, 7 sent" in pilot.main()
        assert "30 completions in 2 cells" in (summary := generate.main()) and "23 sent, 7 from the store" in summary
        assert len(server.answered) == len(set(server.answered)) == 30


def test_the_draw_of_prompts_does_not_depend_on_the_other_prompts_texts(folder: Path) -> None:
    write_prompts(folder, {"web-blogpost": 40})
    paths = [Path("data/prompts/web-blogpost.parquet")]
    first = [drawn.prompt_id for drawn in draw_prompts(paths, seed=23, per_cell=2)]
    assert len(first) == 2 and first == [drawn.prompt_id for drawn in draw_prompts(paths, seed=23, per_cell=2)]
    assert set(first) <= {drawn.prompt_id for drawn in draw_prompts(paths, seed=23, per_cell=5)}
