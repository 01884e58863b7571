"""How a statement of the paper is tested: better than another, the best of a sweep, as far as an interval allows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from flgbench.metrics.stats import Interval
from reports.aggregates import nominal, paired_difference
from reports.catalogue import BY_KEY, HEADLINE
from reports.data import Cell, RunData
from reports.verdicts import differences

Verdict = Literal["reproduced", "contradicted", "undecided", "not tested"]
HUNYUAN = "hunyuan"  # the family that some of the paper's tables are of; the others are of WanX


@dataclass(frozen=True)
class Claim:
    """One statement with its source, and what this run says of it. `n` counts conditions, pairs or blocks.

    "undecided": tested, and the interval allows both; "not tested": the run has not what it takes.
    """

    statement: str
    source: str
    verdict: Verdict
    statistic: str = ""
    interval: str = ""
    n: int | None = None
    decides: str = ""


def of_hunyuan(run: RunData) -> bool:
    return run.run.settings.get("model") == HUNYUAN


def wanted(run: RunData, sweep: str) -> str:
    """The command whose results a claim needs."""
    return f"flgbench ablate {sweep}{f' --model {HUNYUAN}' if of_hunyuan(run) else ''}"


def method(run: RunData, name: str) -> Cell | None:
    return next((c for c in run.cells if c.cell == name and not c.failed), None)


def variant(run: RunData, sweep: str, point: dict[str, Any]) -> Cell | None:
    """A point of a sweep, None where the run has none or it failed."""
    return next((v for v in run.variants if v.sweep == sweep and v.point == point and not v.failed), None)


def better(
    run: RunData,
    statement: str,
    source: str,
    mine: Cell | None,
    other: Cell | None,
    slack: float = 0,
    metric: str = HEADLINE,
    without: str = "a run with both",
) -> Claim:
    """Is `mine` above `other` in `metric`, paired by condition? `slack`: how much less still counts as no less."""
    if mine is None or other is None:
        return Claim(statement, source, "not tested", decides=without)
    if apart := differences(mine, other):
        return Claim(statement, source, "undecided", decides=f"the same evaluation of both; now {'; '.join(apart)}")
    found = paired_difference(run, mine.cell, other.cell, metric)
    if found is None or not math.isfinite(found.low):
        return Claim(statement, source, "not tested", decides="results of both on at least two conditions")
    verdict: Verdict = "reproduced" if found.low > -slack else "contradicted" if found.high < -slack else "undecided"
    shown = BY_KEY[metric]
    value, low, high = (shown.text(x) for x in (found.value, found.low, found.high))
    decides = _conditions_needed(found, slack) if verdict == "undecided" else ""
    unit = "points" if shown.unit == "%" else shown.unit
    statistic = f"{shown.title.lower()} {'+' if found.value > 0 else ''}{value} {unit}"
    return Claim(statement, source, verdict, statistic, f"[{low}, {high}]", found.n, decides)


def best_of(run: RunData, statement: str, source: str, sweep: str, point: dict[str, Any], as_fast: bool = False) -> Claim:
    """Is one point of a sweep above all others (`as_fast`: all of at least its nominal speed-up), each by its interval?

    Contradicted as soon as one other is above it by its interval.
    """
    mine = variant(run, sweep, point)
    others = [v for v in run.variants if v.sweep == sweep and v.point != point and not v.failed]
    if mine is None or not others:
        return Claim(statement, source, "not tested", decides=wanted(run, sweep))
    if as_fast:
        mine_up = nominal(run, mine).value or math.inf
        others = [v for v in others if (nominal(run, v).value or 0) >= mine_up]
    each = {v.cell: found for v in others if (found := paired_difference(run, mine.cell, v.cell, HEADLINE))}
    if not each:
        return Claim(statement, source, "not tested", decides="results of both on at least two conditions")
    closest = min(each, key=lambda cell: each[cell].value)
    found = each[closest]
    verdict: Verdict = "undecided"
    if all(f.low > 0 for f in each.values()):
        verdict = "reproduced"
    elif any(f.high < 0 for f in each.values()):
        verdict = "contradicted"
    statistic = f"{_points(found.value)} over the best other, {closest.partition('@')[2]}"
    decides = _conditions_needed(found, 0) if verdict == "undecided" else ""
    return Claim(statement, source, verdict, statistic, f"[{_points(found.low)}, {_points(found.high)}]", found.n, decides)


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f}".replace("-", "−")


def _conditions_needed(found: Interval, slack: float) -> str:
    """How many conditions would separate this difference from the bound, if it stays what it is."""
    reach = found.high - found.value if found.value < -slack else found.value - found.low  # towards the bound
    distance = abs(found.value + slack)
    if distance * 100 < reach:
        return "the two are too close: no practical number of conditions"
    return f"about {math.ceil(found.n * (reach / distance) ** 2)} conditions, if the difference stays"
