"""Small pictures of every measured table and figure for README.md: `python -m reports.thumbnails` makes them again.

They are made of what lies in reports/measured: tables from their Markdown, figures from their PNG.
"""

from __future__ import annotations

import html
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from reports.style import INK, MUTED, style

MEASURED = Path(__file__).parent / "measured"
TABLES = {
    "main_table": "main.md",
    "comparisons": "differences.md",
    "summary": "summary.txt",
    "sweeps": "paper/sweep-alpha.md",
    "claims": "claims.md",
    "paper_numbers": "paper/paper.md",
    "paper_tables": "paper/paper-table-2.md",
}
FIGURES = {
    **{name: f"{name}.png" for name in ("pareto", "profile", "per_condition", "waterfall", "importance", "filmstrip")},
    "training_curves": "training_curves.png",
    "sweep_figures": "paper/sweep-steps-keep.png",
    "blind_spots": "check-metrics.png",
}
WIDTH, MOST = 320, 15 * 1024  # pixels, bytes
ROWS, COLUMNS, LETTERS = 12, 7, 26  # what of a table is legible at this size


def main() -> None:
    """Write measured/thumbnails/REPORT.png for every report that has measured output."""
    out = MEASURED / "thumbnails"
    out.mkdir(exist_ok=True)
    for name, source in TABLES.items():
        text = (MEASURED / source).read_text(encoding="utf-8")
        _shrunk(_drawn(plain(text) if source.endswith(".txt") else cells(text)), out / f"{name}.png")
    for name, source in FIGURES.items():
        with Image.open(MEASURED / source) as image:
            _shrunk(image.convert("RGB"), out / f"{name}.png")


def cells(markdown: str) -> list[list[str]]:
    """The first table of a Markdown text: header and rows as plain texts, intervals and footnotes left out."""
    lines = markdown[markdown.index("\n|") + 1 :] if not markdown.startswith("|") else markdown
    found = []
    for line in lines.split("\n\n")[0].splitlines():
        parts = re.split(r"(?<!\\)\|", line.strip())[1:-1]
        if not all(re.fullmatch(r" *:?-+:? *", part) for part in parts):
            found.append([_bare(part) for part in parts])
    return found


def plain(text: str) -> list[list[str]]:
    """A text table whose columns stand two blanks or more apart."""
    return [re.split(r" {2,}", line) for line in text.splitlines() if line.strip()]


def _bare(text: str) -> str:
    text = re.sub(r"<sup>.*?</sup>|</?ins>|\*\*", "", text)
    text = re.sub(r" *\\\[.*?\\\]", "", text)
    return html.unescape(re.sub(r"\\(.)", r"\1", text)).strip()


def _drawn(rows: list[list[str]]) -> Image.Image:
    """The head of a table as a picture, twice as large as it will be."""
    shown = [[c if len(c) <= LETTERS else c[: LETTERS - 1] + "…" for c in row[:COLUMNS]] for row in rows[:ROWS]]
    columns = max(map(len, shown))
    shown = [row + [""] * (columns - len(row)) for row in shown]
    widths = [max(len(row[i]) for row in shown) + 2 for i in range(columns)]
    with style(), plt.rc_context({"figure.constrained_layout.use": False}):
        figure = plt.figure(figsize=(2 * WIDTH / 100, 0.24 * len(shown) + 0.1), dpi=100)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(0, sum(widths))
        axes.set_ylim(len(shown), 0)
        size = min(10.0, 2 * WIDTH / sum(widths) * 1.15)
        for y, row in enumerate(shown):
            x = 0.5
            for text, width in zip(row, widths, strict=True):
                weight = "bold" if y == 0 or x == 0.5 else "normal"
                axes.text(x, y + 0.5, text, va="center", fontsize=size, fontweight=weight, color=INK)
                x += width
            axes.axhline(y + 1, color=MUTED, lw=0.9 if y == 0 else 0.2)
        figure.canvas.draw()
        image = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])  # type: ignore[attr-defined]
        plt.close(figure)
        return image


def _shrunk(image: Image.Image, path: Path) -> None:
    """Write the picture as wide as a thumbnail and no larger than allowed: first fewer colours, then fewer pixels."""
    width = WIDTH
    while True:
        small = image.resize((width, round(width * image.height / image.width)), Image.Resampling.LANCZOS)
        for colours in (32, 16, 8):
            small.quantize(colours, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)
            if path.stat().st_size <= MOST:
                return
        width = round(0.85 * width)


if __name__ == "__main__":
    main()
