"""Intervals and tests. The unit of resampling is the condition: samples of one condition are not independent."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import special

DRAWS = 10_000
_BATCH = 2_000  # bootstrap draws at a time: keeps memory small


@dataclass(frozen=True)
class Interval:
    """A value with its interval (95 % unless asked otherwise) and the number of units `n` it rests on.

    Without data everything is NaN and n is 0; bounds are NaN where n does not allow any.
    """

    value: float
    low: float
    high: float
    n: int

    def __contains__(self, number: float) -> bool:
        return self.low <= number <= self.high


_NAN = float("nan")


def condition_means(values: np.ndarray, conditions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted distinct conditions and the mean of each one's finite values; conditions without any are left out."""
    values, conditions = np.asarray(values, np.float64), np.asarray(conditions)
    if values.shape != conditions.shape or values.ndim != 1:
        raise ValueError(f"values {values.shape} and conditions {conditions.shape} must be 1-D and equally long")
    keep = np.isfinite(values)
    names, index = np.unique(conditions[keep], return_inverse=True)
    return names, np.bincount(index, values[keep], len(names)) / np.bincount(index, minlength=len(names))


@lru_cache(maxsize=3)  # a report asks a thousand times for the same few sizes
def _resamples(n: int, draws: int, seed: int) -> np.ndarray:
    """How often each of `n` units is drawn in each resample: (draws, n) float64 whole numbers, every row of sum n."""
    rng = np.random.default_rng(seed)
    counts = np.empty((draws, n))
    for start in range(0, draws, _BATCH):
        size = min(_BATCH, draws - start)
        drawn = rng.integers(0, n, (size, n)) + n * np.arange(size)[:, None]
        counts[start : start + size] = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
    return counts


def _bootstrap(means: np.ndarray, level: float, draws: int, seed: int, skewed: bool) -> Interval:
    """Bootstrap interval of the mean of one number per condition, at quantiles widened for small n (Hesterberg 2015, 4.1).

    `skewed` adds the BCa corrections (Efron 1987). They are estimates, too: where there is no skew to correct they only add
    noise, and cost 2 points of coverage with 64 differences of 0/1 values.
    """
    n, value = len(means), float(means.mean()) if len(means) else _NAN
    if n < 2:
        return Interval(value, _NAN, _NAN, n)
    if np.ptp(means) == 0:
        return Interval(value, value, value, n)
    boot = np.sort(_resamples(n, draws, seed) @ means / n)
    # Ties count half, as with 0/1 values; the shift below is the median bias on the normal scale.
    margin = 1e-12 * max(1.0, abs(value))
    below = 0.5 * (np.searchsorted(boot, value - margin) + np.searchsorted(boot, value + margin)) / draws
    bias = special.ndtri(np.clip(below, 1 / draws, 1 - 1 / draws)) if skewed else 0.0
    centred = means - value  # of a mean, the jackknife's skewness is that of the sample
    acceleration = (centred**3).sum() / (6 * (centred**2).sum() ** 1.5) if skewed else 0.0
    reach = np.sqrt(n / (n - 1)) * special.stdtrit(n - 1, 0.5 + level / 2)
    z = bias + np.array([-reach, reach])
    low, high = np.quantile(boot, special.ndtr(bias + z / (1 - acceleration * z)))
    return Interval(value, float(low), float(high), n)


def mean_over_conditions(
    values: np.ndarray,
    conditions: np.ndarray,
    *,
    share: bool,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """Mean over conditions of each condition's mean, with its interval; NaN values are left out.

    Of a `share` by `bounded_mean`: conditions that are alike leave a bootstrap no spread to see. With two conditions it
    held the truth in as few as 68 % of simulated runs, this in 88; with 256, in 90 and 94. Of other measures by a BCa
    bootstrap of conditions.
    """
    _, means = condition_means(values, conditions)
    if share:
        return bounded_mean(means, (0.0, 1.0), level)
    return _bootstrap(means, level, draws, seed, skewed=True)


def mean_difference(
    a: np.ndarray,
    conditions_a: np.ndarray,
    b: np.ndarray,
    conditions_b: np.ndarray,
    *,
    share: bool,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """Mean of (a - b), paired by condition, with its interval; conditions that only one has are left out.

    Of a `share`, in which most pairs do not differ at all, by `bounded_mean`; of other measures by the bootstrap.
    """
    names_a, means_a = condition_means(a, conditions_a)
    names_b, means_b = condition_means(b, conditions_b)
    _, at_a, at_b = np.intersect1d(names_a, names_b, assume_unique=True, return_indices=True)
    difference = means_a[at_a] - means_b[at_b]
    if share:
        return bounded_mean(difference, (-1.0, 1.0), level)
    return _bootstrap(difference, level, draws, seed, skewed=False)


def bounded_mean(values: np.ndarray, ends: tuple[float, float], level: float = 0.95) -> Interval:
    """Mean of `values` (n,), which lie between `ends`, with Agresti and Coull's interval (1998) for anything bounded.

    It is the normal interval of the values and of z² / 2 more at either end, as if nearly two pairs had come out each way:
    what was never seen may still happen. A bootstrap of n equal pairs sees no spread at all, where n pairs miss a difference
    of shares of 3.7 / n in every fortieth case; from about 50 pairs on this does not exclude it.
    """
    values = np.asarray(values, np.float64)
    n, value = len(values), float(values.mean()) if len(values) else _NAN
    if n < 2:
        return Interval(value, _NAN, _NAN, n)
    if values.min() < ends[0] or values.max() > ends[1]:
        raise ValueError(f"expected values within {ends}, got {values.min()} to {values.max()}")
    z, (first, last) = float(special.ndtri(0.5 + level / 2)), ends
    total = n + z**2
    middle = (float(values.sum()) + z**2 * (first + last) / 2) / total
    square = (float((values**2).sum()) + z**2 * (first**2 + last**2) / 2) / total
    half = z * float(np.sqrt((square - middle**2) / total))
    return Interval(value, max(first, middle - half), min(last, middle + half), n)


def speedup(reference_seconds: np.ndarray, seconds: np.ndarray, level: float = 0.95) -> Interval:
    """How many times faster: geometric mean of reference / own per pair, with a t-interval on the log ratio.

    Both arrays (n,) hold the same pairs in the same order; pairs with a NaN are left out. Bounds need 2 pairs.
    """
    reference_seconds, seconds = np.asarray(reference_seconds, np.float64), np.asarray(seconds, np.float64)
    if reference_seconds.shape != seconds.shape or seconds.ndim != 1:
        raise ValueError(f"pairs need equally long 1-D arrays, got {reference_seconds.shape} and {seconds.shape}")
    keep = np.isfinite(reference_seconds) & np.isfinite(seconds)
    reference_seconds, seconds = reference_seconds[keep], seconds[keep]
    if (reference_seconds <= 0).any() or (seconds <= 0).any():
        raise ValueError("times must be above 0")
    n = len(seconds)
    if n == 0:
        return Interval(_NAN, _NAN, _NAN, 0)
    logs = np.log(reference_seconds / seconds)
    mean = float(logs.mean())
    if n == 1:
        return Interval(float(np.exp(mean)), _NAN, _NAN, 1)
    half = float(special.stdtrit(n - 1, 0.5 + level / 2)) * float(logs.std(ddof=1)) / np.sqrt(n)
    return Interval(float(np.exp(mean)), float(np.exp(mean - half)), float(np.exp(mean + half)), n)


def over_trainings(values: np.ndarray, level: float = 0.95, ends: tuple[float, float] | None = None) -> Interval:
    """Mean of `values` (trainings S, conditions C) with an interval for other trainings on other conditions; n = S.

    Both are sampled. Two-way random effects: the variance of the mean is (MS_S + MS_C - MS_SC) / SC from the mean squares
    of trainings, conditions and rest, and the t-quantile has Satterthwaite's degrees of freedom. Values between known
    `ends` get two conditions more at either, as in `bounded_mean`.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise ValueError(f"expected finite values (trainings, conditions), got {values.shape}")
    s, value = len(values), float(values.mean()) if values.size else _NAN
    if min(values.shape) < 2:
        return Interval(value, _NAN, _NAN, s)
    low, high = ends or (-np.inf, np.inf)
    if ends:
        values = np.column_stack([values, np.full((s, 4), (*ends, *ends))])
    c, middle = values.shape[1], float(values.mean())
    by_training, by_condition = values.mean(1, keepdims=True), values.mean(0, keepdims=True)
    rest = values - by_training - by_condition + middle
    squares = np.array([c * by_training.var(ddof=1), s * by_condition.var(ddof=1), (rest**2).sum() / ((s - 1) * (c - 1))])
    freedom = np.array([s - 1, c - 1, (s - 1) * (c - 1)])
    # An estimate of a variance can come out below that of one of its parts, by chance.
    variance = max(squares @ [1, 1, -1], squares[:2].max())
    if variance == 0:
        return Interval(value, value, value, s)
    degrees = max(1.0, variance**2 / (squares**2 / freedom).sum())
    half = float(special.stdtrit(degrees, 0.5 + level / 2)) * float(np.sqrt(variance / (s * c)))
    return Interval(value, max(low, middle - half), min(high, middle + half), s)


def mcnemar(a: np.ndarray, b: np.ndarray) -> float:
    """Two-sided exact p-value that two paired 0/1 outcomes (n,) are right equally often; pairs with a NaN are left out.

    One pair a condition: several samples of one condition are not independent.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"pairs need equally long arrays, got {a.shape} and {b.shape}")
    keep = np.isfinite(a) & np.isfinite(b)
    a, b = a[keep], b[keep]
    if not (np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all()):
        raise ValueError("McNemar's test needs values 0 and 1")
    only_a, only_b = int((a > b).sum()), int((b > a).sum())
    if only_a + only_b == 0:
        return 1.0
    return min(1.0, 2 * float(special.bdtr(min(only_a, only_b), only_a + only_b, 0.5)))


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's adjusted p-values (n,) of a family of tests; a NaN stays NaN and is not counted in the family."""
    p_values = np.asarray(p_values, np.float64)
    adjusted = np.full(p_values.shape, np.nan)
    known = np.flatnonzero(np.isfinite(p_values))
    order = known[np.argsort(p_values[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p_values[order] * factors))
    return adjusted
