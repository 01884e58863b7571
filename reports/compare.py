"""Two runs side by side: every cell's measures in A and in B, and B − A with intervals; what cannot be compared is refused.

Pure functions of two `RunData`. Quality is compared only where the evaluation cards, the teacher, the family and the
versions of the measures agree; latency only where hardware and software do too. What is refused says which field differs.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd

from flgbench.metrics.stats import Interval, holm, mcnemar, speedup
from reports import main_table
from reports.aggregates import difference_of, estimate, paired, rows
from reports.catalogue import BY_KEY, HEADLINE, Shown, times
from reports.comparable import A, B, Pair, check, hardware_apart, pairs, told, why_not
from reports.data import Cell, RunData
from reports.tables import Column, Entry, Row, Table

DIFFERENCE = "B against A"
SPEEDS = ("denoise_s", "end_to_end_s")
SAME = "the same numbers in both runs"
BASIS = (
    "B − A with its 95 % interval, paired and clustered by condition. p: McNemar's exact test on one sample a condition, "
    "adjusted by Holm over the cells. The intervals know of conditions, not of how much another training would differ."
)
LEGEND = f"Third row of each cell: {BASIS} Differences of whole-set measures (diversity) have no interval."


def tables(a: RunData, b: RunData) -> list[Table]:
    """The main tables with three rows a cell: A, B, and B against A.

    Raises NotComparableError when no cell can be compared.
    """
    found = pairs(a, b)
    check(a, b, found)
    like = (main_table.accuracy, main_table.motion, main_table.image, main_table.judged, main_table.diversity)
    return [*(_quality_table(a, b, found, make(a)) for make in like), _speed_table(a, b, found)]


def summary(a: RunData, b: RunData) -> Table:
    """One row a cell for the terminal: headline of A and of B, B − A, p, and how many times faster B denoises.

    Raises NotComparableError when no cell can be compared.
    """
    found = pairs(a, b)
    check(a, b, found)
    shown = BY_KEY[HEADLINE]
    columns = (
        *(Column(f"{HEADLINE}_{n}", f"{shown.title} {n}", shown.unit) for n in (A, B)),
        Column(HEADLINE, "B − A", "points"),
        Column("p", "p", "Holm"),
        Column("denoise_s", "denoising", "times faster"),
    )
    quality = _quality_rows(a, b, found, [shown])
    apart, made = hardware_apart(a, b), []
    for i, pair in enumerate(found):
        mine, other, third = (row.entries for row in quality[3 * i : 3 * i + 3])
        own = {f"{HEADLINE}_A": mine[HEADLINE], f"{HEADLINE}_B": other[HEADLINE]}
        speed = {"denoise_s": _ratio(a, b, pair, "denoise_s", apart)}
        made.append(Row(pair.cell.cell, pair.cell.label, pair.cell.kind, own | third | speed))
    return Table("summary", "B against A", _caption(a, b, "Summary"), columns, tuple(made), BASIS)


def _quality_table(a: RunData, b: RunData, found: list[Pair], like: Table) -> Table:
    """A table of the measures of `like`, a main table."""
    shown = [BY_KEY[c.key] for c in like.columns if c.key in BY_KEY]
    columns = [Column(s.key, s.title, s.unit, s.arrow, s.meaning) for s in shown]
    if HEADLINE in [s.key for s in shown]:
        columns.insert(1, Column("p", "p", "Holm", "", "that both are right equally often"))
    made = _quality_rows(a, b, found, shown)
    return Table(like.name, like.title, _caption(a, b, like.title), tuple(columns), tuple(made), LEGEND)


def _quality_rows(a: RunData, b: RunData, found: list[Pair], shown: list[Shown]) -> list[Row]:
    """Three rows a cell; where the headline is among `shown`, the third has its p."""
    headline = HEADLINE in [s.key for s in shown]
    made: list[Row] = []
    for pair in found:
        parts = [_own(run, cell, shown) for run, cell in ((a, pair.a), (b, pair.b))]
        parts.append({s.key: _difference(a, b, pair, s) for s in shown})
        made += _rows(pair, [p | {"p": Entry()} for p in parts] if headline else parts)
    if headline:
        _adjust(a, b, found, made)
    return made


def _caption(a: RunData, b: RunData, title: str) -> str:
    return f"{title}: A is {told(a)}; B is {told(b)}."


def _rows(pair: Pair, parts: list[dict[str, Entry]]) -> list[Row]:
    cell = pair.cell
    names = (A, B, DIFFERENCE)
    return [Row(f"{cell.cell}:{n}", f"{cell.label}, {n}", cell.kind, p) for n, p in zip(names, parts, strict=True)]


def _own(run: RunData, cell: Cell | None, shown: list[Shown]) -> dict[str, Entry]:
    """One run's numbers; the CSV has their intervals, the print leaves the room to the difference's."""
    if cell is None:
        return {s.key: Entry(note="not in this run") for s in shown}
    found = [(s, estimate(run, cell.cell, s.key)) for s in shown]
    return {s.key: Entry(s.text(e.value), e.value, e.low, e.high, n=e.n or None, note=e.reason) for s, e in found}


def _difference(a: RunData, b: RunData, pair: Pair, s: Shown) -> Entry:
    if why := why_not(pair):
        return Entry(note=why)
    name = pair.cell.cell
    if pair.same and (known := estimate(a, name, s.key)).value is not None:
        return Entry(_signed(s, 0.0), 0.0, 0.0, 0.0, n=known.n, note=SAME)
    if any((rows(run, name, s.key)["condition"] < 0).all() for run in (a, b)):
        return _whole_difference(a, b, pair, s)
    both = across(a, b, name, s.key)
    if both["condition"].nunique() < 2:
        return Entry(note="fewer than two conditions in common")
    found = difference_of(both)
    low, high = (_signed(s, x) if math.isfinite(x) else "" for x in (found.low, found.high))
    return Entry(_signed(s, found.value), found.value, found.low, found.high, low, high, found.n)


def _whole_difference(a: RunData, b: RunData, pair: Pair, s: Shown) -> Entry:
    """B − A of a measure of all clips together: no interval, and only where both had as many clips."""
    assert pair.a is not None and pair.b is not None
    mine, other = (estimate(run, pair.cell.cell, s.key) for run in (a, b))
    if mine.value is None or other.value is None:
        return Entry(note="; ".join(f"{n}: {e.reason}" for n, e in ((A, mine), (B, other)) if e.value is None))
    clips = [c.card.get("clips") for c in (pair.a, pair.b)]
    if clips[0] != clips[1]:
        return Entry(note=f"not compared: it depends on the number of clips, {clips[0]} and {clips[1]}")
    return Entry(_signed(s, other.value - mine.value), other.value - mine.value)


def across(a: RunData, b: RunData, cell: str, metric: str) -> pd.DataFrame:
    """Rows where both runs have a finite number: columns condition, sample, unit, value (B's), reference (A's)."""
    keys = ["condition", "sample"]
    left, right = (
        r[(r["status"] == "ok") & np.isfinite(r["value"])] for r in (rows(b, cell, metric), rows(a, cell, metric))
    )
    renamed = right[[*keys, "value"]].rename(columns={"value": "reference"})
    return left[[*keys, "unit", "value"]].merge(renamed, on=keys, validate="one_to_one")


def _adjust(a: RunData, b: RunData, found: list[Pair], made: list[Row]) -> None:
    """Write Holm's p into each cell's third row."""
    raw = []
    for pair in found:
        once = across(a, b, pair.cell.cell, HEADLINE).query("sample == 0")
        known = len(once) >= 2 and not pair.same and not why_not(pair)
        raw.append(mcnemar(once["value"].to_numpy(float), once["reference"].to_numpy(float)) if known else np.nan)
    for i, p in enumerate(holm(np.array(raw))):
        entries = made[3 * i + 2].entries
        printed = "< 0.001" if p < 0.001 else f"{p:.3f}"
        entries["p"] = Entry(note=entries[HEADLINE].note) if np.isnan(p) else Entry(printed, float(p))


def _speed_table(a: RunData, b: RunData, found: list[Pair]) -> Table:
    """Latencies of both runs, and how many times faster B is; never across hardware or software."""
    apart = hardware_apart(a, b)
    shown = [replace(BY_KEY[key], unit="ms", scale=1000.0, decimals=1) for key in SPEEDS]
    columns = [Column(s.key, s.title, s.unit, s.arrow, s.meaning) for s in shown]
    up = "over the reference of the same run, interleaved with it"
    columns.append(Column("over_reference", "Denoise", "speed-up", "↑", up))
    made: list[Row] = []
    for pair in found:
        parts = [_own(run, cell, shown) for run, cell in ((a, pair.a), (b, pair.b))]
        ups = [_over_reference(run, cell) for run, cell in ((a, pair.a), (b, pair.b))]
        for part, logs in zip(parts, ups, strict=True):
            part["over_reference"] = _factor(logs)
        ratios = {s.key: _ratio(a, b, pair, s.key, apart) for s in shown}
        parts.append(ratios | {"over_reference": _ratio_of_speedups(pair, ups, apart)})
        made += _rows(pair, parts)
    legend = (
        "Third row of each cell: how many times faster B is, geometric mean over timed conditions with its 95 % interval. "
        "Two runs were timed at different times: what else the machine did then is not in the intervals, and least in the "
        "speed-up over each run's own reference. Latency is never compared across hardware or software."
    )
    return Table("speed", "Speed", _caption(a, b, "Speed"), tuple(columns), tuple(made), legend)


def _ratio(a: RunData, b: RunData, pair: Pair, metric: str, apart: list[str]) -> Entry:
    if note := _no_speed(pair, apart):
        return Entry(note=note)
    both = across(a, b, pair.cell.cell, metric)
    if both.empty:
        return Entry(note="not timed in both runs")
    logs = log_ratios(both)
    return _times(speedup(np.exp(logs.to_numpy(float)), np.ones(len(logs))))


def _no_speed(pair: Pair, apart: list[str]) -> str:
    return why_not(pair) or (f"latency not compared: {'; '.join(apart)}" if apart else "")


def _over_reference(run: RunData, cell: Cell | None) -> pd.Series:
    """Mean log of the reference's denoising time over the cell's, by condition; empty when not timed."""
    reference = run.reference
    if cell is None or reference is None or cell.cell == reference.cell:
        return pd.Series(dtype=float)
    both = paired(run, cell.cell, reference.cell, "denoise_s")
    return log_ratios(both)


def log_ratios(both: pd.DataFrame) -> pd.Series:
    """Mean log of reference over value, by condition: repeats of a condition are not independent."""
    logs = np.log(both["reference"].to_numpy(float) / both["value"].to_numpy(float))
    return pd.Series(logs, index=both["condition"].to_numpy(int)).groupby(level=0).mean()


def _factor(logs: pd.Series) -> Entry:
    if logs.empty:
        return Entry(note="no speed-up over itself, or not timed")
    return replace(_times(speedup(np.exp(logs.to_numpy(float)), np.ones(len(logs)))), low_text="", high_text="")


def _ratio_of_speedups(pair: Pair, ups: list[pd.Series], apart: list[str]) -> Entry:
    if note := _no_speed(pair, apart):
        return Entry(note=note)
    both = pd.concat(ups, axis=1, join="inner").to_numpy(float)
    if not len(both):
        return Entry(note="not timed in both runs")
    return _times(speedup(np.exp(both[:, 1]), np.exp(both[:, 0])))


def _times(found: Interval) -> Entry:
    low, high = (times(x)[:-1] if math.isfinite(x) else "" for x in (found.low, found.high))
    below, above = (x if math.isfinite(x) else None for x in (found.low, found.high))
    return Entry(times(found.value), found.value, below, above, low, high, found.n)


def _signed(s: Shown, value: float) -> str:
    text = s.text(value)
    return f"+{text}" if text and value > 0 else text
