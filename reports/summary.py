"""The short table that `flgbench run` prints in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from reports import progress
from reports.aggregates import estimate, ordered_cells, speedups
from reports.verdicts import verdict

if TYPE_CHECKING:
    from reports.aggregates import Estimate, Ratio
    from reports.data import Cell, RunData

HEADINGS = ("", "NFE", "kept", "joint accuracy", "motion", "denoise", "speed-up", "end to end", "verdict")


def build(run: RunData, out: Path) -> list[Path]:
    """Short plain-text table for the terminal: tables/summary.txt."""
    return [write(lines(run), out)]


def write(text: Sequence[str], out: Path) -> Path:
    """out/tables/summary.txt."""
    path = out / "tables" / "summary.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(text) + "\n")
    return path


def lines(run: RunData) -> list[str]:
    """The table, a line a cell; of a run in progress also how far it is."""
    rows: list[tuple[str, ...]] = [HEADINGS]
    for cell in ordered_cells(run):
        ups = speedups(run, cell)
        rows.append(
            (
                cell.label,
                str(cell.nfe) if cell.nfe else "-",
                f"{cell.kept_blocks:.0%}" if cell.kept_blocks else "-",
                _share(estimate(run, cell.cell, "joint")),
                _number(estimate(run, cell.cell, "motion_ratio"), 1, ""),
                _number(estimate(run, cell.cell, "denoise_s"), 1000, " ms"),
                _ratio(ups.denoise),
                _ratio(ups.end_to_end),
                _state(run, cell),
            )
        )
    said = progress.line(run)
    return [said, "", *aligned(rows)] if said else aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of texts as lines whose columns stand under each other."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _state(run: RunData, cell: Cell) -> str:
    if cell.unfinished:
        return "not finished"
    return cell.status if cell.failed else verdict(run, cell).answer


def _share(found: Estimate) -> str:
    if found.value is None:
        return "-"
    interval = f" [{found.low:.2f}, {found.high:.2f}]" if found.has_interval else ""
    return f"{found.value:.2f}{interval}"


def _number(found: Estimate, scale: float, unit: str) -> str:
    return "-" if found.value is None else f"{found.value * scale:.3g}{unit}"


def _ratio(found: Ratio) -> str:
    return "-" if found.value is None else f"{found.value:.3g}x"
