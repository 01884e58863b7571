"""Block importance: error of the clean estimate with each block skipped, and the ELBO-weighted ranking beside it."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from reports.data import Importance, RunData
from reports.style import COLUMN, MUTED, save, style

NEEDED, REDUNDANT = "#0072b2", "#e69f00"


def ranks(values: tuple[float, ...]) -> list[int]:
    """1 for the most important block, i.e. the largest error when it is skipped."""
    order = np.argsort(-np.asarray(values), kind="stable")
    found = np.empty(len(values), int)
    found[order] = np.arange(1, len(values) + 1)
    return found.tolist()


def agreement(importance: Importance) -> float | None:
    """Spearman's rank correlation of the two rankings; None when there is only one, or too few blocks."""
    if len(importance.elbo) < 3:
        return None
    return float(np.corrcoef(ranks(importance.x0_error), ranks(importance.elbo))[0, 1])


def build(run: RunData, out: Path) -> list[Path]:
    """Block importance and its ELBO ranking: figures/importance.png, .pdf; [] when it was not computed."""
    found = run.importance
    if found is None:
        return []
    with style():
        rows = 2 if found.elbo else 1
        figure, axes = plt.subplots(rows, 1, figsize=(COLUMN, 1.35 * rows + 0.4), sharex=True, squeeze=False)
        _bars(axes[0, 0], found, found.x0_error, found.dense_x0_error)
        axes[0, 0].set_ylabel("clean-estimate error")
        if found.elbo:
            _bars(axes[1, 0], found, found.elbo, None)
            axes[1, 0].set_ylabel("ELBO-weighted")
        axes[-1, 0].set_xlabel("block skipped (number on the bar: rank of importance)")
        axes[-1, 0].set_xticks(range(len(found.blocks)), [str(b) for b in found.blocks])
        for each in axes[:, 0]:
            _shade_kinds(each, found)
        _mark_kinds(axes[-1, 0], found)
        handles: list[Patch | Line2D] = [
            Patch(color=NEEDED, label="kept"),
            Patch(facecolor=REDUNDANT, hatch="////", edgecolor="white", label="redundant"),
        ]
        if found.dense_x0_error is not None:
            handles.append(Line2D([], [], color=MUTED, lw=0.8, ls="--", label="no block skipped"))
        handles += [
            Patch(facecolor=shade, edgecolor=MUTED, lw=0.5, label=f"{k} block") for k, shade in shades(found).items()
        ]
        above = {"loc": "lower right", "bbox_to_anchor": (1, 1), "borderaxespad": 0}
        axes[0, 0].legend(handles=handles, ncols=3, frameon=False, fontsize=6.5, **above)
        return save(figure, out, "importance")


def shades(found: Importance) -> dict[str, str]:
    """Sort of block -> colour behind its bars, where there are several sorts."""
    kinds = list(dict.fromkeys(found.kinds))
    return {kind: ("white", "#e8e8e8")[i % 2] for i, kind in enumerate(kinds)} if len(kinds) > 1 else {}


def _shade_kinds(axes: Axes, found: Importance) -> None:
    for kind, shade in shades(found).items():
        places = [i for i, k in enumerate(found.kinds) if k == kind]
        axes.axvspan(places[0] - 0.5, places[-1] + 0.5, color=shade, lw=0, zorder=-1)
    if shades(found):
        axes.set_xlim(-0.7, len(found.kinds) - 0.3)


def _mark_kinds(axes: Axes, found: Importance) -> None:
    """The sort of block in words under its bars, and a line between the sorts, where there are several."""
    for kind in dict.fromkeys(found.kinds) if len(set(found.kinds)) > 1 else ():
        places = [i for i, k in enumerate(found.kinds) if k == kind]
        middle, where = (places[0] + places[-1]) / 2, axes.get_xaxis_transform()
        axes.text(middle, -0.24, kind, transform=where, ha="center", va="top", fontsize=6.5, color=MUTED)
        if places[0]:
            axes.axvline(places[0] - 0.5, color=MUTED, lw=0.6)
    if len(set(found.kinds)) > 1:
        axes.xaxis.labelpad = 12


def _bars(axes: Axes, found: Importance, values: tuple[float, ...], dense: float | None) -> None:
    """One bar a block. Values far apart get a log scale, where bars stand on the dense error, or below the least."""
    log = min(values) > 0 and max(values) > 8 * min(values)
    bottom = (dense if dense is not None and 0 < dense < min(values) else 0.8 * min(values)) if log else 0.0
    redundant = set(found.redundant)
    for i, (block, value, rank) in enumerate(zip(found.blocks, values, ranks(values), strict=True)):
        out = block in redundant
        axes.bar(
            i,
            value - bottom,
            bottom=bottom,
            width=0.72,
            color=REDUNDANT if out else NEEDED,
            hatch="////" if out else None,
            edgecolor="white",
            linewidth=0,
        )
        axes.annotate(str(rank), (i, max(value, bottom)), (0, 1), textcoords="offset points", ha="center", fontsize=6)
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(0.9 * bottom, 1.9 * max(values))
    else:
        axes.margins(y=0.15)
    if dense is not None:
        axes.axhline(dense, color=MUTED, lw=0.8, ls="--")
    axes.grid(axis="x", visible=False)


def caption(run: RunData) -> str:
    """What the figure shows, for the page."""
    if run.importance is None:
        return ""
    removed = ", ".join(str(b) for b in sorted(run.importance.redundant)) or "none"
    counted = {k: sum(x == k for x in run.importance.kinds) for k in shades(run.importance)}
    kinds = (
        f" There are {' and '.join(f'{n} {k}' for k, n in counted.items())} blocks, told apart by their ground."
        if counted
        else ""
    )
    same = agreement(run.importance)
    rank = f" The two rankings agree with Spearman's ρ = {same:.2f}." if same is not None else ""
    return (
        "Error when one block of the teacher is skipped: a short bar is a block the model hardly needs. "
        f"Redundant blocks, deleted in the student: {removed}.{rank}{kinds}"
    )
