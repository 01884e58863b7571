"""Filmstrip: the same conditions as rows; truth, teacher, methods and baselines side by side, a few frames each."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from reports.aggregates import speedups
from reports.catalogue import times
from reports.data import Cell, Gallery, RunData
from reports.style import INK, MUTED, legible, looks, save, short, style

FRAMES = (0, 8, 12, 16)  # given frame, turn, and what follows from it
ROWS, PER_BAND, MOST = 3, 3, 9
GAP, LEFT, HEAD, PITCH = 0.4, 2.75, 0.92, 1.06  # in thumbnails: between groups, captions, titles, row to row


def chosen(run: RunData, gallery: Gallery) -> list[Cell]:
    """Truth, reference, methods, external students, open models, then baselines while they fill the last band.

    Failed cells have no clips.
    """
    have = [c for c in run.cells if c.cell in gallery.videos]
    order = [c for c in have if c.cell == "real"]
    for kind in ("reference", "method", "external", "open"):
        order += [c for c in have if c.kind == kind]
    room = -len(order) % PER_BAND or (PER_BAND if len(order) <= PER_BAND else 0)
    return (order + [c for c in have if c.kind == "baseline"][:room])[:MOST]


def varied(conditions: Sequence[dict[str, Any]], count: int) -> list[int]:
    """Indices of conditions that differ in as many told factors as possible; what was generated plays no part."""
    picked = [0]
    while len(picked) < min(count, len(conditions)):
        common = {
            i: max(sum(one.get(k) == v for k, v in conditions[p].items()) for p in picked)
            for i, one in enumerate(conditions)
            if i not in picked
        }
        picked.append(min(common, key=lambda i: common[i]))
    return sorted(picked)


def build(run: RunData, out: Path) -> list[Path]:
    """Truth, teacher and methods side by side: figures/filmstrip.png, .pdf; [] without a gallery."""
    gallery = run.gallery
    if gallery is None or not gallery.videos or not gallery.conditions:
        return []
    cells = chosen(run, gallery)
    rows = varied(gallery.conditions, ROWS)
    bands = [cells[i : i + PER_BAND] for i in range(0, len(cells), PER_BAND)]
    across = max(len(band) for band in bands)
    width = LEFT + across * len(FRAMES) + (across - 1) * GAP
    band_height = HEAD + len(rows) * PITCH
    height = len(bands) * band_height + (len(bands) - 1) * 0.2
    with style(), plt.rc_context({"figure.constrained_layout.use": False}):
        figure = plt.figure(figsize=(12, 12 * height / width), facecolor="white")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(0, width)
        axes.set_ylim(height, 0)
        axes.set_axis_off()
        for b, band in enumerate(bands):
            _band(axes, run, gallery, band, rows, b * (band_height + 0.2))
        return save(figure, out, "filmstrip")


def _band(axes: Axes, run: RunData, gallery: Gallery, cells: list[Cell], rows: list[int], top: float) -> None:
    """Captions at the left, then one group of thumbnails a cell, from `top` downwards."""
    look = looks(run)
    for row, index in enumerate(rows):
        y = top + HEAD + row * PITCH
        said = sentence(str(gallery.conditions[index].get("caption", "")))
        axes.text(0, y + 0.48, said, ha="left", va="center", fontsize=10, color=INK, linespacing=1.3)
    for i, cell in enumerate(cells):
        x = LEFT + i * (len(FRAMES) + GAP)
        truth = cell.cell == "real"
        colour = MUTED if truth else look[cell.cell].colour
        axes.plot([x, x + len(FRAMES) - 0.04], [top + 0.06] * 2, color=colour, lw=3, solid_capstyle="butt")
        axes.text(x, top + 0.5, short(cell.label, 24), fontsize=14, fontweight="bold", color=legible(colour), va="baseline")
        under = "ground truth" if truth else speed_line(run, cell)
        axes.text(x, top + 0.78, under, fontsize=9.5, color=MUTED, va="baseline")
        frames = "frames " + " · ".join(str(f) for f in FRAMES)
        axes.text(x + len(FRAMES) - 0.04, top + 0.78, frames, ha="right", va="baseline", fontsize=7.5, color=MUTED)
        for j, frame in enumerate(FRAMES):
            for row, index in enumerate(rows):
                _thumbnail(axes, gallery.videos[cell.cell][index, frame], x + j, top + HEAD + row * PITCH)


def speed_line(run: RunData, cell: Cell) -> str:
    """'4 NFE · 31.3× faster' with the measured denoise speed-up when there is one."""
    parts = [f"{cell.nfe} NFE"] if cell.nfe else []
    if cell.kind == "reference":
        parts.append("reference")
    elif (ratio := speedups(run, cell).denoise).value is not None:
        parts.append(f"{times(ratio.value)} {'faster' if ratio.value >= 1 else 'the speed'}")
    return " · ".join(parts)


def sentence(caption: str, width: int = 27) -> str:
    """The caption wrapped, without the blanks that a word-level tokenizer needs before commas."""
    return "\n".join(textwrap.wrap(re.sub(r"\s+([,.])", r"\1", caption), width)[:4])


def _thumbnail(axes: Axes, frame: np.ndarray, x: float, y: float) -> None:
    """One frame (64, 64, 3), pixels kept sharp, corners rounded."""
    side = 0.96
    image = axes.imshow(frame, extent=(x, x + side, y + side, y), interpolation="nearest", aspect="auto", zorder=2)
    inner, rounded = side - 0.12, "round,pad=0.06,rounding_size=0.07"
    shape = FancyBboxPatch((x + 0.06, y + 0.06), inner, inner, boxstyle=rounded, transform=axes.transData)
    image.set_clip_path(shape)


def caption(run: RunData) -> str:
    """What the figure shows, for the page."""
    if run.run.settings.get("suite"):
        return "The same images and prompts in every column, and the same noise for every generated clip."
    return (
        "The same conditions in every column, and the same noise for every generated clip: the first frame and the "
        "caption are given. Where the object turns and what enters is told by neither, so generated clips may rightly "
        "differ from the truth after the middle frame."
    )
