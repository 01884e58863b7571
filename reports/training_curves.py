"""Training curves: every named loss of every trained stage against the network passes spent."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from reports.data import RunData
from reports.style import METHOD_COLOURS, PAGE, legible, save, short, style

CLOCKS = ("iteration", "passes", "seconds", "fraction", "passes_per_second", "clips_per_second", "peak_memory_gb", "mfu")


def build(run: RunData, out: Path) -> list[Path]:
    """Losses of every stage: figures/training_curves.png, .pdf; [] when nothing was trained."""
    found = {name: run.curves[name] for name in in_order(run) if len(run.curves[name]) and losses(run.curves[name])}
    if not found:
        return []
    labels = {cell.cell: cell.label for cell in run.cells}
    columns = min(3, len(found))
    rows = math.ceil(len(found) / columns)
    with style():
        figure, grid = plt.subplots(rows, columns, figsize=(PAGE, 1.75 * rows + 0.2), squeeze=False)
        for axes in grid.flat[len(found) :]:
            axes.set_axis_off()
        for axes, (name, curve) in zip(grid.flat, found.items(), strict=False):
            cell, _, stage = name.partition(".")
            _panel(axes, curve, f"{short(labels.get(cell, cell))} · {short(stage)}" if stage else short(name))
        for i in range(len(found)):
            if i % columns == 0:
                grid.flat[i].set_ylabel("loss")
            if i + columns >= len(found):  # the last of its column
                grid.flat[i].set_xlabel("network passes")
        return save(figure, out, "training_curves")


def in_order(run: RunData) -> list[str]:
    """Names of the curves, `<cell>.<stage>`, in the order of cells and of their stages."""
    cells = {c.cell: (i, [s.name for s in c.stages]) for i, c in enumerate(run.cells)}

    def place(name: str) -> tuple[int, int]:
        cell, _, stage = name.partition(".")
        index, stages = cells.get(cell, (len(cells), []))
        return index, stages.index(stage) if stage in stages else len(stages)

    return sorted(run.curves, key=place)


def losses(curve: pd.DataFrame) -> list[str]:
    """Names of the logged losses."""
    return [str(c) for c in curve.columns if c not in CLOCKS and pd.api.types.is_numeric_dtype(curve[c])]


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Centred running mean over `window` values, fewer at the ends; NaN is left out."""
    series = pd.Series(values)
    return series.rolling(max(window, 1), center=True, min_periods=1).mean().to_numpy()


def _panel(axes: Axes, curve: pd.DataFrame, title: str) -> None:
    axis = "passes" if "passes" in curve else "iteration"
    positive = True
    for i, name in enumerate(losses(curve)):
        rows = curve[[axis, name]].dropna()
        x, y = rows[axis].to_numpy(float), rows[name].to_numpy(float)
        if not len(x):
            continue
        colour = METHOD_COLOURS[i % len(METHOD_COLOURS)]
        axes.plot(x, y, color=colour, lw=0.5, alpha=0.3)
        axes.plot(x, smooth(y, len(y) // 20), color=colour, lw=1.2, label=name, ls=("-", "--", ":")[i // 6 % 3])
        positive &= bool((y > 0).all())
    axes.set_title(title, fontsize=7.5)
    if positive:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda v, _: ""))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v / 1000:g}k" if v >= 1000 else f"{v:g}"))
    legend = axes.legend(fontsize=6, frameon=True, framealpha=0.8, edgecolor="none", loc="best", handlelength=1.2)
    for text, line in zip(legend.get_texts(), legend.get_lines(), strict=True):
        text.set_color(legible(str(line.get_color())))


def caption(run: RunData) -> str:
    """What the figure shows, for the page."""
    return (
        "Losses of every trained stage against network passes: thin as logged, thick a running mean. "
        "Distribution-matching losses do not fall as the student improves; read them for steadiness, not for height."
    )
