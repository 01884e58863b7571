"""Numbers derived from the tidy table: estimates with intervals and speed-ups. Pure functions of `RunData`.

Intervals are at 95 %. Shares and their differences have Agresti and Coull's over conditions, other per-sample metrics are
bootstrapped over them (BCa); latencies are medians with the distribution-free interval of order statistics; speed-ups are
paired by condition (geometric mean, t-interval on log ratios). Bootstraps cost time, so what is `remembered` keeps its
answers in `RunData.memory`. A missing number stays missing, with its reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import ParamSpec, TypeVar, cast

import numpy as np
import pandas as pd

from flgbench.metrics.stats import Interval, mean_difference, mean_over_conditions, speedup
from reports.catalogue import HEADLINE, LATENCY_KEYS, times
from reports.data import Cell, RunData

P = ParamSpec("P")
R = TypeVar("R")
P90_FROM = 36


@dataclass(frozen=True)
class Estimate:
    """One cell × metric. `value` is None when missing, then `reason` says why. `n` and `missing` count rows."""

    cell: str
    metric: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    missing: int = 0
    reason: str = ""

    @property
    def has_interval(self) -> bool:
        return self.low is not None and self.high is not None


@dataclass(frozen=True)
class Ratio:
    """A speed-up over the reference; `value` is None when it was not measured, then `reason` says why."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    reason: str = ""

    def text(self) -> str:
        if self.value is None:
            return "not measured"
        if self.low is None or self.high is None:
            return times(self.value)
        return f"{times(self.value)} [{times(self.low)[:-1]}, {times(self.high)[:-1]}]"


@dataclass(frozen=True)
class Speedups:
    nominal: Ratio
    denoise: Ratio
    end_to_end: Ratio
    denoise_batched: Ratio  # against the reference with both CFG passes in one batch


def rows(run: RunData, cell: str, metric: str) -> pd.DataFrame:
    """All rows of one cell × metric."""
    if ("places",) not in run.memory:  # the table is searched a thousand times: texts as numbers, places looked up once
        table = run.results.astype(dict.fromkeys(run.results.select_dtypes(["object", "string"]).columns, "category"))
        run.memory["places",] = table, table.groupby(["cell", "metric"], observed=True, sort=False).indices
    table, places = run.memory["places",]
    return table.iloc[places.get((cell, metric), [])]


def units(run: RunData, metric: str = HEADLINE) -> str:
    """What intervals of a per-clip measure rest on: '64 conditions, 92 clips a cell'; a range where cells differ."""
    found = run.results[(run.results["metric"] == metric) & (run.results["status"] == "ok")]
    by_cell = found.groupby("cell", observed=True)["condition"]

    def span(counts: pd.Series, what: str) -> str:
        low, high = int(counts.min()), int(counts.max())
        return f"{low if low == high else f'{low} to {high}'} {what}"

    return f"{span(by_cell.nunique(), 'conditions')}, {span(by_cell.size(), 'clips')} a cell" if len(found) else "no clips"


def median_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Median and its distribution-free interval (order statistics, coverage at least 95 %), NaN bounds below n = 6."""
    ordered = np.sort(values)
    n = len(ordered)
    median = float(np.median(ordered))
    tail, rank = 0.0, 0
    while rank < n // 2:  # the largest rank r with P(Binomial(n, 1/2) < r) <= 2.5 %
        tail += math.comb(n, rank) / 2**n
        if tail > 0.025:
            break
        rank += 1
    if rank == 0:
        return median, math.nan, math.nan
    return median, float(ordered[rank - 1]), float(ordered[n - rank])


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _why_missing(cell: Cell, found: pd.DataFrame) -> str:
    if cell.failed:
        return f"{cell.status}: {cell.reason or 'no reason recorded'}"
    reasons = sorted({str(r) for r in found["reason"] if r is not None and r == r and str(r)})
    return "; ".join(reasons) or "not measured"


def remembered(function: Callable[P, R]) -> Callable[P, R]:
    """Remember the answers of a pure function whose first argument is a run and whose others have a `repr`."""

    @wraps(function)
    def answer(*args: P.args, **kwargs: P.kwargs) -> R:
        run, *rest = args
        assert isinstance(run, RunData) and not kwargs
        key = (function.__name__, *(part.cell if isinstance(part, Cell) else part for part in rest))
        if key not in run.memory:
            run.memory[key] = function(*args, **kwargs)
        return cast(R, run.memory[key])

    return answer


@remembered
def estimate(run: RunData, cell: str, metric: str) -> Estimate:
    """One number for one cell × metric. Infinite values (the PSNR of identical frames) stay, without an interval."""
    found = rows(run, cell, metric)
    ok = found[found["status"] == "ok"]
    missing = len(found) - len(ok)
    if ok.empty:
        return Estimate(cell, metric, missing=missing, reason=_why_missing(run.cell(cell), found))
    values = ok["value"].to_numpy(float)
    conditions = ok["condition"].to_numpy(int)
    partly = f"{missing} of {len(found)} missing: {_why_missing(run.cell(cell), found)}" if missing else ""
    if (conditions < 0).all() or not np.isfinite(values).all():
        return Estimate(cell, metric, float(values.mean()), None, None, len(values), missing, partly)
    if metric in LATENCY_KEYS:
        value, low, high = median_interval(values)
    else:
        interval = mean_over_conditions(values, conditions, share=bool((ok["unit"] == "share").all()))
        value, low, high = interval.value, interval.low, interval.high
    return Estimate(cell, metric, value, _finite(low), _finite(high), len(values), missing, partly)


@remembered
def ninth_decile(run: RunData, cell: str, metric: str) -> Estimate:
    """90th percentile of a latency, only from 36 samples: below, its distribution-free interval has no upper end."""
    found = rows(run, cell, metric)
    values = found[found["status"] == "ok"]["value"].to_numpy(float)
    if len(values) == 0:
        return estimate(run, cell, metric)
    if len(values) < P90_FROM:
        why = f"a 90th percentile needs {P90_FROM} timed conditions (--pairs {P90_FROM}), has {len(values)}"
        return Estimate(cell, metric, n=len(values), reason=why)
    return Estimate(cell, metric, float(np.quantile(values, 0.9)), n=len(values))


def paired(run: RunData, cell: str, reference: str, metric: str, of_reference: str | None = None) -> pd.DataFrame:
    """Rows where both have a number: columns condition, sample, unit, value, reference."""
    mine = rows(run, cell, metric)
    theirs = rows(run, reference, of_reference or metric)
    keys = ["condition", "sample"]
    left = mine[mine["status"] == "ok"][[*keys, "unit", "value"]]
    right = theirs[theirs["status"] == "ok"][[*keys, "value"]].rename(columns={"value": "reference"})
    return left.merge(right, on=keys, validate="one_to_one")


@remembered
def paired_difference(run: RunData, cell: str, other: str, metric: str) -> Interval | None:
    """`metric` of `cell` minus that of `other`, paired and clustered by condition; None below two conditions in common."""
    pairs = paired(run, cell, other, metric)
    return difference_of(pairs) if pairs["condition"].nunique() > 1 else None


def difference_of(pairs: pd.DataFrame) -> Interval:
    """Mean of value − reference, of the rows that `paired` finds."""
    value, reference = (pairs[name].to_numpy(float) for name in ("value", "reference"))
    condition, share = pairs["condition"].to_numpy(int), bool((pairs["unit"] == "share").all())
    return mean_difference(value, condition, reference, condition, share=share)


def _measured_ratio(run: RunData, cell: Cell, metric: str, of_reference: str | None = None) -> Ratio:
    reference = run.reference
    if reference is None:
        return Ratio(reason="the run has no reference cell")
    pairs = paired(run, cell.cell, reference.cell, metric, of_reference)
    if pairs.empty:
        mine, theirs = estimate(run, cell.cell, metric), estimate(run, reference.cell, of_reference or metric)
        reasons = [mine.reason] if mine.value is None else []
        reasons += [f"reference: {theirs.reason}"] if theirs.value is None else []
        return Ratio(reason="; ".join(reasons) or "no condition in common with the reference")
    # Repeats of a condition are not independent: their ratios are averaged (on the log scale) before pairing.
    logs = pd.DataFrame({name: np.log(pairs[name].to_numpy(float)) for name in ("reference", "value")})
    means = logs.groupby(pairs["condition"].to_numpy()).mean()
    interval = speedup(np.exp(means["reference"].to_numpy()), np.exp(means["value"].to_numpy()))
    reason = "one pair only: no interval" if interval.n == 1 else ""
    return Ratio(interval.value, _finite(interval.low), _finite(interval.high), interval.n, reason)


def nominal(run: RunData, cell: Cell) -> Ratio:
    """(NFE × kept blocks) of the reference over that of the cell: arithmetic, nothing measured."""
    reference = run.reference
    if reference is None or not reference.nfe or not reference.kept_blocks:
        return Ratio(reason="the run has no reference with NFE and kept blocks")
    if not cell.nfe or not cell.kept_blocks:
        return Ratio(reason="another network than the reference's" if cell.nfe else "no network passes")
    return Ratio(reference.nfe * reference.kept_blocks / (cell.nfe * cell.kept_blocks))


@remembered
def speedups(run: RunData, cell: Cell) -> Speedups:
    """The three speed-ups over the reference, and the one over its batched CFG."""
    return Speedups(
        nominal=nominal(run, cell),
        denoise=_measured_ratio(run, cell, "denoise_s"),
        end_to_end=_measured_ratio(run, cell, "end_to_end_s"),
        denoise_batched=_measured_ratio(run, cell, "denoise_s", "denoise_batched_cfg_s"),
    )


def ordered_cells(run: RunData) -> list[Cell]:
    """Real, VAE round trip, reference, methods, external students, baselines, open models, other controls, frozen image."""
    first = {"real": 0, "vae_round_trip": 1}
    last = {"frozen_image": 9}
    kinds = {"reference": 3, "method": 4, "external": 5, "baseline": 6, "open": 7, "control": 8}

    def place(item: tuple[int, Cell]) -> tuple[int, int]:
        index, cell = item
        return first.get(cell.cell, last.get(cell.cell, kinds[cell.kind])), index

    return [cell for _, cell in sorted(enumerate(run.cells), key=place)]
