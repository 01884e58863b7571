"""Do the measures notice what they are there for? Real clips are damaged in known ways, and every measure is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from flgbench.data import shapes, sound
from flgbench.metrics import sets
from flgbench.metrics.corruptions import CORRUPTIONS, SOUND_CORRUPTIONS, Corruption, seeds_of
from flgbench.metrics.learned import judged
from flgbench.metrics.stats import Interval, mean_difference
from flgbench.metrics.table import ALL_METRICS, METRICS, SOUNDING
from flgbench.metrics.truth import measure

Seen = Literal["caught", "blind", "wrong way"]
LEVEL = 0.05  # p-value below which a set of clips counts as told apart from real ones
PER_CLIP = (*(name for name in METRICS if not name.startswith("observed_")), "named_all", "clip_alignment")
HIDDEN = ("turn", "side", "entry")
MEASURES = (*PER_CLIP, "turn_diversity", *(f"hidden_tv_{k}" for k in HIDDEN), "mmd")

UNTOUCHED = Corruption("none", lambda video, factors: video, "")


@dataclass(frozen=True)
class Finding:
    """What one measure says of one kind of damage. `value` is the damaged clips', `real` the real ones'.

    `strength`: the change towards worse in units of half its 95 % interval, above 1 when caught; for set measures the
    distance from the real clips' own in units of the null's. NaN where nothing could be measured.
    """

    corruption: str
    measure: str
    real: float
    value: float
    strength: float
    seen: Seen
    designated: bool


def check(conditions: int = 64, on_progress: Callable[[int, int], None] = lambda done, of: None) -> list[Finding]:
    """One finding for every corruption (and the undamaged clips, named 'none') and measure.

    `conditions` (at least 16) real validation clips, and an eighth as many conditions with eight seeds each.
    """
    if conditions < 16:
        raise ValueError(f"a self-test needs at least 16 conditions, got {conditions}")
    factors = shapes.draw_factors("validation", np.arange(conditions))
    repeated, condition = seeds_of(conditions // 8)
    real = shapes.render(factors), shapes.render(repeated)
    others = sets.clip_features(shapes.render(shapes.draw_factors("train", np.arange(512))))
    bandwidth = sets.median_bandwidth(others)
    null = _measured(real, factors, repeated, condition, others, bandwidth)
    findings: list[Finding] = []
    for done, corruption in enumerate((UNTOUCHED, *CORRUPTIONS)):
        clips = tuple(corruption.damage(v, f) for v, f in zip(real, (factors, repeated), strict=True))
        found = _measured(clips, factors, repeated, condition, others, bandwidth)
        findings += [_finding(corruption, name, null, found) for name in MEASURES]
        on_progress(done + 1, len(CORRUPTIONS) + 1)
    return findings


def check_sound(conditions: int = 64) -> list[Finding]:
    """The same of real validation clips with a sound and the measures of how they follow it."""
    factors = sound.draw_factors("validation", np.arange(conditions))
    real = shapes.render(factors)
    null = measure(real, factors)
    findings = []
    for corruption in (UNTOUCHED, *SOUND_CORRUPTIONS):
        found = measure(corruption.damage(real, factors), factors)
        findings += [_finding(corruption, name, null, found) for name in SOUNDING]
    return findings


def uncaught(findings: list[Finding]) -> list[Finding]:
    """Designated measures that did not notice their damage."""
    return [f for f in findings if f.designated and f.seen != "caught"]


def _measured(
    clips: tuple[torch.Tensor, ...],
    factors: shapes.Factors,
    repeated: shapes.Factors,
    condition: np.ndarray,
    others: np.ndarray,
    bandwidth: float,
) -> dict[str, np.ndarray]:
    """Every measure's values: one a clip, one a condition (turn_diversity), or value and p-value (mmd)."""
    once, again = clips
    found = measure(once, factors) | judged(once, factors)[0]
    seen = measure(again, repeated)["observed_turn"]
    found["turn_diversity"] = sets.seed_diversity(seen, condition, shapes.LAWS["turn"])[1]
    found["mmd"] = np.array(sets.mmd_permutation(sets.clip_features(once), others, bandwidth))
    return found


def _finding(corruption: Corruption, name: str, null: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> Finding:
    designated = name == corruption.designated
    if name.startswith("hidden_tv_"):
        return _of_law(corruption.name, name, null, found, designated)
    real, value = null[name], found[name]
    if name == "mmd":
        strength = float(np.log(value[1]) / np.log(LEVEL))
        seen: Seen = "caught" if value[1] < LEVEL else "blind"
        return Finding(corruption.name, name, float(real[0]), float(value[0]), strength, seen, designated)
    info = ALL_METRICS[name]
    share = info.unit == "share"
    if info.higher_is_better is None:  # both tails are bad: what counts is the distance from the target
        assert info.target is not None
        change = _change(abs(value - info.target), abs(real - info.target), share)
    else:
        change = _change(value, real, share)
    strength, seen = _strength(change, worse=-1.0 if info.higher_is_better else 1.0)
    return Finding(corruption.name, name, _mean(real), _mean(value), strength, seen, designated)


def _change(value: np.ndarray, real: np.ndarray, share: bool) -> Interval:
    """Damaged minus real, paired by position; what damage made unobservable is left out of both."""
    length = min(len(value), len(real))
    at = np.arange(length)
    return mean_difference(value[:length], at, real[:length], at, draws=2000, share=share)


def _strength(change: Interval, worse: float) -> tuple[float, Seen]:
    """Caught: the interval of the change lies on the worse side of 0; on the other side it goes the wrong way."""
    if not np.isfinite(change.low):
        return float("nan"), "blind"
    half = (change.high - change.low) / 2
    strength = worse * change.value / half if half > 0 else worse * float(np.sign(change.value)) * 100
    if change.low <= 0 <= change.high:
        return float(np.clip(strength, -1, 1)), "blind"
    return float(np.clip(strength, -100, 100)), "caught" if strength > 0 else "wrong way"


def _of_law(
    corruption: str, name: str, null: dict[str, np.ndarray], found: dict[str, np.ndarray], designated: bool
) -> Finding:
    """A total variation is caught when it is above what 95 % of samples of the law itself show."""
    factor = name.removeprefix("hidden_tv_")
    law = shapes.LAWS[factor]
    observed = found[f"observed_{factor}"]
    value, count = sets.total_variation(observed, law), int(np.isfinite(observed).sum())
    real = sets.total_variation(null[f"observed_{factor}"], law)
    limit = sets.total_variation_null(law, count)[1] if count else float("nan")
    strength = value / limit if count else float("nan")
    return Finding(corruption, name, real, value, strength, "caught" if strength > 1 else "blind", designated)


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")
