"""Measures of a set of clips: a distance to real clips, and how well hidden factors follow their law.

The features of the distance are fixed, not learned: every frame-to-first-frame change, averaged to a coarse grid. So it
sees where and when colour moves (frozen, slowed or missing objects, collapse onto one outcome); by construction it is
blind to blur, to flicker that leaves the sampled frames alone, and to a wrong first frame. Other measures see those.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from flgbench.data import shapes

FEATURE_FRAMES = (4, 8, 12, 16)
_GRID = 8  # cells a side, each 8x8 pixels
_SCALES = (0.5, 1.0, 2.0)  # multiples of the bandwidth whose kernels are summed


def clip_features(video: torch.Tensor) -> np.ndarray:
    """Features (N, 4 * 8 * 8 * 3) float64 of `video` (N, 17, 64, 64, 3) uint8: change since frame 0, in units of 255.

    Frames 4, 8, 12 and 16 minus frame 0, each averaged over 8x8-pixel cells. The difference takes the static background
    out, which otherwise is most of the variance between clips and tells nothing of motion.
    """
    if video.dtype != torch.uint8 or video.shape[1:] != (shapes.FRAMES, shapes.SIZE, shapes.SIZE, 3):
        raise ValueError(f"expected uint8 video (N, 17, 64, 64, 3), got {video.dtype} {tuple(video.shape)}")
    frames = video[:, (0, *FEATURE_FRAMES)].cpu().float() / 255
    cell = shapes.SIZE // _GRID
    coarse = frames.view(len(video), -1, _GRID, cell, _GRID, cell, 3).mean((3, 5))
    return (coarse[:, 1:] - coarse[:, :1]).flatten(1).numpy().astype(np.float64)


def _squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    square = (x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * x @ y.T
    return np.maximum(square, 0)


def median_bandwidth(features: np.ndarray) -> float:
    """Median distance between two different rows of `features` (N, D): compute it once, on real clips, and keep it."""
    if len(features) < 2:
        raise ValueError(f"a bandwidth needs at least 2 clips, got {len(features)}")
    upper = np.triu_indices(len(features), 1)
    bandwidth = float(np.sqrt(np.median(_squared_distances(features, features)[upper])))
    if bandwidth == 0:
        raise ValueError("more than half of the clips have identical features: no bandwidth")
    return bandwidth


def kernel(x: np.ndarray, y: np.ndarray, bandwidth: float) -> np.ndarray:
    """(N, M) sum over s in 0.5, 1, 2 of exp(-|x - y|^2 / (2 (s bandwidth)^2)); between 0 and 3."""
    square = _squared_distances(x, y)
    return np.sum([np.exp(-square / (2 * (scale * bandwidth) ** 2)) for scale in _SCALES], axis=0)


def mmd_permutation(
    x: np.ndarray, y: np.ndarray, bandwidth: float, permutations: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Unbiased squared MMD (Gretton et al. 2012, eq. 3) of `x` (N, D) and `y` (M, D), and its permutation p-value.

    The p-value (1 + hits) / (1 + permutations) is exact for independent rows: give `x` and `y` different conditions and
    one sample a condition. With the same conditions in both the test is conservative.
    """
    n, m = len(x), len(y)
    if n < 2 or m < 2:
        raise ValueError(f"an MMD needs at least 2 clips on each side, got {n} and {m}")
    pooled = np.concatenate([x, y])
    gram = kernel(pooled, pooled, bandwidth)
    np.fill_diagonal(gram, 0)
    order = np.random.default_rng(seed).permuted(np.tile(np.arange(n + m), (permutations, 1)), axis=1)
    member = np.zeros((permutations + 1, n + m))
    member[0, :n] = 1  # row 0: as observed
    np.put_along_axis(member[1:], order[:, :n], 1, axis=1)
    sums = member @ gram
    within_x = (sums * member).sum(1)
    across = (sums * (1 - member)).sum(1)
    within_y = gram.sum() - within_x - 2 * across
    values = within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * across / (n * m)
    # Rounding must not break ties between the observed split and permutations that equal it.
    hits = int((values[1:] >= values[0] - 1e-12).sum())
    return float(values[0]), (1 + hits) / (1 + permutations)


def mmd(x: np.ndarray, y: np.ndarray, bandwidth: float) -> float:
    """The unbiased squared MMD alone."""
    return mmd_permutation(x, y, bandwidth, permutations=0)[0]


def support(generated: np.ndarray, real: np.ndarray, neighbours: int = 5) -> dict[str, float]:
    """How well two sets of features (N, D) cover each other, by balls that reach to a row's k-th neighbour in its own set.

    'precision' is the share of generated rows inside a ball of a real one, 'recall' of real rows inside one of a generated
    (Kynkaanniemi et al. 2019); 'density' how many real balls hold a generated row, over k, and 'coverage' the share of
    real balls that hold one at all (Naeem et al. 2020). All depend on N, so the sets must be equally large. A shrunk set
    has a precision of 1: read it beside the recall.
    """
    if generated.shape != real.shape:
        raise ValueError(f"the two sets must be equally large, got {generated.shape} and {real.shape}")
    if len(real) <= neighbours:
        raise ValueError(f"{neighbours} neighbours need more than {neighbours} clips, got {len(real)}")
    across = _squared_distances(generated, real)
    in_real = across <= _reach(real, neighbours)[None]
    return {
        "precision": float(in_real.any(1).mean()),
        "recall": float((across <= _reach(generated, neighbours)[:, None]).any(0).mean()),
        "density": float(in_real.sum(1).mean() / neighbours),
        "coverage": float(in_real.any(0).mean()),
    }


def _reach(features: np.ndarray, neighbours: int) -> np.ndarray:
    """Squared distance (N,) of every row to its k-th neighbour; the row itself comes first."""
    return np.partition(_squared_distances(features, features), neighbours, axis=1)[:, neighbours]


def vendi(features: np.ndarray, bandwidth: float) -> float:
    """Effective number of different rows of `features` (N, D): exp of the entropy of the eigenvalues of K / N, in [1, N]
    (Friedman and Dieng 2023), with a Gaussian kernel. It grows with N: compare equally large sets only."""
    gram = np.exp(-_squared_distances(features, features) / (2 * bandwidth**2))
    values = np.linalg.eigvalsh(gram / len(features))
    values = values[values > 0]
    return float(np.exp(-(values * np.log(values)).sum()))


def class_counts(observed: np.ndarray, classes: int) -> np.ndarray:
    """How often each class index occurs in `observed` (NaN = not observable, left out)."""
    seen = np.asarray(observed, np.float64)
    seen = seen[np.isfinite(seen)]
    if not np.all((seen >= 0) & (seen < classes) & (seen == np.floor(seen))):
        raise ValueError(f"class indices must be whole numbers from 0 to {classes - 1}")
    return np.bincount(seen.astype(np.int64), minlength=classes)


def total_variation(observed: np.ndarray, law: Sequence[float]) -> float:
    """Half the sum of |observed share - law| over the classes, in [0, 1]; NaN when nothing was observed.

    Always read it beside `unobserved_share`, and against `total_variation_null`: sampling alone makes it positive.
    """
    counts = class_counts(observed, len(law))
    if not counts.sum():
        return float("nan")
    return float(0.5 * np.abs(counts / counts.sum() - np.asarray(law)).sum())


def seed_diversity(observed: np.ndarray, conditions: np.ndarray, law: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Conditions seen with two or more seeds, and for each the share of its pairs of seeds whose classes differ, over
    1 - sum p^2, what independent draws from the law give on average: 1 is right, 0 is the same outcome whatever the seed.

    A total variation cannot see that: one outcome a condition still follows the law over many conditions.
    """
    observed, conditions = np.asarray(observed, np.float64), np.asarray(conditions)
    seen = np.isfinite(observed)
    names, values = [], []
    for condition in np.unique(conditions[seen]):
        counts = class_counts(observed[seen & (conditions == condition)], len(law))
        n = counts.sum()
        if n >= 2:
            names.append(condition)
            values.append((n**2 - (counts**2).sum()) / (n * (n - 1)))
    expected = 1 - float(np.square(law).sum())
    return np.array(names, conditions.dtype), np.array(values, np.float64) / expected


def unobserved_share(observed: np.ndarray) -> float:
    """Share of clips whose factor could not be told; NaN for no clips."""
    observed = np.asarray(observed, np.float64)
    return float(np.isnan(observed).mean()) if observed.size else float("nan")


def total_variation_null(
    law: Sequence[float], count: int, quantile: float = 0.95, draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Mean and quantile of the total variation of `count` independent draws from the law itself."""
    shares = np.random.default_rng(seed).multinomial(count, law, draws) / count
    values = 0.5 * np.abs(shares - np.asarray(law)).sum(1)
    return float(values.mean()), float(np.quantile(values, quantile))
