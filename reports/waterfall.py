"""Speed-up waterfall: how steps, guidance and size multiply, and what the measured speed-up loses on the way."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from reports.aggregates import Ratio, estimate, nominal, speedups
from reports.catalogue import seconds, times
from reports.data import Cell, RunData
from reports.style import INK, MUTED, PAGE, save, short, style

GAIN, TOTAL, LOSS = "#009e73", "#0072b2", "#d55e00"
STAGES = ("text_s", "denoise_s", "decode_s")


@dataclass(frozen=True)
class Bar:
    """From `start` to `end` on the speed-up axis; `total` bars start at 1."""

    label: str
    start: float
    end: float
    total: bool = False
    ratio: Ratio | None = None

    @property
    def text(self) -> str:
        if self.total:
            return self.ratio.text() if self.ratio is not None else times(self.end)
        factor = self.end / self.start
        return f"×{factor:.3g}" if factor >= 1 else f"×{factor:.2f}"


@dataclass(frozen=True)
class Factors:
    """Nominal speed-up = steps × guidance × size."""

    steps: float
    guidance: float
    size: float


def factors(run: RunData, cell: Cell) -> Factors | None:
    """The three factors of the nominal speed-up; None without NFE, steps or kept blocks."""
    r = run.reference
    if r is None or not (r.nfe and r.num_inference_steps and r.kept_blocks):
        return None
    if not (cell.nfe and cell.num_inference_steps and cell.kept_blocks):
        return None
    steps = r.num_inference_steps / cell.num_inference_steps
    guidance = (r.nfe / r.num_inference_steps) / (cell.nfe / cell.num_inference_steps)
    return Factors(steps, guidance, r.kept_blocks / cell.kept_blocks)


def bars(run: RunData, cell: Cell) -> list[Bar]:
    """The waterfall's bars; the measured part is left out where it was not measured."""
    f, reference = factors(run, cell), run.reference
    if f is None or reference is None:
        return []
    level = 1.0
    found = []
    for name, factor in (
        (f"steps {reference.num_inference_steps} → {cell.num_inference_steps}", f.steps),
        (f"passes a step {_passes(reference)} → {_passes(cell)}", f.guidance),
        (f"blocks kept {100 * (cell.kept_blocks or 1):.0f} %", f.size),
    ):
        if not math.isclose(factor, 1.0):
            found.append(Bar(name, level, level * factor))
        level *= factor
    found.append(Bar("nominal", 1.0, level, total=True))
    ups = speedups(run, cell)
    for name, lost, ratio in (
        ("denoise, measured", "pass overhead", ups.denoise),
        ("end to end, measured", "text and decoding", ups.end_to_end),
    ):
        if ratio.value is None:
            break
        found += [Bar(lost, level, ratio.value), Bar(name, 1.0, ratio.value, total=True, ratio=ratio)]
        level = ratio.value
    return found


def _passes(cell: Cell) -> str:
    return f"{(cell.nfe or 0) / (cell.num_inference_steps or 1):g}"


def _medians(run: RunData, cell: Cell) -> dict[str, float]:
    """Median seconds of every stage that was measured."""
    found = {key: estimate(run, cell.cell, key).value for key in (*STAGES, "end_to_end_s")}
    return {key: value for key, value in found.items() if value is not None}


def explain(run: RunData, cell: Cell) -> str:
    """What the measured speed-up loses against the nominal one, and where, in words from the numbers."""
    f, reference, ups = factors(run, cell), run.reference, speedups(run, cell)
    if f is None or reference is None:
        return ""
    nominal = f.steps * f.guidance * f.size
    said = [f"Nominal {times(nominal)} = {f.steps:.3g} (steps) × {f.guidance:.3g} (guidance) × {f.size:.3g} (size)."]
    if ups.denoise.value is None:
        return f"{said[0]} Denoise speed-up not measured: {ups.denoise.reason}."
    mine, theirs = _medians(run, cell), _medians(run, reference)
    if cell.nfe and reference.nfe:
        passed = mine["denoise_s"] / cell.nfe
        expected = theirs["denoise_s"] / reference.nfe / f.size
        lost = ups.denoise.value / nominal - 1
        compared = f"{abs(lost):.0%} {'less' if lost < 0 else 'more'} than" if abs(lost) >= 0.005 else "as much as"
        said.append(
            f"The denoising loop gives {ups.denoise.text()}, {compared} nominal: a network pass takes {seconds(passed)} "
            f"where the reference's pass times the kept share makes {seconds(expected)}."
        )
    fixed = {"text_s", "decode_s", "end_to_end_s"}
    if ups.end_to_end.value is not None and fixed <= mine.keys() & theirs.keys():
        share, share_theirs = ((m["text_s"] + m["decode_s"]) / m["end_to_end_s"] for m in (mine, theirs))
        said.append(
            f"End to end {ups.end_to_end.text()} remain: text encoding ({seconds(mine['text_s'])}) and VAE decoding "
            f"({seconds(mine['decode_s'])}), which stay as they are, make {min(share, 1):.0%} of this cell's time and "
            f"{min(share_theirs, 1):.0%} of the reference's."
        )
    if ups.denoise_batched.value is not None:
        said.append(
            f"Against a reference that runs both guidance passes in one batch the denoise speed-up is "
            f"{ups.denoise_batched.text()}."
        )
    return " ".join(said)


def build(run: RunData, out: Path) -> list[Path]:
    """How the measured speed-up arises: figures/waterfall.png, .pdf; [] when no cell has a nominal one."""
    # Students, or baselines where there is none; what computes every pass of the reference has no speed-up to take apart.
    students = any(c.kind in ("method", "external") for c in run.cells)
    kinds = ("method", "external") if students else ("baseline",)
    found = [(c, bars(run, c)) for c in run.cells if c.kind in kinds and not c.failed]
    found = [(c, b) for c, b in found if len(b) > 1 and not math.isclose(nominal(run, c).value or 1.0, 1.0)]
    if not found:
        return []
    columns = min(2, len(found))
    rows = math.ceil(len(found) / columns)
    most = max(len(b) for _, b in found)
    top = max(bar.end for _, b in found for bar in b)
    with style():
        figure, grid = plt.subplots(
            rows, columns, figsize=(PAGE * columns / 2, rows * (0.21 * most + 0.95)), squeeze=False, sharex=True
        )
        for axes in grid.flat[len(found) :]:
            axes.set_axis_off()
        for axes, (cell, steps) in zip(grid.flat, found, strict=False):
            _panel(axes, steps, short(cell.label), top)
            axes.set_ylim(most - 0.5, -0.5)
        for column in range(columns):
            grid[(len(found) - 1 - column) // columns, column].set_xlabel("speed-up over the reference (log scale)")
            grid[(len(found) - 1 - column) // columns, column].xaxis.set_tick_params(labelbottom=True)
        return save(figure, out, "waterfall")


def _panel(axes: Axes, steps: list[Bar], title: str, top: float) -> None:
    for y, bar in enumerate(steps):
        left, right = sorted((bar.start, bar.end))
        colour = TOTAL if bar.total else GAIN if bar.end >= bar.start else LOSS
        axes.barh(y, right - left, left=left, height=0.66, color=colour, alpha=1 if bar.total else 0.75, lw=0)
        axes.annotate(
            bar.text,
            (right, y),
            (3, 0),
            textcoords="offset points",
            va="center",
            fontsize=6.5,
            fontweight="bold" if bar.total else "normal",
            color=INK if bar.total else colour,
        )
        if bar.total and bar.ratio is not None and bar.ratio.low is not None and bar.ratio.high is not None:
            axes.plot([bar.ratio.low, bar.ratio.high], [y, y], color=INK, lw=0.8, solid_capstyle="butt")
        if y + 1 < len(steps):
            axes.plot([bar.end, bar.end], [y + 0.33, y + 0.67], color=MUTED, lw=0.6)
    axes.set_yticks(range(len(steps)), [b.label for b in steps])
    for text, bar in zip(axes.get_yticklabels(), steps, strict=True):
        text.set_fontweight("bold" if bar.total else "normal")
    axes.tick_params(axis="y", length=0, labelsize=6.5)
    axes.set_xscale("log")
    axes.set_xlim(0.93, top * 10)
    axes.xaxis.set_major_locator(FixedLocator([x for x in (1, 3, 10, 30, 100, 300, 1000) if x < 1.5 * top]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}×"))
    axes.grid(axis="y", visible=False)
    axes.set_title(title)


def caption(run: RunData) -> str:
    """What the figure shows, for the page."""
    pairs = max((speedups(run, c).denoise.n for c in run.cells), default=0)
    return (
        "Green: what each change multiplies. Blue: nominal (arithmetic), measured in the denoising loop, measured end "
        f"to end, with 95 % intervals over {pairs} timed pairs. Orange: what is lost between them."
    )
