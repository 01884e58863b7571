"""The paper's numbers beside ours, each with its source and with the reason why the two cannot be compared."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reports.aggregates import estimate, speedups
from reports.catalogue import BY_KEY, seconds
from reports.data import Cell, RunData
from reports.tables import md

FOLDER = Path(__file__).parent / "paper"
COLUMNS = ("table", "row", "metric", "value", "unit", "source", "confidence", "protocol", "hardware", "note")
# Row of the paper -> method in our cells.json.
METHODS = {
    "FastLightGen": "fastlightgen",
    "DMD2": "dmd2",
    "LCM": "lcm",
    "MagicDistillation": "magic_distillation",
    "ICMD": "icmd",
    "F3-Pruning": "f3_pruning",
}
# Point of a sweep -> where the paper has it: its table, its row.
POINTS: dict[str, Callable[[dict[str, Any]], tuple[str, str]]] = {
    "alpha": lambda p: ("Table 4", f"alpha = {p['alpha']:.1f}"),
    "beta2": lambda p: ("Table 5", f"beta2 = {p['beta2']:.2f} (beta1 = 3.5)"),
    "keep": lambda p: ("Table 7", "dense" if p["keep"] == 1 else f"{100 * (1 - p['keep']):.0f}% pruned"),
}
ABLATED = {"Table 4": "alpha", "Table 5": "beta2", "Table 7": "keep"}  # table of the paper -> our sweep
TEACHERS = ("Euler (teacher)", "WanX-TI2V (teacher)")
# Metric of the paper -> what we measure that comes nearest to it.
NEAREST = {
    "average": "joint",
    "figure1_mean": "joint",
    "dynamic_degree": "motion_ratio",
    "imaging_quality": "sharpness_ratio",
    "time": "end_to_end_s",
    "nominal_speedup": "nominal",
    "measured_speedup": "denoise",
}
WHY_NOT = {
    "time": "other model, resolution, clip length and hardware",
    "nominal_speedup": "arithmetic on settings: nothing is measured on either side",
    "measured_speedup": "other model and hardware; what the paper timed is not stated",
}
HUNYUAN = "HunyuanVideo table"
OF_FAMILY = {"wanx": "Table 2", "hunyuan": HUNYUAN}  # family -> the paper's table of its methods
TEACHER = TEACHERS[0]
WHY_NOT_QUALITY = "tiny model on procedural clips against known truth, not VBench on real videos"


@dataclass(frozen=True)
class PaperNumber:
    """One number of the paper and ours that comes nearest. Missing ones are empty texts.

    `why`: why the two cannot be compared, or why there is none of ours.
    """

    table: str
    row: str
    metric: str
    value: str
    source: str
    confidence: str
    protocol: str
    hardware: str
    note: str
    ours: str
    our_metric: str
    comparable: str
    why: str


def load() -> list[dict[str, str]]:
    """All rows of reports/paper/*.csv. An empty value stays empty: not found is not 0."""
    rows = []
    for path in sorted(FOLDER.glob("*.csv"), key=lambda p: (not p.stem.startswith("table"), p.stem)):
        with path.open(encoding="utf-8", newline="") as file:
            rows += list(csv.DictReader(file))
    return rows


def beside(run: RunData) -> list[PaperNumber]:
    """Every number of the paper with ours beside it where the run has the method."""
    found = []
    for row in load():
        value = row["value"] + {"times": "×", "share": ""}.get(row["unit"], f" {row['unit']}") if row["value"] else ""
        ours, named = _ours(run, row)
        if ours:
            comparable, why = "no", WHY_NOT.get(row["metric"], WHY_NOT_QUALITY)
        else:
            comparable, why = "", named
        rest = {key: row[key] for key in COLUMNS if key not in ("value", "unit")}
        named = named if ours else ""
        found.append(PaperNumber(**rest, value=value, ours=ours, our_metric=named, comparable=comparable, why=why))
    return found


def measured_speedup(family: str, method: str) -> float | None:
    """The paper's time of its teacher over that of `method`, from its table of `family`; None where one is not known."""
    row = next((name for name, ours in METHODS.items() if ours == method), "")
    known = {r["row"]: r["value"] for r in load() if r["table"] == OF_FAMILY.get(family) and r["metric"] == "time"}
    teacher, own = known.get(TEACHER), known.get(row)
    return float(teacher) / float(own) if teacher and own else None


def place_of(variant: Cell) -> tuple[str, str] | None:
    """Table and row of the paper that a point of a sweep belongs to, None where the paper's are not known."""
    return POINTS[variant.sweep](variant.point) if variant.sweep in POINTS else None


def _our_cell(run: RunData, table: str, name: str) -> Cell | str:
    """The cell that stands for a row of the paper, or why there is none."""
    if table == HUNYUAN and "hunyuan" not in (family := str(run.run.settings.get("model", ""))):
        return f"this run is of the family {family or 'not recorded'}, not of HunyuanVideo"
    if name in TEACHERS:
        return run.reference or "the run has no reference"
    swept = [v for v in run.variants if place_of(v) == (table, name)]
    cells = swept or [c for c in run.cells if c.method == METHODS.get(name) and c.repeat == 0]
    if not cells and table in ABLATED:
        return f"not in this run: flgbench ablate {ABLATED[table]}"
    if not cells:
        return f"{name} is not in this run" if name in METHODS else "no cell of this benchmark has these settings"
    good = [c for c in cells if not c.failed]
    return good[0] if good else f"{cells[0].status}: {cells[0].reason or 'no reason recorded'}"


def _ours(run: RunData, row: dict[str, str]) -> tuple[str, str]:
    """Our nearest number as text, and what it is; or an empty text, and why there is none."""
    cell, key = _our_cell(run, row["table"], row["row"]), NEAREST.get(row["metric"])
    if key is None:
        return "", f"nothing measured here comes near {row['metric'].replace('_', ' ')}"
    if isinstance(cell, str):
        return "", cell
    if key in ("nominal", "denoise"):
        ratio = getattr(speedups(run, cell), key)
        return ("", ratio.reason) if ratio.value is None else (ratio.text(), f"{key} speed-up")
    e = estimate(run, cell.cell, key)
    if e.value is None:
        return "", e.reason
    shown = BY_KEY[key]
    if shown.unit == "s":
        return seconds(e.value), "end to end, median"
    interval = f" [{shown.text(e.low)}, {shown.text(e.high)}]" if e.has_interval else ""
    return f"{shown.text(e.value)}{' %' if shown.unit == '%' else ''}{interval}", shown.title.lower()


def build(run: RunData, out: Path) -> list[Path]:
    """The paper's numbers beside ours: tables/paper.md and paper.csv."""
    folder = out / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    rows = beside(run)
    names = list(PaperNumber.__dataclass_fields__)
    with (folder / "paper.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([getattr(r, n) for n in names] for r in rows)
    head = ("Table", "Row", "Metric", "Paper", "Ours (nearest measure)", "Comparable?", "Source")
    lines = ["| " + " | ".join(head) + " |", "|" + " :-- |" * len(head)]
    for r in rows:
        ours = f"{r.ours} ({r.our_metric})" if r.ours else "—"
        comparable = f"{r.comparable}: {r.why}" if r.comparable else r.why
        source = f"{r.confidence or '—'}: {r.source}"
        cells = (r.table, r.row, r.metric, r.value or "— not found", ours, comparable, source)
        lines.append("| " + " | ".join(md(c) for c in cells) + " |")
    (folder / "paper.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [folder / "paper.md", folder / "paper.csv"]
