"""Pareto plot: quality against denoise latency, both with intervals; a front is named only where intervals separate."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from reports.aggregates import Estimate, estimate, units
from reports.catalogue import BY_KEY, HEADLINE, seconds
from reports.data import RunData
from reports.style import COLUMN, INK, MUTED, PAGE, label_points, legible, looks, pale, save, short, style

Place = Literal["front", "dominated", "undecided"]


@dataclass(frozen=True)
class Point:
    """One cell in the plane. Quality in the metric's own unit (higher better), latency in seconds."""

    cell: str
    label: str
    kind: str
    quality: Estimate
    latency: Estimate
    place: Place = "undecided"


def points(run: RunData, quality: str = HEADLINE, latency: str = "denoise_s") -> list[Point]:
    """All cells that have both numbers, each with its place."""
    found = []
    for cell in run.cells:
        q, s = estimate(run, cell.cell, quality), estimate(run, cell.cell, latency)
        if cell.kind != "control" and q.value is not None and s.value is not None and s.value > 0:
            found.append(Point(cell.cell, cell.label, cell.kind, q, s))
    return [Point(p.cell, p.label, p.kind, p.quality, p.latency, _place(p, found)) for p in found]


def _above(a: Estimate, b: Estimate) -> bool:
    """True when a is greater than b by separated intervals."""
    return a.low is not None and b.high is not None and a.low > b.high


def _place(point: Point, others: list[Point]) -> Place:
    """front: against every other one, better by separated intervals in quality or in latency.
    dominated: some other one is so in both. Otherwise the data do not decide."""
    rest = [o for o in others if o.cell != point.cell]
    better = [(_above(point.quality, o.quality), _above(o.latency, point.latency)) for o in rest]
    if all(quality or latency for quality, latency in better):
        return "front"
    worse = [(_above(o.quality, point.quality), _above(point.latency, o.latency)) for o in rest]
    return "dominated" if any(quality and latency for quality, latency in worse) else "undecided"


def build(run: RunData, out: Path) -> list[Path]:
    """Quality against latency with intervals and front: figures/pareto.png, .pdf; [] when no cell has both."""
    found = points(run)
    if not found:
        return []
    shown = BY_KEY[HEADLINE]
    look = looks(run)
    with style():
        crowded = len(found) > 8  # no room for the labels in one column
        figure, axes = plt.subplots(figsize=(PAGE, 4) if crowded else (COLUMN, 2.75))
        for p in found:
            x, y, colour = _value(p.latency), shown.scale * _value(p.quality), look[p.cell].colour
            colour = pale(colour) if p.place == "dominated" else colour
            face = "white" if p.place == "undecided" else colour
            size = 8 if p.kind == "reference" else 5
            axes.errorbar(
                x,
                y,
                xerr=_whisker(p.latency, 1),
                yerr=_whisker(p.quality, shown.scale),
                fmt=look[p.cell].marker,
                color=colour,
                markerfacecolor=face,
                markersize=size,
                markeredgewidth=1,
                elinewidth=0.9,
                capsize=1.8,
                capthick=0.9,
                zorder=3,
            )
        front = sorted((_value(p.latency), shown.scale * _value(p.quality)) for p in found if p.place == "front")
        if len(front) > 1:
            axes.step(*zip(*front, strict=True), where="post", color=INK, lw=0.8, ls=(0, (4, 2)), zorder=2)
        ceiling = [c for c in run.cells if c.cell == "real"]
        if ceiling and (real := estimate(run, "real", HEADLINE).value) is not None:
            axes.axhline(shown.scale * real, color=MUTED, lw=0.6, ls=":")
            axes.annotate(
                "real clips",
                (0, shown.scale * real),  # at the fast end: slow cells are near this line
                (2, 1),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                ha="left",
                va="bottom",
                fontsize=6,
                color=MUTED,
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: seconds(x)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.16, y=0.12)
        axes.set_xlabel("denoising one clip, median (log scale) · ← faster")
        axes.set_ylabel(f"{shown.title.lower()} accuracy ({shown.unit})")
        label_points(
            axes,
            [(_value(p.latency), shown.scale * _value(p.quality)) for p in found],
            [short(p.label) for p in found],
            [legible(look[p.cell].colour) for p in found],
            [line for p in found for line in _cross(p, shown.scale)] + _steps(front),
        )
        return save(figure, out, "pareto")


def _steps(front: list[tuple[float, float]]) -> list[tuple[float, float, float, float]]:
    """The lines between the front's points, across and then up or down, as boxes (x0, y0, x1, y1)."""
    pairs = list(pairwise(front))
    across = [(x0, y0, x1, y0) for (x0, y0), (x1, _) in pairs]
    return across + [(x1, min(y0, y1), x1, max(y0, y1)) for (_, y0), (x1, y1) in pairs]


def caption(run: RunData) -> str:
    """What the figure shows, for the page."""
    named = [p.label for p in points(run) if p.place == "front"]
    front = f"On the front: {', '.join(named)}." if named else "No cell is on the front beyond doubt."
    return (
        "Headline quality against the median time of the denoising loop; whiskers are 95 % intervals: "
        f"of quality over {units(run)}, of time order statistics. Filled: on the "
        "front, better than every other cell in quality or in time by separated intervals. Hollow: the intervals do "
        f"not decide. Faded: dominated. {front}"
    )


def _value(e: Estimate) -> float:
    assert e.value is not None
    return e.value


def _cross(p: Point, scale: float) -> list[tuple[float, float, float, float]]:
    """Both whiskers as boxes (x0, y0, x1, y1), in data units."""
    x, y = _value(p.latency), _value(p.quality)
    q, s = p.quality, p.latency
    left, right = (s.low, s.high) if s.low is not None and s.high is not None else (x, x)
    bottom, top = (q.low, q.high) if q.low is not None and q.high is not None else (y, y)
    return [(left, scale * y, right, scale * y), (x, scale * bottom, x, scale * top)]


def _whisker(e: Estimate, scale: float) -> list[list[float]] | None:
    if e.value is None or e.low is None or e.high is None:
        return None
    return [[scale * max(e.value - e.low, 0)], [scale * max(e.high - e.value, 0)]]
