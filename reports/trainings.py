"""How much another training would differ: methods trained with several seeds (`--seeds N`), headline per training.

The mean is over trainings; its interval has both levels, trainings and conditions (`stats.over_trainings`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from flgbench.metrics.stats import over_trainings
from reports.aggregates import estimate, paired, rows
from reports.catalogue import BY_KEY, HEADLINE, Shown
from reports.data import Cell, RunData
from reports.tables import Column, Entry, Row, Table, write


def build(run: RunData, out: Path) -> list[Path]:
    """Spread over trainings: tables/trainings.md, .csv, .tex; [] when every method was trained once."""
    made = table(run)
    return write([made], out / "tables", "trainings") if made.rows else []


def table(run: RunData) -> Table:
    """One row a method that was trained more than once."""
    shown = BY_KEY[HEADLINE]
    columns = (
        Column("n", "Trainings"),
        Column("each", f"{shown.title} of each", shown.unit, meaning="in the order of the seeds"),
        Column("mean", "Mean", shown.unit, "↑", "over trainings; interval for another training on other conditions"),
        Column("spread", "SD", "points", meaning="standard deviation of the trainings' means"),
        Column("difference", "− reference", "points", "↑", "the same, paired with the reference by condition"),
    )
    found = []
    for name in dict.fromkeys(c.method for c in run.cells if c.kind == "method"):
        cells = [c for c in run.cells if c.kind == "method" and c.method == name]
        if len(cells) > 1:
            found.append(Row(name, cells[0].label, "method", _entries(run, cells)))
    caption = "Trainings of one method with different seeds."
    legend = "Brackets: 95 % intervals over trainings and conditions (two-way random effects), wide for few trainings."
    return Table("trainings", "Several trainings", caption, columns, tuple(found), legend)


def _entries(run: RunData, cells: list[Cell]) -> dict[str, Entry]:
    good = [c for c in cells if not c.failed and estimate(run, c.cell, HEADLINE).value is not None]
    failed = "; ".join(f"{c.cell} {c.status}: {c.reason}" for c in cells if c not in good)
    each = ", ".join(f"{100 * estimate(run, c.cell, HEADLINE).value:.1f}" for c in good)  # type: ignore[operator]
    entries = {"n": Entry(f"{len(good)}", float(len(good)), note=failed), "each": Entry(each, note=failed)}
    own = np.array([_by_condition(run, c) for c in good])
    few = "fewer than two trainings have clips"
    if len(good) < 2:
        return entries | {key: Entry(note=failed or few) for key in ("mean", "spread", "difference")}
    entries["mean"] = _interval(own, (0, 1), "{:.1f}")
    entries["spread"] = Entry(f"{100 * own.mean(1).std(ddof=1):.1f}", float(own.mean(1).std(ddof=1)))
    entries["difference"] = Entry(note="no reference")
    if run.reference and not run.reference.failed:
        entries["difference"] = _interval(np.array([_against(run, c, run.reference) for c in good]), (-1, 1), "{:+.1f}")
    return entries


def over(run: RunData, cells: Sequence[Cell], shown: Shown) -> Entry:
    """A measure of several trainings: mean over them and over the conditions that all have; without an interval for sets."""
    each = [rows(run, c.cell, shown.key).query("status == 'ok'").groupby("condition")["value"].mean() for c in cells]
    both = pd.concat(each, axis=1, join="inner").to_numpy(float).T
    if not both.size:
        missing = (estimate(run, c.cell, shown.key).reason for c in cells)
        return Entry(note="; ".join(dict.fromkeys(r for r in missing if r)) or "no condition in common")
    share = all((rows(run, c.cell, shown.key)["unit"] == "share").all() for c in cells)
    found = over_trainings(both, ends=(0, 1) if share else None)
    known = np.isfinite(found.low)
    low, high = (shown.text(x) if known else "" for x in (found.low, found.high))
    below, above = (found.low, found.high) if known else (None, None)
    return Entry(shown.text(found.value), found.value, below, above, low, high, found.n)


def _by_condition(run: RunData, cell: Cell) -> np.ndarray:
    found = rows(run, cell.cell, HEADLINE)
    return found[found["status"] == "ok"].groupby("condition")["value"].mean().to_numpy(float)


def _against(run: RunData, cell: Cell, reference: Cell) -> np.ndarray:
    means = paired(run, cell.cell, reference.cell, HEADLINE).groupby("condition")[["value", "reference"]].mean()
    return (means["value"] - means["reference"]).to_numpy(float)


def _interval(values: np.ndarray, ends: tuple[float, float], form: str) -> Entry:
    found = over_trainings(values, ends=ends)
    value, low, high = (form.format(100 * x).replace("-", "−") for x in (found.value, found.low, found.high))
    return Entry(value, found.value, found.low, found.high, low, high, found.n)
