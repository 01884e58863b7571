"""Intervals and tests against closed forms, textbook numbers and small coverage simulations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flgbench.metrics import stats

RUNS = 300  # the standard error of a coverage of 0.95 is 0.013


def test_mean_over_conditions_is_the_normal_interval_for_many_conditions() -> None:
    values = np.random.default_rng(0).normal(3, 2, 400)
    interval = stats.mean_over_conditions(values, np.arange(400), share=False)
    half = 1.96 * values.std() / 20
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.02)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.02)
    assert interval.n == 400


def test_bootstrap_resamples_conditions_not_samples() -> None:
    """Repeating each condition's value eight times adds no information: the interval stays as it is."""
    values = np.random.default_rng(1).normal(size=40)
    once = stats.mean_over_conditions(values, np.arange(40), share=False)
    eightfold = stats.mean_over_conditions(values.repeat(8), np.arange(40).repeat(8), share=False)
    assert vars(eightfold) == pytest.approx(vars(once))
    as_independent = stats.mean_over_conditions(values.repeat(8), np.arange(320), share=False)
    assert as_independent.high - as_independent.low < 0.5 * (once.high - once.low)


def test_bootstrap_is_seeded_and_ignores_order_and_missing_values() -> None:
    values, conditions = np.array([1.0, 5, 2, 8, np.nan, 4]), np.array([0, 0, 1, 2, 2, 3])
    shuffle = np.array([3, 5, 0, 4, 1, 2])
    first = stats.mean_over_conditions(values, conditions, seed=7, share=False)
    assert first == stats.mean_over_conditions(values[shuffle], conditions[shuffle], seed=7, share=False)
    assert first.value == pytest.approx((3 + 2 + 8 + 4) / 4) and first.n == 4
    assert (first.low, first.high) == (2, 8)  # four conditions: no further than what was seen
    many = np.random.default_rng(0).normal(size=30)
    assert stats.mean_over_conditions(many, np.arange(30), seed=7, share=False) != stats.mean_over_conditions(
        many, np.arange(30), seed=8, share=False
    )


def test_mean_over_conditions_edges() -> None:
    empty = stats.mean_over_conditions(np.array([np.nan]), np.array([0]), share=False)
    assert empty.n == 0 and np.isnan([empty.value, empty.low, empty.high]).all()
    single = stats.mean_over_conditions(np.array([2.0, 4.0]), np.array([5, 5]), share=False)
    assert single.value == 3 and single.n == 1 and np.isnan(single.low)
    perfect = stats.mean_over_conditions(np.ones(64), np.arange(64), share=True)
    assert perfect.value == perfect.high == 1 and 0.92 < perfect.low < 0.95  # all right on 64 is not certainty
    assert stats.mean_over_conditions(np.full(9, 0.3), np.arange(9), share=False).low == pytest.approx(0.3)
    # Each of two conditions is right in 7 of 8 seeds.
    alike = stats.mean_over_conditions(np.full(2, 7 / 8), np.arange(2), share=True)
    assert alike.value == 7 / 8 and alike.low < 0.4 and alike.high > 0.95
    with pytest.raises(ValueError, match="equally long"):
        stats.mean_over_conditions(np.ones(3), np.arange(4), share=False)


def test_only_a_share_of_all_zeros_is_uncertain_by_itself() -> None:
    zeros, conditions = np.zeros(64), np.arange(64)
    agresti_coull = 0.06778  # none of 64
    assert stats.mean_over_conditions(zeros, conditions, share=True).high == pytest.approx(agresti_coull, abs=1e-5)
    assert stats.mean_over_conditions(zeros, conditions, share=False).high == 0  # 64 clips without flicker, in grey levels


def test_bca_shifts_towards_the_long_tail() -> None:
    interval = stats.mean_over_conditions(np.random.default_rng(2).exponential(size=40), np.arange(40), share=False)
    assert interval.high - interval.value > 1.1 * (interval.value - interval.low)


def test_mean_over_conditions_coverage() -> None:
    """40 conditions of 4 samples: skewed condition effects plus noise within a condition."""
    rng, hits = np.random.default_rng(3), 0
    for run in range(RUNS):
        values = rng.exponential(1.0, (40, 1)) + rng.normal(0, 0.5, (40, 4))
        hits += 1.0 in stats.mean_over_conditions(values.ravel(), np.arange(40).repeat(4), draws=1000, seed=run, share=False)
    assert 0.90 <= hits / RUNS <= 0.98


def test_difference_coverage_and_gain_from_pairing() -> None:
    rng, hits, widths = np.random.default_rng(4), 0, []
    conditions = np.arange(30).repeat(2)
    for run in range(RUNS):
        shared = rng.normal(0, 3, 30).repeat(2)
        a, b = shared + 0.4 + rng.normal(size=60), shared + rng.normal(size=60)
        interval = stats.mean_difference(a, conditions, b, conditions, draws=1000, seed=run, share=False)
        hits += 0.4 in interval
        widths.append(interval.high - interval.low)
    assert 0.90 <= hits / RUNS <= 0.98
    assert np.mean(widths) < 0.5 * 2 * 1.96 * 3 * np.sqrt(2 / 30)  # half of what unpaired means would leave


def test_coverage_is_nominal_over_1000_draws() -> None:
    """As the tables use them: right or wrong clips of 64 conditions, 4 of them with 8 seeds; the true share is 0.8.

    A difference pairs two such cells whose conditions are equally hard for both.
    """
    rng, runs = np.random.default_rng(6), 1000
    conditions = np.concatenate([np.arange(64), np.arange(4).repeat(7)])
    share = difference = 0
    for run in range(runs):
        hard = rng.beta(4, 1, 64)[conditions]
        a, b = ((rng.random(len(conditions)) < hard).astype(float) for _ in range(2))
        share += 0.8 in stats.mean_over_conditions(a, conditions, draws=1000, seed=run, share=True)
        difference += 0.0 in stats.mean_difference(a, conditions, b, conditions, share=True)
    assert 0.93 <= share / runs <= 0.97
    assert 0.93 <= difference / runs <= 0.97


@pytest.mark.parametrize("n", [2, 4])
def test_few_conditions_are_covered_where_a_bootstrap_is_too_sure(n: int) -> None:
    """Two or four conditions of 8 seeds each; the true share is 0.8."""
    rng, runs, hits, bootstrapped = np.random.default_rng(11), 500, 0, 0
    for run in range(runs):
        right = (rng.random((n, 8)) < rng.beta(4, 1, (n, 1))).mean(1)
        hits += 0.8 in stats.mean_over_conditions(right, np.arange(n), share=True)
        bootstrapped += 0.8 in stats.mean_over_conditions(right, np.arange(n), share=False, draws=500, seed=run)
    assert hits / runs >= 0.95 and bootstrapped / runs < 0.9


def test_a_difference_pairs_by_condition() -> None:
    a, conditions_a = np.array([1.0, 2, 3, 9]), np.array([3, 1, 2, 7])
    b, conditions_b = np.array([1.5, 2.5, 0.5, 100]), np.array([1, 2, 3, 8])
    interval = stats.mean_difference(a, conditions_a, b, conditions_b, share=False)
    assert (interval.value, interval.low, interval.high, interval.n) == (0.5, 0.5, 0.5, 3)
    for share in (False, True):
        none = stats.mean_difference(a, conditions_a, b, conditions_b + 50, share=share)
        assert none.n == 0 and np.isnan([none.value, none.low, none.high]).all()


def test_a_bounded_mean_of_zeros_and_ones_is_agresti_and_coull_s() -> None:
    # 81 of 263: with z² / 2 more of each, 82.921 of 266.841.
    ones = (np.arange(263) < 81).astype(float)
    found, share = stats.bounded_mean(ones, (0, 1)), 82.92073 / 266.84146
    half = 1.959964 * np.sqrt(share * (1 - share) / 266.84146)
    assert (found.low, found.value, found.high) == pytest.approx((share - half, 81 / 263, share + half), rel=1e-6)
    # A difference that takes its two ends only is the same on another scale.
    signs = stats.bounded_mean(2 * ones - 1, (-1, 1))
    assert (signs.low, signs.high) == pytest.approx((2 * found.low - 1, 2 * found.high - 1))


def test_a_difference_of_shares_counts_what_may_still_differ() -> None:
    """40 conditions, of which 5 are lost and 1 is won."""
    conditions = np.arange(40)
    a, b = np.zeros(40), np.zeros(40)
    b[:5], a[5] = 1, 1
    found = stats.mean_difference(a, conditions, b, conditions, share=True)
    z, total = 1.959964, 40 + 1.959964**2
    half = z * np.sqrt(((6 + z**2) / total - (4 / total) ** 2) / total)
    assert found.value == pytest.approx(-4 / 40)
    assert (found.low, found.high) == pytest.approx((-4 / total - half, -4 / total + half), rel=1e-6)


@pytest.mark.parametrize("samples", [1, 8])
@pytest.mark.parametrize(("n", "missed"), [(2, 0.12), (8, 0.045), (48, 0.025), (256, 0.025)])
def test_what_differs_in_no_pair_may_still_differ(n: int, missed: float, samples: int) -> None:
    """What the interval excludes, n conditions would have missed in so few cases only; also with several samples of each."""
    right, conditions = np.tile(np.arange(samples) > 0, n).astype(float), np.arange(n).repeat(samples)
    found = stats.mean_difference(right, conditions, right, conditions, share=True)
    assert found.value == 0 and found.high == -found.low and (1 - found.high) ** n <= missed


@given(st.lists(st.sampled_from([-1.0, -0.25, 0.0, 0.5, 1.0]), min_size=2, max_size=60))
def test_a_bounded_mean_lies_in_its_interval_and_that_within_the_ends(values: list[float]) -> None:
    found = stats.bounded_mean(np.array(values), (-1, 1))
    assert -1 <= found.low <= found.value <= found.high <= 1 and found.low < found.high
    mirrored = stats.bounded_mean(-np.array(values), (-1, 1))
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))
    with pytest.raises(ValueError, match="within"):
        stats.bounded_mean(np.array([*values, 1.5]), (-1, 1))


def test_rare_losses_are_covered_where_a_bootstrap_sees_none() -> None:
    """48 conditions, of which 2 % are lost and 0.5 % won: a bootstrap's interval has the truth in three cases of five."""
    rng, runs, hits, bootstrapped = np.random.default_rng(9), 500, 0, 0
    conditions, nothing = np.arange(48), np.zeros(48)
    for run in range(runs):
        lot = rng.random(48)
        difference = np.where(lot < 0.005, 1.0, np.where(lot < 0.025, -1.0, 0.0))
        hits += -0.015 in stats.mean_difference(difference, conditions, nothing, conditions, share=True)
        thin = stats.mean_difference(difference, conditions, nothing, conditions, draws=500, seed=run, share=False)
        bootstrapped += -0.015 in thin
    assert hits / runs >= 0.95 and bootstrapped / runs < 0.8


def test_speedup_closed_form() -> None:
    # Log ratios log 2 and log 8: mean log 4, sd log 4 / sqrt 2, t(1, 0.975) = 12.7062.
    interval = stats.speedup(np.array([2.0, 16]), np.array([1.0, 2]))
    half = 12.706204736 * np.log(4) / np.sqrt(2) / np.sqrt(2)
    assert interval.value == pytest.approx(4)
    assert interval.low == pytest.approx(4 * np.exp(-half)) and interval.high == pytest.approx(4 * np.exp(half))
    assert interval.n == 2


def test_speedup_is_paired_symmetric_and_strict() -> None:
    rng = np.random.default_rng(5)
    own = rng.lognormal(0, 1, 20)
    interval = stats.speedup(30 * own, own)  # the spread between conditions cancels
    assert interval.value == pytest.approx(30) and interval.high - interval.low < 1e-9
    noisy = own * rng.lognormal(0, 0.1, 20)
    forward, back = stats.speedup(noisy, own), stats.speedup(own, noisy)
    assert forward.low == pytest.approx(1 / back.high) and forward.value == pytest.approx(1 / back.value)
    assert stats.speedup(np.array([2, np.nan]), np.array([1, 1.0])).n == 1
    assert np.isnan(stats.speedup(np.array([2.0]), np.array([1.0])).low)
    with pytest.raises(ValueError, match="above 0"):
        stats.speedup(np.array([1.0, 1]), np.array([0.0, 1]))
    with pytest.raises(ValueError, match="equally long"):
        stats.speedup(np.ones(3), np.ones(2))


def test_speedup_coverage() -> None:
    rng, hits = np.random.default_rng(6), 0
    for _ in range(RUNS):
        prompt = rng.lognormal(0, 0.1, 20)
        hits += 8.0 in stats.speedup(8 * prompt * rng.lognormal(0, 0.02, 20), prompt * rng.lognormal(0, 0.02, 20))
    assert 0.90 <= hits / RUNS <= 0.98


def test_over_trainings_closed_form_and_coverage() -> None:
    # No condition differs from another, and nothing is left: the t-interval of the trainings' means.
    values = np.array([0.5, 0.7, 0.6])[:, None].repeat(8, 1)
    found, half = stats.over_trainings(values), 4.3027 * 0.1 / np.sqrt(3)
    assert (found.value, found.n) == (pytest.approx(0.6), 3) and found.high - found.value == pytest.approx(half, rel=1e-3)
    assert np.isnan(stats.over_trainings(values[:1]).low)
    with pytest.raises(ValueError, match=r"\(trainings, conditions\)"):
        stats.over_trainings(values[0])
    rng, hits = np.random.default_rng(8), 0
    for _ in range(1000):
        share = np.clip(0.8 + rng.normal(0, 0.05, (3, 1)) + rng.normal(0, 0.1, (1, 64)), 0, 1)
        hits += 0.8 in stats.over_trainings((rng.random((3, 64)) < share).astype(float))
    assert 0.93 <= hits / 1000 <= 0.98


def test_trainings_that_are_right_in_all_conditions_are_not_certain() -> None:
    found = stats.over_trainings(np.ones((2, 48)), ends=(0, 1))
    assert (found.value, found.high) == (1, 1) and 0.85 < found.low < 0.97
    rng, hits = np.random.default_rng(10), 0
    for _ in range(500):
        share = np.clip(0.98 + rng.normal(0, 0.005, (3, 1)), 0, 1)
        hits += 0.98 in stats.over_trainings((rng.random((3, 64)) < share).astype(float), ends=(0, 1))
    assert hits / 500 >= 0.93


def test_mcnemar_exact() -> None:
    a = np.array([1] * 9 + [0] + [1] * 5 + [0] * 3 + [np.nan])
    b = np.array([0] * 9 + [1] + [1] * 5 + [0] * 3 + [1])
    assert stats.mcnemar(a, b) == stats.mcnemar(b, a) == pytest.approx(2 * (1 + 10) / 2**10)
    assert stats.mcnemar(np.ones(4), np.ones(4)) == 1
    assert stats.mcnemar(np.array([1, 0]), np.array([0, 1])) == 1
    with pytest.raises(ValueError, match="0 and 1"):
        stats.mcnemar(np.array([0.5]), np.array([1.0]))


def test_holm() -> None:
    adjusted = stats.holm(np.array([0.04, 0.01, np.nan, 0.03, 0.5]))
    np.testing.assert_allclose(adjusted, [0.09, 0.04, np.nan, 0.09, 0.5])
    np.testing.assert_allclose(stats.holm(np.array([0.6, 0.7])), [1, 1])
    assert stats.holm(np.array([])).shape == (0,)
