"""Who differs from whom: joint accuracy paired by condition, against the teacher and against its few Euler steps.

Differences have Agresti and Coull's interval over conditions. Each p-value is McNemar's exact test on one sample a
condition, adjusted by Holm for all rows that are compared with the same opponent.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flgbench.metrics.stats import holm, mcnemar
from reports.aggregates import ordered_cells, paired, paired_difference
from reports.catalogue import HEADLINE
from reports.data import Cell, RunData
from reports.tables import Column, Entry, Row, Table, write
from reports.verdicts import differences

LEGEND = (
    "Brackets: 95 % intervals, clustered by condition, each for itself. p: McNemar's exact test on one sample a condition, "
    "adjusted by Holm for the rows compared with that opponent. One student was trained for each row: neither knows how "
    "much another training would differ."
)


def build(run: RunData, out: Path) -> list[Path]:
    """Paired differences in joint accuracy with adjusted p-values: tables/differences.md, .csv, .tex."""
    return write([table(run)], out / "tables", "differences")


def opponents(run: RunData) -> list[Cell]:
    """The reference, and its plain Euler steps at fewer passes."""
    few = [c for c in run.cells if c.kind == "baseline" and c.sampler == "euler" and "euler" in c.cell]
    return ([run.reference] if run.reference else []) + [c for c in few if not c.failed]


def table(run: RunData) -> Table:
    """Every method, external student, baseline and open model against every opponent."""
    rows = [c for c in ordered_cells(run) if c.kind in ("method", "external", "baseline", "open")]
    found: dict[str, dict[str, Entry]] = {c.cell: {} for c in rows}
    columns: list[Column] = []
    for other in opponents(run):
        meaning = f"joint accuracy minus that of {other.label}, percentage points, paired by condition"
        columns.append(Column(other.cell, f"− {other.label}", "points", "↑", meaning))
        columns.append(Column(f"{other.cell}_p", "p", "Holm", "", f"that both are right equally often ({other.label})"))
        entries = [(c, *_compared(run, c, other)) for c in rows]
        adjusted = holm(np.array([p for _, _, p in entries]))
        for (cell, entry, _), p in zip(entries, adjusted, strict=True):
            found[cell.cell] |= {other.cell: entry, f"{other.cell}_p": _p(float(p), entry.note)}
    caption = "Differences in joint accuracy, row minus column."
    cells = tuple(Row(c.cell, c.label, c.kind, found[c.cell]) for c in rows)
    return Table("differences", "Differences", caption, tuple(columns), cells, LEGEND)


def _compared(run: RunData, mine: Cell, other: Cell) -> tuple[Entry, float]:
    """The difference, and the p-value before adjustment (NaN where there is none)."""
    if mine.cell == other.cell:
        return Entry(note="itself"), np.nan
    if mine.failed:
        return Entry(note=f"{mine.status}: {mine.reason or 'no reason recorded'}"), np.nan
    if apart := differences(mine, other):
        return Entry(note=f"not compared, the evaluation cards differ: {'; '.join(apart)}"), np.nan
    found = paired_difference(run, mine.cell, other.cell, HEADLINE)
    if found is None:
        return Entry(note="fewer than two conditions in common"), np.nan
    pairs = paired(run, mine.cell, other.cell, HEADLINE)
    once = pairs[pairs["sample"] == 0]
    p = mcnemar(once["value"].to_numpy(float), once["reference"].to_numpy(float))
    value, low, high = (f"{100 * x:+.1f}".replace("-", "−") for x in (found.value, found.low, found.high))
    return Entry(value, found.value, found.low, found.high, low, high, found.n), p


def _p(p: float, note: str) -> Entry:
    return Entry(note=note) if np.isnan(p) else Entry("< 0.001" if p < 0.001 else f"{p:.3f}", p)
