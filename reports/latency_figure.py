"""Figure of `flgbench latency`, and its files: seconds of a clip by stage beside nominal and measured speed-ups."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from reports.latency_report import Summary, seconds_text, summaries, table, title_of
from reports.style import INK, MUTED, PAGE, save, short, style
from reports.tables import write

STAGE_LOOKS = {
    "text_s": ("#56b4e9", "text, first frame"),
    "denoise_s": ("#0072b2", "denoising"),
    "decode_s": ("#e69f00", "decoding"),
}


def figure(document: dict[str, Any], out: Path) -> list[Path]:
    """Seconds of a clip by row, stacked by stage, beside nominal and measured speed-ups: figures/latency.png, .pdf."""
    found = [s for s in summaries(document) if s.values["end_to_end_s"].value is not None]
    if not found:
        return []
    with style():
        size = (PAGE, 0.34 * len(found) + 1.15)
        drawn, (left, right) = plt.subplots(1, 2, figsize=size, sharey=True, width_ratios=(1.25, 1))
        _stages(left, found)
        _speedups(right, found)
        names = [short(s.label if s.mode == "eager" else f"{s.label}, compiled", 34) for s in found]
        left.set_yticks(range(len(found)), names)
        left.set_ylim(len(found) - 0.4, -0.6)
        drawn.suptitle(title_of(document), fontsize=8, fontweight="bold", x=0.01, ha="left")
        for axes in (axes for axes in (left, right) if axes.get_legend_handles_labels()[0]):
            axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.99), ncols=3, fontsize=6, frameon=False, handlelength=1.2)
        return save(drawn, out, "latency")


def _stages(axes: Axes, found: Sequence[Summary]) -> None:
    for y, row in enumerate(found):
        start = 0.0
        for stage, (colour, label) in STAGE_LOOKS.items():
            taken = row.values[stage].value or 0.0
            axes.barh(y, taken, left=start, height=0.62, color=colour, lw=0, label=label if y == 0 else None)
            start += taken
        axes.annotate(f"{seconds_text(start)} s", (start, y), (3, 0), textcoords="offset points", va="center", fontsize=6.5)
    axes.set_xlabel("seconds per clip")
    axes.margins(x=0.14)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def _speedups(axes: Axes, found: Sequence[Summary]) -> None:
    looks = (("nominal", "|", MUTED, "nominal"), ("denoise", "o", "#0072b2", "denoising"), ("end_to_end", "s", INK, "clip"))
    for y, row in enumerate(found):
        for offset, (key, marker, colour, label) in zip((0.0, -0.13, 0.13), looks, strict=True):
            value = row.values[key]
            if value.value is None:
                continue
            size = 11 if marker == "|" else 4
            told = label if y == 0 else None
            axes.plot(value.value, y + offset, marker=marker, ms=size, color=colour, ls="", label=told, zorder=3)
            if value.low is not None and value.high is not None:
                axes.plot([value.low, value.high], [y + offset] * 2, color=colour, lw=1)
    axes.set_xscale("log")
    axes.set_xlabel("speed-up over the reference (log scale)")
    axes.xaxis.set_major_formatter(lambda v, _: f"{v:g}×")
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def build(document: dict[str, Any], out: Path) -> list[Path]:
    """latency.md, .csv, .tex and the figure."""
    return [*write([table(document)], out, "latency"), *figure(document, out)]
