"""The measures' self-test: which kind of damage each measure notices, as lines, as a table and as a heat map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.patches import Patch, Rectangle

from flgbench.metrics.selftest import MEASURES, Finding
from reports.catalogue import BY_KEY
from reports.style import INK, PAGE, save, style

SHADES = {"wrong way": "#cc79a7", "blind": "#f4f4f6", "caught": "#56b4e9", "caught, strongly": "#0072b2"}
STRONG = 5.0  # times what it takes to be caught


def lines(findings: Sequence[Finding]) -> list[str]:
    """One line a corruption: its designated measure and what it said; then the measures that went the wrong way."""
    said = [f"{'damage':22}{'designated measure':20}{'real':>9}{'damaged':>9}  seen"]
    for f in findings:
        if f.designated:
            said.append(f"{f.corruption:22}{f.measure:20}{f.real:9.3g}{f.value:9.3g}  {f.seen}")
    said.append("move the wrong way (better than real clips under damage):")
    wrong = [f for f in findings if f.seen == "wrong way"]
    said += [f"  {f.measure} under {f.corruption}: {f.real:.3g} -> {f.value:.3g}" for f in wrong] or ["  none"]
    return said


def tabulate(findings: Sequence[Finding], out: Path, name: str = "check-metrics") -> Path:
    """Every finding: `name`.csv."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.csv"
    pd.DataFrame([asdict(f) for f in findings]).to_csv(path, index=False)
    return path


def draw(findings: Sequence[Finding], out: Path) -> list[Path]:
    """Corruptions by measures, with the damaged clips' value in each cell: figures/check-metrics.png, .pdf."""
    corruptions = list(dict.fromkeys(f.corruption for f in findings))
    at = {(f.corruption, f.measure): f for f in findings}
    classes = list(SHADES)
    grid = np.array([[classes.index(_class(at[c, m])) for m in MEASURES] for c in corruptions])
    with style():
        figure, axes = plt.subplots(figsize=(PAGE, 0.27 * len(corruptions) + 1.2))
        colours = ListedColormap(list(SHADES.values()))
        axes.pcolormesh(grid, cmap=colours, norm=BoundaryNorm(range(len(SHADES) + 1), len(SHADES)), edgecolor="w", lw=0.8)
        for row, corruption in enumerate(corruptions):
            for column, measure in enumerate(MEASURES):
                found = at[corruption, measure]
                dark = grid[row, column] == len(SHADES) - 1
                text = _number(found)
                axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=4.8, color="w" if dark else INK)
                if found.designated:
                    axes.add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor=INK, lw=1.4, zorder=3))
        titles = [BY_KEY[m].title if m in BY_KEY else m for m in MEASURES]
        axes.set_xticks(np.arange(len(MEASURES)) + 0.5, titles, rotation=40, ha="left", rotation_mode="anchor")
        axes.xaxis.tick_top()
        axes.set_yticks(np.arange(len(corruptions)) + 0.5, corruptions)
        axes.tick_params(length=0)
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        handles = [Patch(facecolor=shade, edgecolor="#b5b5bb", label=name) for name, shade in SHADES.items()]
        handles.append(Patch(fill=False, edgecolor=INK, lw=1.4, label="designated"))
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=6.5)
        return save(figure, out, "check-metrics")


def _class(found: Finding) -> str:
    return "caught, strongly" if found.seen == "caught" and found.strength >= STRONG else found.seen


def _number(found: Finding) -> str:
    """The damaged clips' value in the measure's printed form; a dash where nothing could be observed."""
    if not np.isfinite(found.value):
        return "—"
    return BY_KEY[found.measure].text(found.value) if found.measure in BY_KEY else f"{found.value:.2f}"
