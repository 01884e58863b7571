"""Differences to the reference condition by condition: what each method wins and loses, and by how much.

Above, one square a condition and method: who is right in the headline, on one sample a condition. Below, each method's
differences in turn error and sharpness, sorted, with their mean and its interval (paired, clustered by condition).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import SubFigure
from matplotlib.patches import Patch

from flgbench.metrics.stats import Interval
from reports.aggregates import difference_of, paired
from reports.catalogue import BY_KEY, HEADLINE, Shown
from reports.data import Cell, RunData
from reports.style import INK, MUTED, PAGE, legible, looks, save, short, style
from reports.verdicts import differences

MEASURES = ("turn_error", "sharpness_ratio")
PANELS = 7  # most methods in one line of panels
WON, LOST, SAME = "#0072b2", "#d55e00", "#b9b9bf"
UNKNOWN, BOTH_WRONG, BOTH_RIGHT, METHOD_ONLY, REFERENCE_ONLY = range(-1, 4)
OUTCOMES = {
    BOTH_RIGHT: ("both right", "#e9e9ee"),
    BOTH_WRONG: ("both wrong", "#77777d"),
    METHOD_ONLY: ("won: only the method right", WON),
    REFERENCE_ONLY: ("lost: only the reference right", LOST),
}


@dataclass(frozen=True)
class Differences:
    """One method and measure: per condition (n,), sorted by difference; `better` is +1, -1 or 0 for better, worse, equal."""

    cell: Cell
    metric: str
    conditions: np.ndarray
    values: np.ndarray  # method's mean over the condition's samples, in the stored unit
    reference: np.ndarray
    mean: Interval

    @property
    def difference(self) -> np.ndarray:
        return self.values - self.reference

    @property
    def better(self) -> np.ndarray:
        """By which way is better; where 1 is best, by the distance from 1."""
        best = BY_KEY[self.metric].best
        if best == "one":
            return np.sign(np.abs(self.reference - 1) - np.abs(self.values - 1))
        return np.sign(self.difference) * (1 if best == "high" else -1)


def compared(run: RunData) -> list[Cell]:
    """External students and the first training of every method, whose clips may be compared with the reference's."""
    reference = run.reference
    if reference is None or reference.failed:
        return []
    methods = [c for c in run.cells if c.kind in ("method", "external") and c.repeat == 0 and not c.failed]
    alike = [c for c in methods if not differences(c, reference)]
    return [c for c in alike if len(paired(run, c.cell, reference.cell, HEADLINE))]


def by_condition(run: RunData, cell: Cell, metric: str) -> Differences:
    """Paired differences of one cell to the reference; conditions that one of them has no number for are left out."""
    assert run.reference is not None
    pairs = paired(run, cell.cell, run.reference.cell, metric)
    pairs = pairs[np.isfinite(pairs["value"]) & np.isfinite(pairs["reference"])]
    means = pairs.groupby("condition")[["value", "reference"]].mean()
    order = np.argsort((means["value"] - means["reference"]).to_numpy(float), kind="stable")
    means = means.iloc[order]
    found = (means.index.to_numpy(int), means["value"].to_numpy(float), means["reference"].to_numpy(float))
    return Differences(cell, metric, *found, difference_of(pairs))


def outcomes(run: RunData, cells: list[Cell]) -> tuple[np.ndarray, np.ndarray]:
    """Outcome (methods, conditions) of each first sample, and the conditions (n,): those most methods lose come first,
    those that nobody is right in last. UNKNOWN where one of the two has no number."""
    assert run.reference is not None
    columns = {}
    for cell in cells:
        once = paired(run, cell.cell, run.reference.cell, HEADLINE).query("sample == 0")
        kind = np.where(once["value"] > once["reference"], METHOD_ONLY, REFERENCE_ONLY)
        kind = np.where(once["value"] == once["reference"], np.where(once["value"] > 0.5, BOTH_RIGHT, BOTH_WRONG), kind)
        columns[cell.cell] = pd.Series(kind, index=once["condition"].to_numpy(int))
    table = pd.DataFrame(columns).sort_index()
    lost, right = (table == REFERENCE_ONLY).sum(axis=1), (table == BOTH_RIGHT).sum(axis=1)
    table = table.iloc[np.lexsort((-right.to_numpy(), -lost.to_numpy()))]
    return table.T.fillna(UNKNOWN).to_numpy(int), table.index.to_numpy(int)


def build(run: RunData, out: Path) -> list[Path]:
    """Differences by condition: figures/per_condition.png, .pdf, tables/per_condition.csv; [] without pairs."""
    cells = compared(run)
    if not cells:
        return []
    found = {(c.cell, m): by_condition(run, c, m) for c in cells for m in (HEADLINE, *MEASURES)}
    return [*_draw(run, cells, found, out), _csv(list(found.values()), out)]


def _csv(found: list[Differences], out: Path) -> Path:
    parts = [
        pd.DataFrame(
            {
                "cell": d.cell.cell,
                "metric": d.metric,
                "condition": d.conditions,
                "value": d.values,
                "reference": d.reference,
                "difference": d.difference,
            }
        )
        for d in found
    ]
    path = out / "tables" / "per_condition.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.concat(parts).to_csv(path, index=False)
    return path


def _draw(run: RunData, cells: list[Cell], found: dict[tuple[str, str], Differences], out: Path) -> list[Path]:
    look = looks(run)
    width = min(len(cells), PANELS)
    blocks = [cells[i : i + width] for i in range(0, len(cells), width)]
    with style():
        above, below = 0.17 * len(cells) + 0.55, 1.2
        figure = plt.figure(figsize=(PAGE, above + below * len(MEASURES) * len(blocks)))
        heights = [above, *[below * len(MEASURES)] * len(blocks)]
        parts = np.ravel(figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights))
        _matrix(parts[0], run, cells, found)
        for part, block in zip(parts[1:], blocks, strict=True):
            grid = part.subplots(len(MEASURES), width, sharey="row", squeeze=False)
            for i, (row, metric) in enumerate(zip(grid, MEASURES, strict=True)):
                for axes in row[len(block) :]:
                    axes.axis("off")
                for axes, cell in zip(row, block, strict=False):
                    _sorted(axes, found[cell.cell, metric], i == 0, legible(look[cell.cell].colour))
                shown = _printed(metric)
                row[0].set_ylabel(f"{shown.title.lower()} ({shown.unit})")
        said = "method − reference, conditions sorted in each panel for itself · blue better, orange worse"
        parts[-1].supxlabel(said, fontsize=7)
        return save(figure, out, "per_condition")


def _matrix(figure: SubFigure, run: RunData, cells: list[Cell], found: dict[tuple[str, str], Differences]) -> None:
    """Who is right in which condition; on the right how often, and the mean difference over all samples."""
    kinds, conditions = outcomes(run, cells)
    axes = figure.subplots()
    colours = ListedColormap(["white", *(OUTCOMES[k][1] for k in sorted(OUTCOMES))])
    axes.pcolormesh(kinds, cmap=colours, vmin=UNKNOWN - 0.5, vmax=REFERENCE_ONLY + 0.5, rasterized=True)
    for y in range(1, len(cells)):
        axes.axhline(y, color="white", lw=1.4)
    if len(conditions) <= 128:
        for x in range(1, len(conditions)):
            axes.axvline(x, color="white", lw=0.4)
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_yticks(np.arange(len(cells)) + 0.5, [short(c.label, 24) for c in cells])
    axes.set_xticks([])
    axes.tick_params(length=0)
    shown = _printed(HEADLINE)
    for y, (cell, kind) in enumerate(zip(cells, kinds, strict=True)):
        won, lost = int((kind == METHOD_ONLY).sum()), int((kind == REFERENCE_ONLY).sum())
        said = f"+{won} −{lost}   {' '.join(_mean_text(found[cell.cell, HEADLINE].mean, shown))}"
        axes.annotate(said, (1, y + 0.5), (4, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                      va="center", fontsize=6.3, annotation_clip=False)  # fmt: skip
    axes.set_title(f"{shown.title} accuracy in each of {len(conditions)} conditions", fontsize=7.5)
    axes.set_title("won, lost, mean difference", loc="right", fontsize=6.3, fontweight="normal", color=MUTED, x=1.31)
    handles = [Patch(color=colour, label=name) for name, colour in OUTCOMES.values()]
    axes.legend(handles=handles, ncols=4, frameon=False, fontsize=6.3, loc="upper left", bbox_to_anchor=(-0.01, 0.0),
                handlelength=1, columnspacing=1.2, borderaxespad=0.3)  # fmt: skip


def _sorted(axes: Axes, d: Differences, named: bool, colour: str) -> None:
    """Bars sorted by size, the mean as a line with its interval as a band; `named` panels carry the method's name."""
    shown = _printed(d.metric)
    n = len(d.conditions)
    axes.axhline(0, color=MUTED, lw=0.5, zorder=1)
    axes.set_xticks([])
    axes.grid(axis="x", visible=False)
    if n == 0:
        axes.text(0.5, 0.5, "no condition\nhas both", transform=axes.transAxes, ha="center", va="center", fontsize=6)
        return
    colours = np.where(d.better > 0, WON, np.where(d.better < 0, LOST, SAME))
    axes.bar(np.arange(n), shown.scale * d.difference, width=1, color=colours, linewidth=0, zorder=2)
    if np.isfinite(d.mean.low) and np.isfinite(d.mean.high):
        axes.axhspan(shown.scale * d.mean.low, shown.scale * d.mean.high, color=INK, alpha=0.18, lw=0, zorder=3)
    axes.axhline(shown.scale * d.mean.value, color=INK, lw=0.9, zorder=4)
    axes.set_xlim(-0.5, n - 0.5)
    said = " ".join(_mean_text(d.mean, shown))
    if named:
        above = axes.annotate(said, (0, 1), (0, 2), xycoords="axes fraction", textcoords="offset points", fontsize=5.6)
        above.set_in_layout(False)  # the panels keep their width
        name = short(d.cell.label.removesuffix(" (our adaptation)"), 17)
        axes.set_title(name, fontsize=6.6, pad=11, color=colour)
    else:
        axes.set_title(said, fontsize=5.6, fontweight="normal", pad=2)
    axes.annotate(f"n {n}", (1, 0), (-1, 1), xycoords="axes fraction", textcoords="offset points", ha="right", fontsize=5.4,
                  color=MUTED)  # fmt: skip


def _printed(metric: str) -> Shown:
    """How a measure is printed here: ratios in percent, because differences of ratios are small."""
    shown = BY_KEY[metric]
    return replace(shown, unit="%", scale=100, decimals=1) if shown.unit == "ratio" else shown


def _mean_text(mean: Interval, shown: Shown) -> tuple[str, str]:
    """The mean with its sign, and its interval or an empty text."""
    value, low, high = (_signed(shown, x) for x in (mean.value, mean.low, mean.high))
    return value, f"[{low}, {high}]" if low and high else ""


def _signed(shown: Shown, value: float) -> str:
    text = shown.text(value)
    return f"+{text}" if text and value > 0 else text


def caption(run: RunData) -> str:
    """What the figure shows, for the page."""
    if not compared(run):
        return ""
    return (
        "Differences to the reference condition by condition. Above: one square a method and condition, on the condition's "
        "first sample; the conditions most methods lose stand first, in the same order for all; beside it how many were won "
        "and lost, and the mean difference in points over all samples. Below: each method's differences in turn error (less "
        "is better) and sharpness (nearer to 1 is better), each panel sorted for itself, averaged over a condition's "
        "samples; line and band are the mean and its 95 % interval, paired and clustered by condition. Conditions in which "
        "one of the two has no number are left out (n). tables/per_condition.csv names every condition."
    )
