"""The set distance against closed forms and nulls, and hidden-factor coverage."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import special

from flgbench.data import shapes
from flgbench.metrics import sets


def test_kernel_and_bandwidth_closed_form() -> None:
    x = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    distances = [5.0, 1.0, np.hypot(3, 3)]
    bandwidth = sets.median_bandwidth(x)
    assert bandwidth == pytest.approx(np.median(distances))
    expected = sum(np.exp(-25 / (2 * (s * 2.0) ** 2)) for s in (0.5, 1, 2))
    assert sets.kernel(x[:1], x[1:2], 2.0)[0, 0] == pytest.approx(expected)
    assert sets.kernel(x, x, 2.0).diagonal() == pytest.approx(3)


def test_mmd_matches_its_definition() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 3)), rng.normal(size=(5, 3)) + 0.5

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return sum(np.exp(-((a - b) ** 2).sum() / (2 * (s * 1.3) ** 2)) for s in (0.5, 1, 2))

    xx = np.mean([k(x[i], x[j]) for i in range(7) for j in range(7) if i != j])
    yy = np.mean([k(y[i], y[j]) for i in range(5) for j in range(5) if i != j])
    xy = np.mean([k(a, b) for a in x for b in y])
    assert sets.mmd(x, y, 1.3) == pytest.approx(xx + yy - 2 * xy)
    assert sets.mmd_permutation(x, y, 1.3)[0] == pytest.approx(xx + yy - 2 * xy)


def test_mmd_of_two_gaussians_is_the_closed_form() -> None:
    """Unit Gaussians, means m apart: E k(x, y) = (v / (v + 2))^(d/2) exp(-m^2 / (2 (v + 2))) with v = s^2."""
    rng, d, shift, bandwidth = np.random.default_rng(1), 3, 1.0, 2.0
    expected = sum(
        2 * (v / (v + 2)) ** (d / 2) * (1 - np.exp(-(shift**2) / (2 * (v + 2))))
        for v in ((s * bandwidth) ** 2 for s in (0.5, 1, 2))
    )
    moved = np.array([shift, 0, 0])
    values = [sets.mmd(rng.normal(size=(100, d)), rng.normal(size=(100, d)) + moved, bandwidth) for _ in range(60)]
    assert np.mean(values) == pytest.approx(expected, abs=4 * np.std(values) / np.sqrt(60))
    assert np.std(values) / np.sqrt(60) < 0.1 * expected


def test_mmd_null_is_unbiased_with_uniform_p() -> None:
    rng = np.random.default_rng(2)
    draws = [sets.mmd_permutation(rng.normal(size=(24, 4)), rng.normal(size=(32, 4)), 2.0, 199, i) for i in range(200)]
    values, p = np.array(draws).T
    assert abs(values.mean()) < 4 * values.std() / np.sqrt(200)
    assert (values < 0).any()  # unbiased, so not clipped at 0
    # Kolmogorov-Smirnov distance to the uniform law; the bound is its 0.1 % point.
    distance = np.abs(np.sort(p) - np.arange(1, 201) / 200).max()
    assert special.kolmogorov(distance * np.sqrt(200)) > 0.001


def test_mmd_sees_a_shift_and_is_seeded() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(60, 4)), rng.normal(size=(60, 4)) + 0.8
    assert sets.mmd_permutation(x, y, 2.0)[1] <= 0.002
    assert sets.mmd_permutation(x, y, 2.0, seed=5) == sets.mmd_permutation(x, y, 2.0, seed=5)
    assert sets.mmd_permutation(x, x, 2.0)[1] > 0.9


def test_mmd_refuses_sets_that_are_too_small() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        sets.mmd(np.zeros((1, 2)), np.zeros((5, 2)), 1.0)
    with pytest.raises(ValueError, match="identical"):
        sets.median_bandwidth(np.zeros((5, 2)))


def test_clip_features_tell_frozen_slow_and_collapsed_clips_from_real_ones() -> None:
    real = sets.clip_features(shapes.render(shapes.draw_factors("validation", range(192))))
    assert real.shape == (192, 4 * 8 * 8 * 3)
    bandwidth = sets.median_bandwidth(real)
    factors = shapes.draw_factors("test", range(128))
    video = shapes.render(factors)

    def p(clips: object) -> float:
        return sets.mmd_permutation(sets.clip_features(clips), real, bandwidth)[1]  # type: ignore[arg-type]

    assert p(video) > 0.05
    assert p(video[:, :1].expand_as(video)) < 0.005
    assert p(video[:, [t // 2 for t in range(17)]]) < 0.005
    assert p(shapes.render(dataclasses.replace(factors, turn=np.zeros_like(factors.turn)))) < 0.02
    assert p(video[np.arange(128) % 8]) < 0.005


def test_clip_features_closed_form() -> None:
    video = shapes.render(shapes.draw_factors("test", [0]))
    video[:] = 51
    video[:, 8, :8, 8:16, 1] = 102  # one cell, one channel, one of the sampled frames
    features = sets.clip_features(video).reshape(4, 8, 8, 3)
    assert features[1, 0, 1, 1] == pytest.approx(0.2)
    assert np.count_nonzero(np.abs(features) > 1e-7) == 1


def test_support_closed_form() -> None:
    """On a line with k = 1: real at 0, 1, 10, 11 reach 1 far; generated at 0.5, 1.5, 30, 40 reach 1, 1, 10, 10 far."""
    real, generated = (np.array(v, float)[:, None] for v in ([0, 1, 10, 11], [0.5, 1.5, 30, 40]))
    assert sets.support(generated, real, 1) == {"precision": 0.5, "recall": 0.5, "density": 0.75, "coverage": 0.5}
    assert sets.support(real, real, 1) == {"precision": 1, "recall": 1, "density": 2, "coverage": 1}


def test_support_refuses_sets_that_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="equally large"):
        sets.support(np.zeros((6, 2)), np.zeros((7, 2)))
    with pytest.raises(ValueError, match="more than 5 clips, got 5"):
        sets.support(np.zeros((5, 2)), np.zeros((5, 2)))


def test_vendi_counts_what_is_different() -> None:
    far = 1e3 * np.eye(7)
    assert sets.vendi(far, 1.0) == pytest.approx(7)
    assert sets.vendi(np.zeros((7, 3)), 1.0) == pytest.approx(1)
    assert sets.vendi(far[[0, 0, 1, 1]], 1.0) == pytest.approx(2)


def test_collapse_costs_recall_and_vendi_but_not_precision() -> None:
    real = sets.clip_features(shapes.render(shapes.draw_factors("validation", range(128))))
    video = shapes.render(shapes.draw_factors("test", range(128)))
    collapsed = sets.clip_features(video[np.arange(128) % 8])
    fresh = sets.clip_features(video)
    bandwidth = sets.median_bandwidth(real)
    null, after = sets.support(fresh, real), sets.support(collapsed, real)
    assert min(null["recall"], null["coverage"], null["precision"]) > 0.6
    assert after["recall"] < 0.2 and after["coverage"] < 0.3 and after["precision"] > 0.5
    assert sets.vendi(fresh, bandwidth) / sets.vendi(real, bandwidth) == pytest.approx(1, abs=0.2)
    assert sets.vendi(collapsed, bandwidth) / sets.vendi(real, bandwidth) < 0.5


def test_total_variation_closed_form() -> None:
    law = (0.25,) * 4
    assert sets.total_variation(np.array([0.0, 1, 2, 3]), law) == 0
    assert sets.total_variation(np.zeros(8), law) == pytest.approx(0.75)
    observed = np.array([0, 0, 1, np.nan])
    assert sets.total_variation(observed, (0.5, 0.5)) == pytest.approx(1 / 6)
    assert sets.unobserved_share(observed) == 0.25
    assert np.isnan(sets.total_variation(np.full(3, np.nan), law)) and sets.unobserved_share(np.full(3, np.nan)) == 1
    for wrong in (4.0, -1.0, 0.5):
        with pytest.raises(ValueError, match="whole numbers"):
            sets.total_variation(np.array([wrong]), law)


def test_total_variation_null() -> None:
    # Two classes, one draw: always off by one half. Two draws: 0 or one half, each with probability one half.
    assert sets.total_variation_null((0.5, 0.5), 1) == (0.5, 0.5)
    mean, high = sets.total_variation_null((0.5, 0.5), 2)
    assert mean == pytest.approx(0.25, abs=0.02) and high == 0.5
    turns = shapes.draw_factors("test", range(512)).turn.astype(float)
    assert sets.total_variation(turns, shapes.LAWS["turn"]) <= sets.total_variation_null(shapes.LAWS["turn"], 512, 0.999)[1]
