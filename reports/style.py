"""One look for all figures: colours for colour-blind readers, sizes for a paper's column, PNG and PDF."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from reports.data import RunData

COLUMN, PAGE = 3.4, 7.0  # inches: one column, the whole width of a two-column page
DPI = 200  # of the PNG
INK, MUTED, GRID = "#1c1c1e", "#6d6d72", "#e3e3e8"
# Okabe and Ito (2008), without the yellow that is too light for thin lines on white; then a violet and a brown.
METHOD_COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#6a3d9a", "#8b5a2b")
EXTERNAL_COLOURS = ("#7f1d4f", "#00554a", "#4b3f8f", "#a34700")  # beside the methods, darker
BASELINE_COLOURS = ("#7a7a80", "#a0a0a6", "#57575c", "#8c7f6a", "#b9a98c")
METHOD_MARKERS = ("o", "s", "D", "^", "v", "P", "H", "d")
EXTERNAL_MARKERS = ("*", "h", "8", "p")
BASELINE_MARKERS = ("X", "<", ">", "p", "h")


@dataclass(frozen=True)
class Look:
    """Colour (hex) and matplotlib marker of a cell, the same in every figure and on the page."""

    colour: str
    marker: str


def looks(run: RunData) -> dict[str, Look]:
    """A look for every cell: reference black, methods coloured, external students dark, baselines grey, controls pale.

    By name: a cell that one family skips and another does not changes no other cell's look.
    """
    found: dict[str, Look] = {}
    ranges = {
        "method": (METHOD_COLOURS, METHOD_MARKERS),
        "external": (EXTERNAL_COLOURS, EXTERNAL_MARKERS),
        "baseline": (BASELINE_COLOURS, BASELINE_MARKERS),
    }
    count = dict.fromkeys(ranges, 0)
    for cell in sorted(run.cells, key=lambda cell: cell.cell):
        if cell.kind == "reference":
            found[cell.cell] = Look(INK, "*")
        elif cell.kind == "control":
            found[cell.cell] = Look("#b5b5bb", "d")
        else:
            kind = cell.kind if cell.kind in ranges else "baseline"  # open models are baselines with their own networks
            colours, markers = ranges[kind]
            i = count[kind]
            count[kind] += 1
            found[cell.cell] = Look(colours[i % len(colours)], markers[i % len(markers)])
    return found


@contextmanager
def style() -> Iterator[None]:
    """Small type for a paper's column; fonts embedded as TrueType (type 42); text never parsed as mathematics."""
    settings: dict[str, Any] = {
        "font.family": "DejaVu Sans",
        "font.size": 7.5,
        "axes.labelsize": 7.5,
        "axes.titlesize": 8,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "xtick.labelsize": 7,
        "ytick.labelsize": 7,
        "axes.edgecolor": MUTED,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "axes.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "grid.linewidth": 0.5,
        "lines.linewidth": 1.2,
        "figure.dpi": 100,
        "savefig.dpi": DPI,
        "pdf.fonttype": 42,
        "ps.fonttype": 42,
        "text.parse_math": False,
        "figure.constrained_layout.use": True,
    }
    with plt.rc_context(cast(Any, settings)):
        yield


def save(figure: Figure, out: Path, name: str) -> list[Path]:
    """Write figures/NAME.png (200 dpi) and .pdf under `out`, and close the figure."""
    folder = out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png", folder / f"{name}.pdf"]
    # Laid out and measured once: that costs as much as drawing, and both files have the same places.
    figure.set_dpi(DPI)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    box = figure.get_tightbbox().padded(0.03)
    for path in paths:
        # No creation date: the same results give the same bytes.
        metadata = {"CreationDate": None} if path.suffix == ".pdf" else {"Software": None}
        figure.savefig(path, metadata=metadata, bbox_inches=box)
    plt.close(figure)
    return paths


def label_points(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    labels: Sequence[str],
    colours: Sequence[str],
    obstacles: Sequence[tuple[float, float, float, float]] = (),
    size: float = 6.5,
) -> None:
    """Write each label beside its point where it covers no label, point or obstacle (x0, y0, x1, y1), given room."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.set_dpi(DPI)  # letters are wider at some resolutions
    figure.canvas.draw()
    figure.set_layout_engine("none")  # the labels would move what they were placed beside
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    inside = axes.get_window_extent(renderer)
    pixels = [axes.transData.transform(p) for p in points]
    taken = [Bbox.from_extents(x - 12, y - 12, x + 12, y + 12) for x, y in pixels]
    for x0, y0, x1, y1 in obstacles:
        (left, bottom), (right, top) = axes.transData.transform([(x0, y0), (x1, y1)])
        taken.append(Bbox.from_extents(left - 4, bottom - 4, right + 4, top + 4))
    reach: list[tuple[float, float, str, str]]
    reach = [(7, 0, "left", "center"), (-7, 0, "right", "center"), (0, 8, "center", "bottom"), (0, -8, "center", "top")]
    reach += [(6, 6, "left", "bottom"), (6, -6, "left", "top"), (-6, 6, "right", "bottom"), (-6, -6, "right", "top")]
    reach += [(2 * dx, 2.2 * dy, h, v) for dx, dy, h, v in reach[2:]]
    reach += [(2 * dx, 3.4 * dy, h, v) for dx, dy, h, v in reach[2:8]]
    written: list[Bbox] = []
    for point, label, colour in zip(points, labels, colours, strict=True):
        best, best_cost = None, float("inf")
        for order, (dx, dy, horizontal, vertical) in enumerate(reach):
            text = axes.annotate(
                label, point, (dx, dy), textcoords="offset points", ha=horizontal, va=vertical, fontsize=size
            )
            text.set_fontweight("bold")
            box = text.get_window_extent(renderer).padded(3)
            text.remove()
            overlap = sum(_overlap(box, other) for other in taken)
            unreadable = sum(_overlap(box, other) for other in written)
            outside = box.width * box.height - _overlap(box, inside)
            cost = overlap + 25 * unreadable + 2 * outside + 16 * order
            if cost < best_cost:
                best, best_cost = (dx, dy, horizontal, vertical, box), cost
        assert best is not None
        dx, dy, horizontal, vertical, box = best
        far = abs(dx) + abs(dy) > 16
        axes.annotate(
            label,
            point,
            (dx, dy),
            textcoords="offset points",
            ha=horizontal,
            va=vertical,
            fontsize=size,
            color=colour,
            fontweight="bold",
            path_effects=[withStroke(linewidth=2, foreground="white")],  # legible across a whisker or the front
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.5, "shrinkB": 3} if far else None,
        )
        written.append(box)


def _overlap(a: Bbox, b: Bbox) -> float:
    common = Bbox.intersection(a, b)
    return 0.0 if common is None else common.width * common.height


def short(label: str, most: int = 28) -> str:
    """A label on one line that leaves room for the figure."""
    label = " ".join(label.split())
    return label if len(label) <= most else label[: most - 1] + "…"


def pale(colour: str) -> str:
    """The colour mixed half with white, for what is shown but not argued with."""
    return "#" + "".join(f"{(int(colour[i : i + 2], 16) + 255) // 2:02x}" for i in (1, 3, 5))


def legible(colour: str) -> str:
    """The colour, darkened when it would be too light as text on white (about 3:1 contrast)."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    while 0.2126 * red + 0.7152 * green + 0.0722 * blue > 135:
        red, green, blue = (int(0.88 * c) for c in (red, green, blue))
    return f"#{red:02x}{green:02x}{blue:02x}"
