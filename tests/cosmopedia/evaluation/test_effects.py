"""Verdicts hold their level: equal arms are called different no more often than 5%, whatever noise there is."""

import numpy as np
import pytest
from scipy import stats

from cosmopedia.evaluation.effects import (
    NoiseFloor,
    Part,
    estimate,
    holm,
    item_noise,
    noncentrality,
    over_seeds,
    resampled,
    seed_scores,
    seeds_to_see,
    seen_by,
)

ITEMS = 120


def arms(
    rng: np.random.Generator, seeds: int, training: float, answers: float, uneven: float = 0.0, effect: float = 0.0
):
    """Two arms of one task: noise of whole trainings, of single answers, and an effect that differs by item."""
    difficulty, effects = rng.normal(size=ITEMS), rng.normal(effect, uneven, ITEMS)

    def answered(of_items: np.ndarray) -> list[Part]:
        noise = rng.normal(0, training, (seeds, 1)) + rng.normal(0, answers, (seeds, ITEMS))
        return [Part(of_items + noise, np.ones(ITEMS))]

    return answered(difficulty), answered(difficulty + effects)


# Noise of training alone, as in bits per byte; of answers alone, as in accuracy; both, with an effect on some items.
KINDS = {"bpb": (0.05, 0.05, 0.0), "accuracy": (0.0, 0.5, 0.0), "uneven": (0.02, 0.3, 0.5)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_equal_arms_are_called_different_in_at_most_one_of_twenty(seeds: int, kind: str) -> None:
    rng, pairs = np.random.default_rng(seeds), 600
    found = np.mean([estimate(*arms(rng, seeds, *KINDS[kind])).p < 0.05 for _ in range(pairs)])
    assert found < 0.05 + 3 * np.sqrt(0.05 * 0.95 / pairs)  # three Monte Carlo errors
    assert found > (0.005 if seeds == 2 else 0.01)  # Welch's t is careful with two seeds, not blind


def test_a_bootstrap_over_items_alone_takes_training_noise_for_a_difference() -> None:
    rng, items, ours, pairs = np.random.default_rng(0), 0, 0, 60
    for _ in range(pairs):
        a, b = arms(rng, 1, training=0.05, answers=0.05)
        difference = (b[0].sums - a[0].sums)[0]
        means = difference[rng.integers(0, ITEMS, (400, ITEMS))].mean(axis=1)
        items += not np.quantile(means, 0.025) < 0 < np.quantile(means, 0.975)
        ours += estimate(*arms(rng, 3, training=0.05, answers=0.05)).p < 0.05
    assert items > 0.7 * pairs and ours <= 0.1 * pairs


@pytest.mark.slow
def test_a_difference_that_a_design_sees_is_found_in_four_of_five() -> None:
    rng, found = np.random.default_rng(3), 0
    effect = seen_by(0.05, 3)
    for _ in range(400):
        one = estimate(*arms(rng, 3, training=0.05, answers=0.0, effect=effect))
        found += one.p < 0.05
    assert 0.7 < found / 400 < 0.87  # Welch's degrees of freedom cost a little of the .8


def test_without_an_item_part_the_interval_is_welchs() -> None:
    rng = np.random.default_rng(0)
    a, b = arms(rng, 4, training=0.3, answers=0.0)
    one = estimate(a, b)
    welch = stats.ttest_ind(seed_scores(b), seed_scores(a), equal_var=False)
    assert one.items_share == pytest.approx(0, abs=1e-9)
    assert (one.p, one.freedom) == (pytest.approx(welch.pvalue), pytest.approx(welch.df))
    assert (one.low, one.high) == pytest.approx(tuple(welch.confidence_interval()))


def test_an_effect_on_few_items_is_no_effect_on_others_like_them() -> None:
    """Without noise of training the seeds agree exactly, and only the items say how sure the difference is."""
    rng = np.random.default_rng(0)
    a, b = arms(rng, 3, training=0.0, answers=0.0, uneven=1.0)
    one = estimate(a, b)
    wanted = stats.ttest_1samp(b[0].sums.mean(0) - a[0].sums.mean(0), 0)
    assert one.p == pytest.approx(wanted.pvalue) and one.items_share == pytest.approx(1)
    assert one.seeds_for_half is None  # no number of seeds would see half of it


def test_items_of_a_cluster_count_together() -> None:
    rng = np.random.default_rng(0)
    a, b = arms(rng, 3, training=0.0, answers=0.0, uneven=1.0)
    tenfold = [[Part(np.repeat(part.sums, 10, axis=1), np.ones(10 * ITEMS)) for part in arm] for arm in (a, b)]
    clustered = [[Part(part.sums * 10, np.full(ITEMS, 10.0)) for part in arm] for arm in (a, b)]
    assert estimate(*clustered).error == pytest.approx(estimate(a, b).error)
    assert estimate(*tenfold).error < 0.4 * estimate(a, b).error


def test_one_seed_gives_a_difference_and_nothing_else() -> None:
    a, b = arms(np.random.default_rng(0), 1, training=0.05, answers=0.05)
    one = estimate(a, b)
    assert (one.p, one.low, one.seen, one.error) == (None, None, None, None)
    assert one.difference == pytest.approx(seed_scores(b)[0] - seed_scores(a)[0])


@pytest.mark.slow
def test_one_seed_and_a_noise_floor_hold_the_level() -> None:
    rng, found, pairs = np.random.default_rng(1), 0, 500
    for _ in range(pairs):
        many, _ = arms(rng, 6, training=0.05, answers=0.2)
        floor = NoiseFloor(float(seed_scores(many).std(ddof=1)), 6, item_noise(many), "many")
        one = estimate(*arms(rng, 1, training=0.05, answers=0.2), floor)
        found += one.p < 0.05
        assert one.floor == "many"
    assert 0.01 < found / pairs < 0.05 + 3 * np.sqrt(0.05 * 0.95 / pairs)


def test_a_noise_floor_is_left_out_where_there_are_seeds_enough() -> None:
    a, b = arms(np.random.default_rng(0), 3, training=0.05, answers=0.05)
    assert estimate(a, b, NoiseFloor(9.0, 50, 0.0, "wide")) == estimate(a, b)


def test_power_is_that_of_the_noncentral_t() -> None:
    for freedom in (1.5, 4, 30):
        critical, shift = stats.t.ppf(0.975, freedom), noncentrality(freedom)
        assert stats.nct.sf(critical, freedom, shift) == pytest.approx(0.8, abs=1e-6)


def test_the_seeds_that_are_named_are_the_fewest_that_see_it() -> None:
    needed = seeds_to_see(0.02, 0.015)
    assert needed and seen_by(0.02, needed) <= 0.015 < seen_by(0.02, needed - 1)
    assert seeds_to_see(1.0, 1e-6) is None


def test_holm_by_hand() -> None:
    assert holm([0.04, None, 0.01, 0.03]) == pytest.approx([0.06, None, 0.03, 0.06])


def test_resampling_draws_the_same_items_for_all_arms_and_seeds_for_each() -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(2, 3, ITEMS))  # measures, seeds, clusters
    one, two = resampled([table, table + 1], np.ones(ITEMS), rng)
    assert two - one == pytest.approx(1)  # paired: what all items share does not move
    assert one.std(axis=0) == pytest.approx(table.std(axis=-1) / np.sqrt(ITEMS), rel=0.1)
    draws = np.array([[0, 0, 2]] * len(one))
    assert over_seeds(one, draws) == pytest.approx((2 * one[..., 0] + one[..., 2]) / 3)


@pytest.mark.slow
def test_the_bootstrap_over_seeds_errs_too_often_with_few_and_so_decides_nothing() -> None:
    rng, pairs, wrong = np.random.default_rng(0), 150, {2: 0, 5: 0}
    for seeds in wrong:
        for _ in range(pairs):
            tables = [parts[0].sums[None] for parts in arms(rng, seeds, training=0.05, answers=0.05)]
            draws = [rng.integers(0, seeds, size=(2000, seeds)) for _ in tables]
            a, b = (
                over_seeds(*pair)[:, 0] for pair in zip(resampled(tables, np.ones(ITEMS), rng), draws, strict=True)
            )
            low, high = np.quantile(b - a, (0.025, 0.975))
            wrong[seeds] += not low < 0 < high
    assert wrong[2] > 0.12 * pairs and wrong[2] > wrong[5]
