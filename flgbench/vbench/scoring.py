"""How VBench-I2V makes one number of nine dimensions (its scripts/constant.py and cal_i2v_final_score.py, Apache-2.0)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from flgbench.errors import UsageError
from flgbench.metrics.stats import Interval

PARTS = ("i2v", "quality")


@dataclass(frozen=True)
class Dimension:
    """`low` and `high` are mapped to 0 and 1 (nothing is clipped); `per_video` divides the values of single videos."""

    part: str
    weight: float
    low: float = 0.0
    high: float = 1.0
    per_video: float = 1.0

    def normalised(self, raw: np.ndarray | float) -> np.ndarray | float:
        return (raw - self.low) / (self.high - self.low)


DIMENSIONS: Mapping[str, Dimension] = {
    "camera_motion": Dimension("i2v", 0.1),
    "i2v_subject": Dimension("i2v", 1.0, 0.1462),
    "i2v_background": Dimension("i2v", 1.0, 0.2615),
    "subject_consistency": Dimension("quality", 1.0, 0.1462),
    "background_consistency": Dimension("quality", 1.0, 0.2615),
    "motion_smoothness": Dimension("quality", 1.0, 0.7060, 0.9975),
    "dynamic_degree": Dimension("quality", 0.5),
    "aesthetic_quality": Dimension("quality", 1.0),
    "imaging_quality": Dimension("quality", 1.0, per_video=100.0),
}


def totals(raw: Mapping[str, np.ndarray | float]) -> dict[str, np.ndarray | float]:
    """'i2v', 'quality' and 'total' from the raw score of each dimension (numbers, or arrays of bootstrap draws).

    Raises UsageError unless all nine are there: VBench's own script would count a missing one as 0 and go on.
    """
    if missing := [name for name in DIMENSIONS if name not in raw]:
        raise UsageError(f"no VBench total without all nine dimensions: {', '.join(missing)} missing")
    found: dict[str, np.ndarray | float] = {}
    for part in PARTS:
        members = {name: d for name, d in DIMENSIONS.items() if d.part == part}
        weighted = sum(d.weight * d.normalised(raw[name]) for name, d in members.items())
        found[part] = weighted / sum(d.weight for d in members.values())
    found["total"] = (found["i2v"] + found["quality"]) / 2
    return found


def intervals(scores: Mapping[str, Mapping[str, list[float]]], draws: int = 10_000, seed: int = 0) -> dict[str, Interval]:
    """Raw scores of the dimensions, and the totals where they exist, with 95 % intervals.

    `scores` maps dimension to image to the values of its videos. Images are resampled, the same ones for all dimensions:
    videos of one image are not independent. `n` counts images.
    """
    images = sorted({image for by_image in scores.values() for image in by_image})
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(images), np.full(len(images), 1 / len(images)), draws).astype(float)
    values: dict[str, np.ndarray | float] = {}
    drawn: dict[str, np.ndarray | float] = {}
    counted: dict[str, int] = {}
    for name, by_image in scores.items():
        sums = np.array([sum(by_image.get(image, ())) for image in images])
        counts = np.array([len(by_image.get(image, ())) for image in images])
        values[name] = float(sums.sum() / counts.sum())
        with np.errstate(invalid="ignore"):  # a draw may hold none of the images of a dimension
            drawn[name] = (weights @ sums) / (weights @ counts)
        counted[name] = int((counts > 0).sum())
    if set(DIMENSIONS) <= set(scores):
        values |= totals(values)
        drawn |= totals(drawn)
    found = {}
    for name, value in values.items():
        n = counted.get(name, len(images))
        low, high = np.nanquantile(drawn[name], [0.025, 0.975]) if n > 1 else (np.nan, np.nan)
        found[name] = Interval(float(value), float(low), float(high), n)
    return found
