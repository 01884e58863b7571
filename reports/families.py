"""Families side by side: every method's quality and speed-up in each, and the geometric mean of its speed-ups over all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from scipy import special

from flgbench.metrics.stats import Interval
from reports.aggregates import estimate, paired, speedups
from reports.catalogue import BY_KEY, HEADLINE, times
from reports.comparable import hardware_apart
from reports.compare import log_ratios
from reports.data import Cell, RunData
from reports.main_table import estimated, ratio
from reports.merge import Group
from reports.paper_numbers import measured_speedup
from reports.summary import aligned
from reports.tables import Column, Entry, Row, Table

SPEEDS = {"denoise_s": "denoise", "end_to_end_s": "end_to_end"}
PAPER = "paper"
TITLES = {"denoise": "Denoise", "end_to_end": "End to end"}


def geometric_mean(logs: Sequence[np.ndarray], level: float = 0.95) -> Interval:
    """Geometric mean over families of each one's mean speed-up; `logs` holds log speed-ups (pairs,) of every family.

    Every family counts the same. The interval is for these families, timed again: variances of their means add up, with
    Welch and Satterthwaite's degrees of freedom. n is the number of families. Bounds are NaN where one has a single pair.
    """
    means = np.array([x.mean() for x in logs])
    value = float(np.exp(means.mean()))
    if min(map(len, logs)) < 2:
        return Interval(value, math.nan, math.nan, len(logs))
    parts = np.array([x.var(ddof=1) / len(x) for x in logs]) / len(logs) ** 2
    if not parts.any():
        return Interval(value, value, value, len(logs))
    freedom = parts.sum() ** 2 / sum(v**2 / (len(x) - 1) for v, x in zip(parts, logs, strict=True))
    half = float(special.stdtrit(freedom, 0.5 + level / 2)) * math.sqrt(parts.sum())
    return Interval(value, value * math.exp(-half), value * math.exp(half), len(logs))


def chosen(groups: Sequence[Group]) -> dict[str, Group]:
    """'family, scale' -> its first group; the scale is told only where the groups have several."""
    scales = len({g.scale for g in groups}) > 1
    found: dict[str, Group] = {}
    for group in groups:
        found.setdefault(f"{group.family}, {group.scale}" if scales else group.family, group)
    return found


def table(groups: Sequence[Group]) -> Table | None:
    """A row for every method and baseline of any family; None for a single family."""
    families = chosen(groups)
    if len(families) < 2:
        return None
    shown = BY_KEY[HEADLINE]
    columns = [Column(s, f"{TITLES[s]}, all", "geometric mean", "↑") for s in SPEEDS.values()]
    columns.append(Column(PAPER, "Paper", "geometric mean", "↑", "of its families whose times are known; never on our axis"))
    for name in families:
        columns.append(Column(f"{name}:{HEADLINE}", shown.title, f"{name}, {shown.unit}", shown.arrow))
        columns += [Column(f"{name}:{s}", TITLES[s], f"{name}, times", "↑") for s in SPEEDS.values()]
    cells: dict[str, Cell] = {}
    for group in families.values():
        for cell in group.run.cells:
            if cell.kind != "control" and cell.repeat == 0:
                cells.setdefault(cell.cell, cell)
    rows = [Row(c.cell, c.label, c.kind, _entries(c.cell, families) | {PAPER: _paper(c, families)}) for c in cells.values()]
    legend = (
        "Speed-ups over each family's own reference, 95 % intervals paired by condition. The mean over families is "
        "geometric, every family counting the same; its interval is for these families, not for another. It is left out "
        "where the families were not timed on the same hardware and software. Accuracies of different families are not "
        "compared. The paper's is its teacher's time over the method's, of other models on other hardware: not comparable."
    )
    caption = f"Families side by side: {', '.join(families)}."
    return Table("families", "Families", caption, tuple(columns), tuple(rows), legend)


def lines(groups: Sequence[Group]) -> list[str]:
    """Text for the terminal: the denoising speed-up of every method in each family, and over all; [] for a single family."""
    found = table(groups)
    if found is None:
        return []
    shown = [c for c in found.columns if c.key.endswith(SPEEDS["denoise_s"]) or c.key in (*SPEEDS.values(), PAPER)]
    heads = ("speed-ups", *(f"{c.title.lower()} {c.unit}" if c.key in (*SPEEDS.values(), PAPER) else c.key for c in shown))
    rows = [(row.label, *(_spoken(row.entries[c.key]) for c in shown)) for row in found.rows]
    return aligned([heads, *rows])


def _spoken(entry: Entry) -> str:
    return f"{entry.text} {entry.interval}".strip() or "-"


def _paper(cell: Cell, families: dict[str, Group]) -> Entry:
    """The geometric mean of the paper's own speed-ups of a method, over those of these families that it tells."""
    names = list(dict.fromkeys(group.family for group in families.values()))
    found = {name: up for name in names if (up := measured_speedup(name, cell.method)) is not None}
    if not found:
        return Entry(note="the paper's times of it were not found")
    value = math.exp(sum(map(math.log, found.values())) / len(found))
    missing = [name for name in names if name not in found]
    told = f"of {' and '.join(found)}" + (
        f" alone: the paper's times of {', '.join(missing)} were not found" if missing else ""
    )
    return Entry(times(value), value, n=len(found), note=told)


def _entries(name: str, families: dict[str, Group]) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    runs = {family: group.run for family, group in families.items()}
    cells = {family: next((c for c in run.cells if c.cell == name), None) for family, run in runs.items()}
    for family, cell in cells.items():
        keys = [f"{family}:{key}" for key in (HEADLINE, *SPEEDS.values())]
        if cell is None:
            entries |= dict.fromkeys(keys, Entry(note=f"not run in {family}"))
            continue
        ups = speedups(runs[family], cell)
        entries[keys[0]] = estimated(BY_KEY[HEADLINE], estimate(runs[family], name, HEADLINE))
        entries |= {f"{family}:{s}": ratio(getattr(ups, s)) for s in SPEEDS.values()}
    for metric, speed in SPEEDS.items():
        entries[speed] = _mean(runs, cells, metric)
    return entries


def _mean(runs: dict[str, RunData], cells: dict[str, Cell | None], metric: str) -> Entry:
    apart = [f"{x} and {y}: {why}" for x, y in combinations(runs, 2) for why in hardware_apart(runs[x], runs[y])]
    if apart:
        return Entry(note=f"not timed alike: {'; '.join(apart)}")
    logs = {family: _logs(runs[family], cell, metric) for family, cell in cells.items()}
    if without := [family for family, x in logs.items() if not len(x)]:
        return Entry(note=f"no speed-up in {', '.join(without)}")
    found = geometric_mean(list(logs.values()))
    known = math.isfinite(found.low)
    low, high = (times(x)[:-1] if known else "" for x in (found.low, found.high))
    below, above = (found.low, found.high) if known else (None, None)
    return Entry(times(found.value), found.value, below, above, low, high, found.n)


def _logs(run: RunData, cell: Cell | None, metric: str) -> np.ndarray:
    """Log speed-ups over the reference, one a condition; empty when not timed."""
    if cell is None or run.reference is None:
        return np.empty(0)
    both = paired(run, cell.cell, run.reference.cell, metric)
    return log_ratios(both).to_numpy(float) if len(both) else np.empty(0)
