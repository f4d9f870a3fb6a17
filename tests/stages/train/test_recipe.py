"""The training recipe: presets, means over seeds, forecast."""

from pathlib import Path

import pytest
import yaml

from cosmopedia.core.errors import ConfigError
from cosmopedia.core.params import load
from cosmopedia.execution import training_forecast as forecast
from stages.train.__main__ import settings
from stages.train.metrics import over_seeds
from stages.train.recipe import TrainParams, learning_rate
from tests.support.training_repository import PRESETS, RECIPE, ROOT, recipe_of, repository, set_compute, set_recipe  # noqa: F401  (the fixture)


@pytest.mark.parametrize(("name", "low", "high"), [("130m", 125e6, 140e6), ("360m", 350e6, 370e6), ("1b", 1e9, 2e9)])
def test_a_preset_replaces_the_profiles_values(name: str, low: float, high: float, repository: Path) -> None:
    set_recipe(repository, preset=name, architecture={"vocabulary": 32000})
    params = load("train", TrainParams)
    assert low < params.architecture.parameters < high
    for key, value in PRESETS[name].items():
        taken = params.model_dump()[key]
        assert taken == ({**value, "vocabulary": 32000} if key == "architecture" else value)
    assert params.recipe(1).architecture == params.architecture


@pytest.mark.parametrize(("profile", "preset"), [("cluster", "1b"), ("rehearsal", "rehearsal")])
def test_the_profiles_state_their_presets_in_full(profile: str, preset: str) -> None:
    train = yaml.safe_load((ROOT / f"profiles/{profile}.yaml").read_text())["train"]
    assert PRESETS["profile"] == {}
    for key, value in PRESETS[preset].items():
        assert {k: v for k, v in train[key].items() if k != "vocabulary"} == value if key == "architecture" else True
        assert key == "architecture" or train[key] == value


def test_an_unknown_preset_names_those_that_are_there(repository: Path) -> None:
    set_recipe(repository, preset="7b")
    with pytest.raises(ConfigError, match="'7b' is not known; choose one of 130m, 1b, 360m, profile, rehearsal"):
        load("train", TrainParams)


def test_seeds_are_different(repository: Path) -> None:
    set_recipe(repository, seeds=[1, 2, 2])
    with pytest.raises(ConfigError, match=r"train\.seeds: .*2 is named twice"):
        load("train", TrainParams)


def test_metrics_over_seeds_are_means_with_their_spread() -> None:
    one = {"steps": 3, "train_loss": 2.0, "validation_loss": 3.0, "validation_perplexity": 20.0}
    two = {"steps": 3, "train_loss": 4.0, "validation_loss": None, "validation_perplexity": None}
    metrics = over_seeds({1: one, 2: two})
    assert metrics["train_loss"] == 3.0 and metrics["train_loss_sd"] == pytest.approx(2**0.5)
    assert metrics["validation_loss"] is None and "validation_loss_sd" not in metrics
    assert metrics["seeds"]["2"]["train_loss"] == 4.0 and metrics["steps"] == 3
    assert "train_loss_sd" not in over_seeds({1: one})


def test_the_rate_rises_in_a_line_and_falls_in_half_a_cosine() -> None:
    recipe = recipe_of(steps=100, warmup_steps=10, learning_rate=1.0, final_rate_share=0.1)
    rates = [learning_rate(recipe, step) for step in range(1, 101)]
    assert rates[0] == 0 and rates[5] == pytest.approx(0.5) and max(rates) == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.55) and rates[-1] == pytest.approx(0.1, abs=1e-3)


def test_flops_count_what_multiplies() -> None:
    """A matrix costs 6 FLOPs a weight and token, the output head too, the embedding table nothing."""
    tied, untied = (recipe_of(architecture={"tied_embeddings": tied}) for tied in (True, False))
    shape = tied.architecture
    matrices = 16 * 16 * 2 + 2 * 16 * 8 + 3 * 16 * 32 + shape.vocabulary * 16
    assert tied.flops_per_token == untied.flops_per_token == 6 * matrices + 6 * 1 * 16 * 16


def test_the_forecast_takes_a_measured_rate_else_the_peak(repository: Path) -> None:
    recipe = recipe_of(backend="nanotron")
    assert "tokens/s" not in forecast.describe(recipe, 1)
    set_compute(repository, peak_tflops=989.4, layout={"dp": 4})
    sentence = forecast.describe(recipe, 3)
    assert "each of 3 seeds" in sentence and "GPU hours" in sentence and "40% of 989.4 TFLOPS per GPU" in sentence
    forecast.remember(recipe, 512.0)
    assert "at 512 tokens/s (measured here)" in forecast.describe(recipe, 1)
    forecast._rates().write_text("no json")
    assert "40% of" in forecast.describe(recipe, 1)


def test_the_recipe_of_the_tests_is_a_recipe() -> None:
    assert recipe_of().tokens == RECIPE["steps"] * RECIPE["batch"] * RECIPE["sequence"]


def test_the_kept_steps_lie_evenly_before_the_end(repository: Path) -> None:
    set_recipe(repository, keep_last=3)
    assert settings().kept_steps == (20, 22)  # of 24, a tenth apart
    set_recipe(repository, keep_last=1)
    assert settings().kept_steps == ()
    for values, kept in (({"keep_last": 13}, "0, 2, 4"), ({"keep_last": 2, "keep_spacing": 0.01}, "24, 24")):
        set_recipe(repository, **values)
        with pytest.raises(ConfigError, match=f"would keep the steps {kept}"):
            settings()
