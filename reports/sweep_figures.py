"""Ablations as figures: measures along one setting, a heat map over two, and steps with size against speed-up (Figure 1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from reports.aggregates import Estimate, estimate, nominal, units
from reports.catalogue import BY_KEY, HEADLINE, Shown
from reports.data import Cell, RunData
from reports.style import COLUMN, INK, METHOD_COLOURS, METHOD_MARKERS, MUTED, PAGE, save, style
from reports.sweeps import base, names, paper_value, points, stem, told

LINES = tuple(BY_KEY[key] for key in (HEADLINE, "motion_ratio", "sharpness_ratio", "turn_diversity"))
HEAT = tuple(BY_KEY[key] for key in (HEADLINE, "motion_ratio"))
SPEEDS = (10, 25, 50, 100)  # iso-speed lines
WORD = 5  # letters that fit side by side below an axis; longer labels are slanted


def build(run: RunData, out: Path) -> list[Path]:
    """One figure a sweep: figures/sweep-NAME.png and .pdf; [] for a run without sweeps."""
    found = []
    for name in names(run):
        there = [out / "figures" / f"{stem(name)}{end}" for end in (".png", ".pdf")]
        if all(p.exists() for p in there):
            found += there
            continue
        variants = [v for v in points(run, name) if _known(run, v)]
        axes_names = list(variants[0].point) if variants else []
        if set(axes_names) == {"steps", "keep"}:
            found += _steps_and_size(run, name, variants, out)
        elif len(axes_names) == 1 and len(variants) > 1:
            found += _along(run, name, variants, out)
        elif len(axes_names) == 2:
            found += _heat(run, name, variants, out)
    return found


def caption(run: RunData) -> str:
    """What a figure of a sweep shows, for the page."""
    return (
        f"One student for each point, with 95 % intervals over {units(run)}; they do not tell how much another training "
        "would differ. A star marks the method as it is, dotted lines the teacher or equal speed-up. The paper's averages "
        "are of another model, other data and another measure."
    )


def _known(run: RunData, cell: Cell) -> bool:
    return not cell.failed and estimate(run, cell.cell, HEADLINE).value is not None


def _bars(axes: Axes, at: Sequence[float], found: list[Estimate], shown: Shown, **look: Any) -> None:
    values = [shown.scale * (e.value if e.value is not None else np.nan) for e in found]
    low = [v - shown.scale * e.low if e.low is not None else 0 for v, e in zip(values, found, strict=True)]
    high = [shown.scale * e.high - v if e.high is not None else 0 for v, e in zip(values, found, strict=True)]
    axes.errorbar(at, values, yerr=[np.maximum(low, 0), np.maximum(high, 0)], capsize=1.8, elinewidth=0.8, **look)


def _along(run: RunData, name: str, variants: list[Cell], out: Path) -> list[Path]:
    """Small multiples: every measure along the setting, the teacher's as a line; the paper's averages have a panel."""
    paper = [paper_value(v) for v in variants]
    panels = len(LINES) + any(paper)
    (axis,) = variants[0].point
    at = list(range(len(variants)))
    own = base(run, name)
    default = {v.cell for v in variants if own and [s.key for s in v.stages] == [s.key for s in own.stages]}
    with style():
        figure, several = plt.subplots(1, panels, figsize=(PAGE, 1.75))
        for axes, shown in zip(several, LINES, strict=False):
            _bars(
                axes,
                at,
                [estimate(run, v.cell, shown.key) for v in variants],
                shown,
                fmt="o-",
                ms=3.5,
                color=METHOD_COLOURS[0],
            )
            if run.reference and (line := estimate(run, run.reference.cell, shown.key).value) is not None:
                axes.axhline(shown.scale * line, color=MUTED, lw=0.8, ls=":")
            axes.set_title(f"{shown.title} ({shown.unit}) {shown.arrow}".replace(" ()", ""), fontsize=7)
        if any(paper):
            axes = several[-1]
            axes.plot(at, [float(p) if p else np.nan for p in paper], "s--", ms=3.5, color=METHOD_COLOURS[1])
            axes.set_title("paper: VBench average", fontsize=7)
        for axes in several:
            labels = [told(v.point[axis]) + ("*" if v.cell in default else "") for v in variants]
            words = any(len(label) > WORD for label in labels)
            axes.set_xticks(at, labels, **({"rotation": 25, "ha": "right", "rotation_mode": "anchor"} if words else {}))
            axes.set_xlabel(axis)
            axes.margins(x=0.15, y=0.15)
        return save(figure, out, stem(name))


def _heat(run: RunData, name: str, variants: list[Cell], out: Path) -> list[Path]:
    first, second = list(variants[0].point)
    rows, columns = (list(dict.fromkeys(v.point[a] for v in variants)) for a in (second, first))
    with style():
        figure, several = plt.subplots(1, len(HEAT), figsize=(PAGE, 0.42 * len(rows) + 1.1))
        for axes, shown in zip(several, HEAT, strict=True):
            grid = np.full((len(rows), len(columns)), np.nan)
            for v in variants:
                value = estimate(run, v.cell, shown.key).value
                grid[rows.index(v.point[second]), columns.index(v.point[first])] = (
                    np.nan if value is None else shown.scale * value
                )
            drawn = axes.pcolormesh(grid, cmap="cividis", edgecolor="w", lw=0.8)
            middle = np.nanmean(grid) if np.isfinite(grid).any() else 0.0
            for (i, j), value in np.ndenumerate(grid):
                text = "—" if np.isnan(value) else f"{value:.{shown.decimals}f}"
                axes.text(
                    j + 0.5, i + 0.5, text, ha="center", va="center", fontsize=6.5, color=INK if value > middle else "w"
                )
            axes.set_xticks(np.arange(len(columns)) + 0.5, [told(c) for c in columns])
            axes.set_yticks(np.arange(len(rows)) + 0.5, [told(r) for r in rows])
            axes.set_xlabel(first)
            axes.set_ylabel(second)
            axes.grid(visible=False)
            axes.tick_params(length=0)
            axes.set_title(f"{shown.title} ({shown.unit}) {shown.arrow}", fontsize=7)
            figure.colorbar(drawn, ax=axes, pad=0.02)
        return save(figure, out, stem(name))


def _steps_and_size(run: RunData, name: str, variants: list[Cell], out: Path) -> list[Path]:
    """Headline quality against the nominal speed-up, a line for each kept share; dotted: equal speed-up."""
    shown = BY_KEY[HEADLINE]
    keeps = list(dict.fromkeys(v.point["keep"] for v in variants))
    with style():
        figure, axes = plt.subplots(figsize=(1.45 * COLUMN, 2.9))
        for i, kept in enumerate(keeps):
            both = [(nominal(run, v).value, v) for v in variants if v.point["keep"] == kept]
            line = sorted([(up, v) for up, v in both if up is not None], key=lambda pair: pair[0])
            at = [up for up, _ in line]
            look = {
                "color": METHOD_COLOURS[i % 8],
                "marker": METHOD_MARKERS[i % 8],
                "ms": 4,
                "lw": 1,
                "label": f"{100 * kept:.0f} %",
            }
            _bars(axes, at, [estimate(run, v.cell, shown.key) for _, v in line], shown, **look)
            for up, v in line:
                value = shown.scale * (estimate(run, v.cell, shown.key).value or 0)
                axes.annotate(
                    told(v.point["steps"]),
                    (up, value),
                    (3, 3),
                    textcoords="offset points",
                    fontsize=5.5,
                    color=METHOD_COLOURS[i % 8],
                )
        if run.reference and (top := estimate(run, run.reference.cell, shown.key).value) is not None:
            axes.plot([1], [shown.scale * top], marker="*", ms=8, color=INK, ls="none", label="teacher")
        for speed in SPEEDS:
            axes.axvline(speed, color=MUTED, lw=0.6, ls=":")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator([1, 2, 5, *SPEEDS, 200]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("nominal speed-up over the teacher (log scale); numbers: steps")
        axes.set_ylabel(f"{shown.title.lower()} accuracy ({shown.unit})")
        axes.legend(title="blocks kept", fontsize=6, title_fontsize=6, frameon=False, loc="lower left")
        return save(figure, out, stem(name))
