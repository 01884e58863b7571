"""The paper's statements as tests on our results: reproduced, contradicted or undecided, never more than an interval allows.

A verdict holds for this run only: its model, its data, its budget. What would decide an open one is said beside it.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from flgbench.metrics.stats import Interval
from reports.aggregates import differences, nominal, paired_difference, speedups
from reports.catalogue import BY_KEY, HEADLINE, times
from reports.data import Cell, RunData
from reports.tables import md

Verdict = Literal["reproduced", "contradicted", "undecided"]
WANTED = "flgbench ablate {}"
JOINT, MEASURED = "FastLightGen", 31.3  # times: 885 s / 28.3 s of Table 2


@dataclass(frozen=True)
class Claim:
    """One statement with its source, and what this run says of it. `n` counts conditions, pairs or blocks."""

    statement: str
    source: str
    verdict: Verdict
    statistic: str = ""
    interval: str = ""
    n: int | None = None
    decides: str = ""


def claims(run: RunData) -> list[Claim]:
    """All claims in the order of the paper."""
    return [claim for make in CLAIMS for claim in make(run)]


def quality_is_kept(run: RunData) -> list[Claim]:
    """Table 2: the student's average is 0.794, its teacher's 0.790."""
    statement, source = "The pruned 4-step student is as good as its teacher", "Tables 1 and 2: 0.794 against 0.790"
    return [_better(run, statement, source, _method(run, "fastlightgen"), run.reference, slack=0.01)]


def better_than_step_distillation(run: RunData) -> list[Claim]:
    """Table 2: 0.794 against 0.716 (DMD2) and 0.684 (LCM), dense students of as many steps."""
    mine = _method(run, "fastlightgen")
    return [
        _better(run, f"{JOINT} is better than {label}", f"Table 2: 0.794 against {score}", mine, _method(run, name))
        for name, label, score in (("dmd2", "DMD2", 0.716), ("lcm", "LCM", 0.684))
    ]


def better_than_few_steps(run: RunData) -> list[Claim]:
    """MagicDistillation's Table 1: 4 distilled passes score 0.806 (DMD2), 4 Euler steps 0.677."""
    plain = [c for c in run.cells if c.kind == "baseline" and c.sampler == "euler" and c.num_inference_steps == 4]
    students = [c for c in run.cells if c.kind == "method" and c.num_inference_steps == 4]
    return [
        _better(run, f"{mine.label} is better than {other.label}", "arXiv 2503.13319 Table 1, for DMD2", mine, other)
        for mine in students
        for other in plain
    ]


def speed(run: RunData) -> list[Claim]:
    """Table 2: 885 s against 28.3 s, 31.3 times; Figure 1: 35.7 times by arithmetic."""
    statement, source = "30 % pruning and 4 steps make denoising about 35 times faster", "Figure 1: 35.7×; Table 2: 31.3×"
    cell = _method(run, "fastlightgen")
    ratio = speedups(run, cell).denoise if cell else None
    if cell is None or ratio is None or ratio.low is None or ratio.high is None:
        why = ratio.reason if ratio else ""
        return [Claim(statement, source, "undecided", decides=why or f"a run with {JOINT} and latency")]
    verdict: Verdict = "reproduced" if ratio.low >= MEASURED else "contradicted" if ratio.high < MEASURED else "undecided"
    interval = f"[{times(ratio.low)}, {times(ratio.high)}]"
    decides = f"more timed pairs: {times(MEASURED)} is inside the interval" if verdict == "undecided" else ""
    return [Claim(statement, source, verdict, f"{times(ratio.value or math.nan)} denoise", interval, ratio.n, decides)]


def outer_blocks_matter_most(run: RunData) -> list[Claim]:
    """Stage I: block importance is U-shaped."""
    statement, source = "Importance is U-shaped: the first and the last blocks matter most", "stage I"
    found = run.importance
    if found is None or len(found.blocks) < 4:
        return [Claim(statement, source, "undecided", decides="a run with a method that ranks blocks")]
    errors, n = found.x0_error, len(found.blocks)
    ranks = {i: 1 + sum(other > errors[i] for other in errors) for i in (0, n - 1)}
    worst = max(ranks.values())
    # By chance two given blocks of n are the two highest once in n (n - 1) / 2 times.
    verdict: Verdict = "reproduced" if worst == 2 else "contradicted" if worst > n / 2 else "undecided"
    statistic = f"ranks {ranks[0]} (first) and {ranks[n - 1]} (last) of {n}"
    by_chance = f"both highest by chance: 1 in {n * (n - 1) // 2}" if worst == 2 else ""
    decides = "more clips in stage I, or a deeper model" if verdict == "undecided" else ""
    return [Claim(statement, source, verdict, statistic, by_chance, n, decides)]


def of_sweeps(run: RunData) -> list[Claim]:
    """What takes the same method at several settings: `flgbench ablate`, `flgbench paper`."""
    return [
        _best_of(
            run,
            "Distillation alone (alpha = 1) is the best mixture of stage II",
            "Table 4: 0.791 against 0.780 to 0.788",
            "alpha",
            {"alpha": 1.0},
        ),
        _better(
            run,
            "beta2 = 0.25 is better than 0",
            "Table 5: 0.820 against 0.812",
            _variant(run, "beta2", {"beta2": 0.25}),
            _variant(run, "beta2", {"beta2": 0.0}),
            without=WANTED.format("beta2"),
        ),
        _better(
            run,
            "A large beta2 (0.75) exaggerates motion",
            "Table 5: dynamic degree 1.000 against 0.459",
            _variant(run, "beta2", {"beta2": 0.75}),
            _variant(run, "beta2", {"beta2": 0.0}),
            metric="motion_ratio",
            without=WANTED.format("beta2"),
        ),
        _better(
            run,
            "A weaker teacher makes a better student",
            "stage III",
            _variant(run, "teacher", {"teacher": "weak"}),
            _variant(run, "teacher", {"teacher": "strongest"}),
            without=WANTED.format("teacher"),
        ),
        _best_of(
            run,
            "4 steps with 70 % kept is the best of all that are as fast",
            "Figure 1",
            "steps-keep",
            {"steps": 4, "keep": 0.7},
            as_fast=True,
        ),
    ]


def _variant(run: RunData, sweep: str, point: dict[str, Any]) -> Cell | None:
    """A point of a sweep, None where the run has none or it failed."""
    return next((v for v in run.variants if v.sweep == sweep and v.point == point and not v.failed), None)


def _best_of(run: RunData, statement: str, source: str, sweep: str, point: dict[str, Any], as_fast: bool = False) -> Claim:
    """Is one point of a sweep above all others (`as_fast`: all of at least its nominal speed-up), each by its interval?

    Contradicted as soon as one other is above it by its interval.
    """
    mine = _variant(run, sweep, point)
    others = [v for v in run.variants if v.sweep == sweep and v.point != point and not v.failed]
    if mine is None or not others:
        return Claim(statement, source, "undecided", decides=WANTED.format(sweep))
    if as_fast:
        mine_up = nominal(run, mine).value or math.inf
        others = [v for v in others if (nominal(run, v).value or 0) >= mine_up]
    each = {v.cell: found for v in others if (found := paired_difference(run, mine.cell, v.cell, HEADLINE))}
    if not each:
        return Claim(statement, source, "undecided", decides="results of both on at least two conditions")
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


CLAIMS: tuple[Callable[[RunData], list[Claim]], ...] = (
    quality_is_kept,
    better_than_step_distillation,
    better_than_few_steps,
    speed,
    outer_blocks_matter_most,
    of_sweeps,
)


def _method(run: RunData, name: str) -> Cell | None:
    return next((c for c in run.cells if c.cell == name and not c.failed), None)


def _better(
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
        return Claim(statement, source, "undecided", decides=without)
    if apart := differences(mine, other):
        return Claim(statement, source, "undecided", decides=f"the same evaluation of both; now {'; '.join(apart)}")
    found = paired_difference(run, mine.cell, other.cell, metric)
    if found is None or not math.isfinite(found.low):
        return Claim(statement, source, "undecided", decides="results of both on at least two conditions")
    verdict: Verdict = "reproduced" if found.low > -slack else "contradicted" if found.high < -slack else "undecided"
    shown = BY_KEY[metric]
    value, low, high = (shown.text(x) for x in (found.value, found.low, found.high))
    decides = _conditions_needed(found, slack) if verdict == "undecided" else ""
    unit = "points" if shown.unit == "%" else shown.unit
    statistic = f"{shown.title.lower()} {'+' if found.value > 0 else ''}{value} {unit}"
    return Claim(statement, source, verdict, statistic, f"[{low}, {high}]", found.n, decides)


def _conditions_needed(found: Interval, slack: float) -> str:
    """How many conditions would separate this difference from the bound, if it stays what it is."""
    half, distance = (found.high - found.low) / 2, abs(found.value + slack)
    if distance * 100 < half:
        return "the two are too close: no practical number of conditions"
    return f"about {math.ceil(found.n * (half / distance) ** 2)} conditions, if the difference stays"


def build(run: RunData, out: Path) -> list[Path]:
    """The claims with their verdicts: tables/claims.md and claims.csv."""
    folder = out / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    names = [f.name for f in fields(Claim)]
    found = [[("" if v is None else str(v)) for v in (getattr(c, n) for n in names)] for c in claims(run)]
    with (folder / "claims.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        writer.writerows(found)
    head = ("Statement", "Source", "Verdict", "Statistic", "95 % interval", "n", "What would decide")
    lines = ["| " + " | ".join(head) + " |", "|" + " :-- |" * len(head)]
    lines += ["| " + " | ".join(md(cell) or "—" for cell in row) + " |" for row in found]
    (folder / "claims.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [folder / "claims.md", folder / "claims.csv"]
