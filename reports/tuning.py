"""A search for settings: every trial in the plane of its two objectives, the Pareto set, and the distance to the paper."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import matplotlib.pyplot as plt

from flgbench.tuning import Search, Trial
from reports.catalogue import BY_KEY, HEADLINE
from reports.style import COLUMN, INK, METHOD_COLOURS, MUTED, label_points, save, style
from reports.tables import Column, Entry, Row, Table
from reports.tables import write as write_tables

ERROR = "turn_error"


def write(wanted: Search, trials: Sequence[Trial], folder: Path) -> list[Path]:
    """tables/tuning.md, .csv, .tex and figures/tuning.png, .pdf below `folder`."""
    return write_tables([table(wanted, trials)], folder / "tables", "tuning") + draw(wanted, trials, folder)


def table(wanted: Search, trials: Sequence[Trial]) -> Table:
    """Every trial, the Pareto set first, then by joint accuracy."""
    shown = [BY_KEY[HEADLINE], BY_KEY[ERROR]]
    columns = [
        *(Column(name, name) for name in wanted.ranges),
        Column("budget", "Budget", "passes", meaning="the longest training that the trial got"),
        *(Column(s.key, s.title, s.unit, s.arrow, s.meaning) for s in shown),
        Column("pareto", "Pareto", meaning="no other trial of the full budget is as good in both and better in one"),
        Column("distance", "From the paper", meaning="root mean square over the settings, in units of their ranges"),
    ]
    rows = []
    for t in sorted(trials, key=lambda t: (not t.pareto, -t.budget, -t.values.get(HEADLINE, -1.0), t.number)):
        entries = {name: Entry(f"{t.point[name]:.3g}", t.point[name]) for name in wanted.ranges}
        entries["budget"] = Entry(f"{t.budget:,.0f}".replace(",", " "), t.budget)
        for s in shown:
            value = t.values.get(s.key)
            entries[s.key] = Entry(s.text(value), value) if value is not None else Entry(note=t.reason or "not measured")
        entries["pareto"] = Entry("yes" if t.pareto else "no")
        distance = wanted.distance(t.point, wanted.paper) if wanted.paper else None
        entries["distance"] = Entry(f"{distance:.2f}", distance) if distance is not None else Entry(note="not known")
        rows.append(Row(str(t.number), f"trial {t.number}", "method", entries))
    caption = "Search on validation conditions: joint accuracy against the error at the turn, which jitter raises."
    legend = (
        "One training for each trial and budget; the better half went on to twice the budget. The numbers are those that "
        "the search chose by, so the best of them flatters: measure it again on test conditions."
    )
    return Table("tuning", "Search", caption, tuple(columns), tuple(rows), legend)


def lines(wanted: Search, trials: Sequence[Trial]) -> str:
    """The Pareto set as text, and how far its best in joint accuracy lies from the paper's point."""
    told = [f"{len(trials)} trials, {sum(not t.values for t in trials)} failed; Pareto set:"]
    best = sorted((t for t in trials if t.pareto), key=lambda t: -t.values[HEADLINE])
    for t in best:
        point = ", ".join(f"{name} {value:.3g}" for name, value in t.point.items())
        told.append(f"  {point}: joint {100 * t.values[HEADLINE]:.1f} %, turn error {t.values[ERROR]:.2f} px")
    if best and wanted.paper:
        paper = ", ".join(f"{name} {value:.3g}" for name, value in wanted.paper.items())
        away = wanted.distance(best[0].point, wanted.paper)
        told.append(f"the most accurate lies {away:.2f} of the ranges from the paper's point ({paper})")
    return "\n".join(told)


def as_json(wanted: Search, trials: Sequence[Trial]) -> str:
    return json.dumps({"method": wanted.method, "paper": wanted.paper, "trials": [asdict(t) for t in trials]})


def draw(wanted: Search, trials: Sequence[Trial], folder: Path) -> list[Path]:
    """Joint accuracy against turn error; filled: the full budget, ringed: the Pareto set, star: the paper's point."""
    shown = BY_KEY[HEADLINE]
    known = [t for t in trials if t.values]
    if not known:
        return []
    most = max(t.budget for t in known)
    with style():
        figure, axes = plt.subplots(figsize=(COLUMN, 2.6))
        for t in known:
            at = t.values[ERROR], shown.scale * t.values[HEADLINE]
            colour = METHOD_COLOURS[1] if t.budget == most else MUTED
            paper = wanted.paper and wanted.distance(t.point, wanted.paper) < 1e-6
            axes.plot(
                *at,
                marker="*" if paper else "o",
                ms=9 if paper else 4,
                color=colour,
                mfc=colour if t.budget == most else "w",
            )
            if t.pareto:
                axes.plot(*at, marker="o", ms=10, mfc="none", mec=INK, mew=0.9)
        axes.set_xlabel(f"turn error ({BY_KEY[ERROR].unit}) · ← better")
        axes.set_ylabel(f"{shown.title.lower()} accuracy ({shown.unit})")
        axes.set_title(f"{', '.join(wanted.ranges)}: star is the paper's", fontsize=7)
        axes.margins(0.15)
        where = [(t.values[ERROR], shown.scale * t.values[HEADLINE]) for t in known]
        names = [", ".join(f"{v:.2g}" for v in t.point.values()) if t.pareto else "" for t in known]
        label_points(axes, where, names, [INK] * len(known), size=5.5)
        return save(figure, folder, "tuning")
