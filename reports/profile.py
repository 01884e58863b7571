"""Quality profiles of methods and few-step baselines: the same measures in small panels, from bad (0) to real clips (1).

Each measure is laid on a scale whose ends are printed beside the panels: 0 is the frozen first frame, or a documented worst
where standing still is no fault (`WORST`); 1 is the run's real clips. Intervals are the measure's own: the ends are taken as
known.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from flgbench.data import shapes
from reports.aggregates import Estimate, estimate, units
from reports.catalogue import BY_KEY, Shown
from reports.data import Cell, RunData
from reports.style import INK, MUTED, PAGE, legible, looks, save, short, style

REAL, FROZEN = "real", "frozen_image"
FEW = 8  # a baseline with at most so many steps is shown: what a student of few steps is held against
COLUMNS = 4
# Groups of measures, each drawn as a line of its own.
GROUPS = (
    ("presence", "colour", "shape", "direction", "second_present", "second_colour"),
    ("turn_error", "motion_ratio"),
    ("sharpness_ratio", "area_drift", "colour_drift"),
    ("turn_diversity", "vendi", "hidden_tv_turn", "hidden_tv_side", "hidden_tv_entry"),
)
# A frozen first frame is right in most of these, or has no value; so 0 is what each comment says.
WORST = {
    **dict.fromkeys(GROUPS[0], 0.0),  # in no clip
    "sharpness_ratio": 0.0,  # no edge at all
    "area_drift": 1.0,  # twice or half the area
    "colour_drift": 60.0,  # the RGB distance from which a colour counts as wrong
    "turn_diversity": 0.0,  # every seed of a condition turns alike
    **{f"hidden_tv_{name}": 1 - max(shapes.LAWS[name]) for name in ("turn", "side", "entry")},  # always the same outcome
}


@dataclass(frozen=True)
class Scale:
    """Ends of one measure in its stored unit: `bad` becomes 0 and `good` 1; None, with the reason, where not known."""

    metric: str
    bad: float | None
    good: float | None
    reason: str = ""

    def place(self, value: float) -> float:
        """`value` on the scale. Where both tails are bad, the distance from the good end counts, whichever side it is on."""
        assert self.bad is not None and self.good is not None
        place = (value - self.bad) / (self.good - self.bad)
        return 1 - abs(1 - place) if BY_KEY[self.metric].best == "one" else place

    def text(self) -> str:
        """Both ends as printed: '10.39 → 0.04 px'."""
        if self.bad is None or self.good is None:
            return "no scale"
        shown = BY_KEY[self.metric]
        return f"{_brief(shown, self.bad)} → {_brief(shown, self.good)} {_unit(shown)}".rstrip()


@dataclass(frozen=True)
class Mark:
    """One measure of one cell on its scale; `place` is None when it is missing, then `reason` says why."""

    metric: str
    place: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""


def scales(run: RunData) -> list[Scale]:
    """One scale a measure, in the order of the panels."""
    return [_scale(run, metric) for group in GROUPS for metric in group]


def _scale(run: RunData, metric: str) -> Scale:
    ends = {}
    for cell in (REAL, FROZEN):
        known = any(c.cell == cell for c in run.cells)
        ends[cell] = estimate(run, cell, metric).value if known else None
    bad, good = WORST.get(metric, ends[FROZEN]), ends[REAL]
    if good is None:
        return Scale(metric, bad, None, "no number of real clips to scale it by")
    if bad is None:
        return Scale(metric, None, good, "no number of the frozen first frame to scale it by")
    if abs(good - bad) < 1e-9:
        return Scale(metric, None, None, "real clips are at its bad end")
    return Scale(metric, bad, good)


def marks(run: RunData, cell: str) -> list[Mark]:
    """Every measure of one cell on its scale, in the order of the panels."""
    return [_mark(scale, estimate(run, cell, scale.metric)) for scale in scales(run)]


def _mark(scale: Scale, found: Estimate) -> Mark:
    if scale.reason:
        return Mark(scale.metric, reason=scale.reason)
    if found.value is None:
        return Mark(scale.metric, reason=found.reason)
    if found.low is None or found.high is None:
        return Mark(scale.metric, scale.place(found.value))
    assert scale.good is not None
    ends = [scale.place(found.low), scale.place(found.high)]
    if BY_KEY[scale.metric].best == "one" and found.low < scale.good < found.high:
        ends.append(1.0)  # the fold: the best value lies inside the interval
    return Mark(scale.metric, scale.place(found.value), min(ends), max(ends))


def shown_cells(run: RunData) -> list[Cell]:
    """The first training of every method, external students, then baselines of few steps."""
    methods = [c for c in run.cells if c.kind in ("method", "external") and c.repeat == 0]
    few = [c for c in run.cells if c.kind == "baseline" and c.num_inference_steps and c.num_inference_steps <= FEW]
    return methods + few


def build(run: RunData, out: Path) -> list[Path]:
    """Quality profiles in small multiples: figures/profile.png, .pdf; [] without results of a method or of real clips."""
    cells = shown_cells(run)
    if not any(m.place is not None for c in cells for m in marks(run, c.cell)):
        return []
    look = looks(run)
    teacher = marks(run, run.reference.cell) if run.reference else []
    lines = -(-(len(cells) + 1) // COLUMNS)
    with style():
        size = (PAGE, 2.15 * lines + 0.25)
        figure, grid = plt.subplots(lines, COLUMNS, figsize=size, sharex=True, sharey=True, squeeze=False)
        panels = list(grid.flat)
        for axes, cell in zip(panels, cells, strict=False):
            _panel(axes, cell, marks(run, cell.cell), teacher, legible(look[cell.cell].colour), look[cell.cell].marker)
        _scale_panel(panels[len(cells)], scales(run))
        for axes in panels[len(cells) + 1 :]:
            axes.axis("off")
        for i, axes in enumerate(panels[: len(cells)]):
            axes.tick_params(labelbottom=i + COLUMNS >= len(cells))
        figure.supxlabel("0: bad end of the scale · 1: real clips · grey line: the teacher", fontsize=7.5)
        return save(figure, out, "profile")


def _rows() -> list[list[float]]:
    """Heights of the measures, from the top, with a gap between groups."""
    heights, y = [], 0.0
    for group in GROUPS:
        heights.append([y + i for i in range(len(group))])
        y += len(group) + 0.6
    return heights


def _panel(axes: Axes, cell: Cell, found: list[Mark], teacher: list[Mark], colour: str, marker: str) -> None:
    heights = _rows()
    flat = [y for group in heights for y in group]
    if teacher:
        _line(axes, heights, teacher, "#c4c4ca", 2.6, 1)
    axes.axvline(1, color=MUTED, lw=0.6, ls=":", zorder=0)
    if cell.failed:
        axes.text(0.5, flat[len(flat) // 2], cell.status, ha="center", va="center", fontsize=7, color=MUTED)
    else:
        _line(axes, heights, found, colour, 0.9, 3)
        for y, mark in zip(flat, found, strict=True):
            if mark.place is None:
                axes.text(0.5, y, "n/a", ha="center", va="center", fontsize=5.5, color=MUTED)
                continue
            if mark.low is not None and mark.high is not None:
                axes.plot(_clip([mark.low, mark.high]), [y, y], color=colour, lw=0.9, zorder=3)
            # An arrow at the edge stands for a value beyond it.
            beyond = "<" if mark.place < -0.04 else ">" if mark.place > 1.14 else ""
            axes.plot(_clip([mark.place]), [y], beyond or marker, color=colour, ms=3.2, mew=0.6, zorder=4)
    axes.set_title(short(cell.label, 26), fontsize=7.5, color=INK if cell.kind == "baseline" else colour)
    axes.set_xlim(-0.06, 1.16)
    axes.set_ylim(flat[-1] + 0.7, -0.7)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    axes.set_yticks(flat, [BY_KEY[m.metric].title for m in found], fontsize=6.2)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def _line(axes: Axes, heights: list[list[float]], found: list[Mark], colour: str, width: float, order: int) -> None:
    """The profile's line, broken between groups and where a measure is missing."""
    rest = iter(found)
    for group in heights:
        places = [next(rest).place for _ in group]
        drawn = [float("nan") if p is None else _clip([p])[0] for p in places]
        axes.plot(drawn, group, color=colour, lw=width, zorder=order, solid_capstyle="round")


def _scale_panel(axes: Axes, found: list[Scale]) -> None:
    """What 0 and 1 stand for, on the rows of the measures."""
    flat = [y for group in _rows() for y in group]
    for y, scale in zip(flat, found, strict=True):
        axes.text(0, y, scale.text(), va="center", fontsize=6.2, color=INK)
    axes.set_title("Scale: 0 → 1", fontsize=7.5)
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=0, labelbottom=False)


def _clip(values: list[float]) -> list[float]:
    return [min(max(v, -0.04), 1.14) for v in values]


def _brief(shown: Shown, value: float) -> str:
    return shown.text(value).rstrip("0").rstrip(".") if "." in shown.text(value) else shown.text(value)


def _unit(shown: Shown) -> str:
    return {"ratio": ""}.get(shown.unit, shown.unit)


def caption(run: RunData) -> str:
    """What the figure shows, for the page."""
    said = "; ".join(f"{BY_KEY[s.metric].title} {s.text()}" for s in scales(run) if not s.reason)
    none = [f"{BY_KEY[s.metric].title}: {s.reason}" for s in scales(run) if s.reason]
    return (
        "Quality profiles: every measure from a bad end (0) to the real clips of this run (1), the teacher as a grey line. "
        "The bad end is the frozen first frame; where standing still is no fault it is 0 (shares, sharpness, variety), "
        "double the area, the RGB distance of a wrong colour, or one and the same outcome always (TV). "
        f"Ends: {said}. Where both tails are bad (motion, sharpness, Vendi) the distance from real clips counts. Bars: 95 % "
        f"intervals of the measure over {units(run)}; TV and Vendi are measures of the whole set and have none. "
        "Measures of the main object are over the clips in which it is found. n/a: missing; the tables say why."
        + (f" Without a scale: {'; '.join(none)}." if none else "")
    )
