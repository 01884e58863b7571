"""Does a cell keep the reference's quality and run faster, and which may be compared? Pure functions of `RunData`."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import Literal

import numpy as np

from flgbench.metrics.stats import Interval, bounded_mean
from reports.aggregates import estimate, paired, paired_difference, remembered, speedups
from reports.catalogue import HEADLINE
from reports.data import Cell, RunData

KEEP = 0.99  # a method may win only at this share of the teacher's quality
# Fields of the evaluation card that forbid a comparison where they differ.
MUST_AGREE = ("conditions", "conditions_sha256", "seed_rule", "dtype", "attention", "torch", "diffusers")
Answer = Literal["wins", "indistinguishable", "below", "reference", "control", "undecided", "failed"]


@dataclass(frozen=True)
class Verdict:
    answer: Answer
    why: str
    difference: Interval | None = None  # headline metric, cell minus reference, paired


@remembered
def verdict(run: RunData, cell: Cell) -> Verdict:
    """Does the cell keep 99 % of the reference's headline quality, beyond doubt, and run faster?

    `wins`: the interval of the paired difference lies at or above −1 % of the reference, and the denoise speed-up's
    above 1. `below`: the interval of the difference lies below −1 %, or the seeds of one condition differ less than the
    reference's (`less_diverse`): right clips that are always the same one are no success. Otherwise `indistinguishable`.
    """
    if cell.kind == "control":
        return Verdict("control", "shown to read the others, not ranked")
    if cell.unfinished:
        return _undecided(f"not finished: {cell.reason or cell.status}")
    if cell.failed:
        return Verdict("failed", f"{cell.status}: {cell.reason or 'no reason recorded'}")
    reference = run.reference
    if cell.kind == "reference" or reference is None:
        return Verdict("reference", "what the others are compared with") if reference else _undecided("no reference")
    if apart := differences(cell, reference):
        return _undecided(f"not compared, its evaluation card differs: {'; '.join(apart)}")
    pairs = paired(run, cell.cell, reference.cell, HEADLINE)
    if pairs["condition"].nunique() < 2:
        return _undecided(estimate(run, cell.cell, HEADLINE).reason or "fewer than two conditions in common")
    difference = paired_difference(run, cell.cell, reference.cell, HEADLINE)
    assert difference is not None
    allowed = -(1 - KEEP) * float(pairs.groupby("condition")["reference"].mean().mean())
    value, low, high = (f"{100 * x:+.1f}".replace("-", "−") for x in (difference.value, difference.low, difference.high))
    spoken = f"{HEADLINE} accuracy {value} points [{low}, {high}]"
    if poorer := less_diverse(run, cell, reference):
        return Verdict("below", f"{spoken}; {poorer}", difference)
    if difference.high < allowed:
        return Verdict("below", f"{spoken}: under 99 % of the reference", difference)
    if difference.low < allowed:
        return Verdict("indistinguishable", f"{spoken}: 99 % of the reference is inside the interval", difference)
    speed = speedups(run, cell).denoise
    if speed.low is None or speed.low <= 1:
        return Verdict("indistinguishable", f"{spoken}: kept, but not shown to be faster ({speed.text()})", difference)
    return Verdict("wins", f"{spoken}: at least 99 % of the reference, {speed.text()} faster", difference)


def conditions_to_win(reference: float) -> int:
    """So many conditions the difference needs to be sure of 99 % of the reference's share, where no pair differs."""
    return next(n for n in count(2) if bounded_mean(np.zeros(n), (-1, 1)).low >= -(1 - KEEP) * reference)


def less_diverse(run: RunData, cell: Cell, reference: Cell) -> str:
    """What says that seeds of one condition turn alike more often than the reference's, by separate intervals; or ''."""
    mine, theirs = estimate(run, cell.cell, "turn_diversity"), estimate(run, reference.cell, "turn_diversity")
    if mine.high is None or theirs.low is None or mine.high >= theirs.low:
        return ""
    told = (f"{e.value:.2f} [{e.low:.2f}, {e.high:.2f}]" for e in (mine, theirs))
    return "less diverse: turns of one condition differ {} times as often as their law says, the reference's {}".format(
        *told
    )


def differences(mine: Cell, other: Cell) -> list[str]:
    """Why two cells cannot be compared, as 'torch: 2.13 and 2.14'. What a card does not tell forbids nothing."""
    pairs = ((name, mine.card.get(name), other.card.get(name)) for name in MUST_AGREE)
    return [f"{name}: {a} and {b}" for name, a, b in pairs if a and b and a != b]


def _undecided(why: str) -> Verdict:
    return Verdict("undecided", why)
