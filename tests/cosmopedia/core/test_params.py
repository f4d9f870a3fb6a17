"""Parameters: a leaf in one file, clear sentences for wrong ones."""

from pathlib import Path

import pytest

from cosmopedia.core.errors import ConfigError
from cosmopedia.core.params import Params, load


class TrainLike(Params):
    steps: int
    rate: float


def write(root: Path, recipe: str, scale: str) -> None:
    (root / "profiles").mkdir()
    (root / "params.yaml").write_text(recipe, encoding="utf-8")
    (root / "profiles" / "tiny.yaml").write_text(scale, encoding="utf-8")


def test_a_section_is_the_union_of_recipe_and_profile(tmp_path: Path) -> None:
    write(tmp_path, "profile: tiny\ntrain: {rate: 0.1}", "train: {steps: 3}")
    assert load("train", TrainLike, tmp_path) == TrainLike(steps=3, rate=0.1)


@pytest.mark.parametrize(
    ("recipe", "scale", "message"),
    [
        (
            "profile: tiny\ntrain: {rate: 0.1}",
            "train: {steps: 3, rate: 1}",
            r"train.rate is in params.yaml and in",
        ),
        ("profile: tiny\ntrain: {rate: 0.1}", "train: {}", r"train.steps is missing"),
        ("profile: tiny\ntrain: {rate: x}", "train: {steps: 3}", r"train.rate: .*found 'x'"),
        ("profile: tiny\ntrain: {rate: 1, lr: 2}", "train: {steps: 3}", r"train.lr is not a parameter"),
        ("profile: huge\ntrain: {}", "train: {}", r"profile is 'huge'.*known profiles: tiny"),
        ("profile: tiny\ntrain: [1]", "train: {}", r"train must be a mapping"),
        ("profile: tiny\n  train: {", "train: {}", r"params.yaml does not parse"),
    ],
)
def test_a_wrong_parameter_is_named_in_one_sentence(tmp_path: Path, recipe: str, scale: str, message: str) -> None:
    write(tmp_path, recipe, scale)
    with pytest.raises(ConfigError, match=message):
        load("train", TrainLike, tmp_path)
