"""The page: one HTML file that opens from disk without a network, with tables, figures, and clips playing in step."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from reports import (
    blind_spots,
    claims,
    comparisons,
    gallery,
    main_table,
    paper_numbers,
    paper_tables,
    progress,
    sweep_figures,
    sweeps,
    trainings,
    waterfall,
)
from reports.aggregates import Estimate, Ratio, estimate, ordered_cells, speedups
from reports.catalogue import ACCURACY, BY_KEY, DIVERSITY, HEADLINE, IMAGE, LATENCY, MOTION, seconds, times
from reports.data import Cell, RunData
from reports.style import MUTED, looks
from reports.verdicts import verdict

TEMPLATES = Path(__file__).parent / "templates"
ASSETS = ("style.css", "core.js", "plot.js", "gallery.js")
TITLES = {
    "pareto": "Quality against latency",
    "profile": "Quality profiles",
    "per_condition": "Condition by condition",
    "importance": "Block importance",
    "waterfall": "How the speed-up arises",
    "training_curves": "Training",
    "filmstrip": "Filmstrip",
}


def build(run: RunData, out: Path) -> list[Path]:
    """The HTML page of the run and of the figures that already lie in `out`: index.html."""
    return render(run, out, {})


def render(run: RunData, out: Path, faults: dict[str, str]) -> list[Path]:
    """As `build`; `faults` names reports that could not be made, and why."""
    out.mkdir(parents=True, exist_ok=True)
    html = template("page.html.j2", content(run, out, faults))
    path = out / "index.html"
    path.write_text(html, encoding="utf-8")
    return [path]


def template(name: str, shown: dict[str, Any]) -> str:
    """A template of this package filled in. What is shown is text, and escaped; our own style and scripts are not."""
    tidy: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "undefined": StrictUndefined}
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, **tidy)
    environment.filters |= {"seconds": seconds, "times": times, "compact": compact}
    assets = {name.replace(".", "_"): Markup((TEMPLATES / name).read_text(encoding="utf-8")) for name in ASSETS}
    return environment.get_template(name).render(**shown, **assets)


def content(run: RunData, out: Path, faults: dict[str, str]) -> dict[str, Any]:
    """Everything that the template shows."""
    several = [t for t in (trainings.table(run),) if t.rows]
    students = [c for c in run.cells if c.kind in ("method", "external", "baseline") and not c.failed]
    return {
        "run": run.run,
        "reference": run.reference,
        "cells": run.cells,
        "steps": run.steps,
        "failed_cells": [c for c in run.cells if c.status in ("failed", "blocked")],
        "unfinished_cells": [c for c in run.cells if c.unfinished],
        "failed_steps": [s for s in run.steps if s.status in ("failed", "blocked")],
        "faults": faults,
        "progress": progress.line(run),
        "cards": [card(run, c) for c in run.cells if c.kind in ("method", "external")],
        "colours": colours(run),
        "tables": [*main_table.tables(run), comparisons.table(run), *several, *sweeps.tables(run)],
        "measures": blind_spots.table(),
        "stages": stage_rows(run),
        "explained": [(c, waterfall.explain(run, c)) for c in students],
        "figures": figures(run, out),
        "claims": claims.claims(run),
        "paper": paper_tables.tables(paper_numbers.beside(run)),
        "inferred": [(c, i) for c in run.cells for i in c.inferred],
        "plot": plot(run),
        "gallery": gallery.payload(run, colours(run)),
    }


def colours(run: RunData) -> dict[str, str]:
    """Cell -> colour of its dot; a point of a sweep has its method's."""
    found = {name: each.colour for name, each in looks(run).items()}
    return found | {v.cell: found.get(v.method, MUTED) for v in run.variants}


def card(run: RunData, cell: Cell) -> dict[str, Any]:
    """One headline card a method: speed-up, quality, verdict."""
    ups = speedups(run, cell)
    return {
        "cell": cell,
        "denoise": _ratio(ups.denoise),
        "nominal": _ratio(ups.nominal),
        "end_to_end": _ratio(ups.end_to_end),
        "quality": _estimate(estimate(run, cell.cell, HEADLINE)),
        "reference": _estimate(estimate(run, run.reference.cell, HEADLINE)) if run.reference else "",
        "verdict": verdict(run, cell),
    }


def stage_rows(run: RunData) -> list[dict[str, Any]]:
    """Median seconds of text, denoising and decoding for every timed cell; missing ones are None."""
    found = []
    for cell in ordered_cells(run):
        medians = {s.key: estimate(run, cell.cell, s.key).value for s in LATENCY}
        if any(value is not None for value in medians.values()):
            batched = "" if cell.kind == "reference" else _ratio(speedups(run, cell).denoise_batched)
            found.append({"cell": cell, **medians, "batched": batched})
    return found


def figures(run: RunData, out: Path) -> list[dict[str, Any]]:
    """Every figure that was drawn: name, title, caption, image as a data URL, width in CSS pixels, path of the PDF."""
    found = []
    of_sweeps = {sweeps.stem(name): sweeps.title(name) for name in sweeps.names(run)}
    paths = sorted((out / "figures").glob("*.png"), key=lambda p: [*TITLES, p.stem].index(p.stem))
    for path in paths:
        ours = (TEMPLATES.parent / f"{path.stem}.py").is_file()
        caption = getattr(importlib.import_module(f"reports.{path.stem}"), "caption", None) if ours else None
        said = caption(run) if caption else ""
        title = TITLES.get(path.stem, path.stem.replace("_", " "))
        if path.stem in of_sweeps:
            title, said = of_sweeps[path.stem], sweep_figures.caption(run)
        with Image.open(path) as image:
            width = round(image.width * 130 / 200)  # 200 dpi on paper, 130 on the screen
        found.append(
            {
                "name": path.stem,
                "title": title,
                "width": width,
                "caption": said,
                "image": gallery.data_url(path.read_bytes(), "png"),
                "pdf": f"figures/{path.stem}.pdf" if path.with_suffix(".pdf").exists() else "",
            }
        )
    return found


def plot(run: RunData) -> dict[str, Any]:
    """Numbers of the interactive plot: per cell and metric value, low and high (null when missing)."""
    look = looks(run)
    axes = [*ACCURACY, *MOTION, *IMAGE, *DIVERSITY]
    cells = []
    for cell in run.cells:
        if cell.kind == "control" or cell.failed:
            continue
        ups = speedups(run, cell)
        cells.append(
            {
                "cell": cell.cell,
                "label": cell.label,
                "kind": cell.kind,
                "colour": look[cell.cell].colour,
                "nfe": cell.nfe,
                "kept": cell.kept_blocks,
                "verdict": verdict(run, cell).answer,
                "denoise_speedup": _ratio(ups.denoise),
                "end_to_end_speedup": _ratio(ups.end_to_end),
                "numbers": {s.key: _numbers(estimate(run, cell.cell, s.key)) for s in (*axes, *LATENCY)},
            }
        )
    told = ("key", "title", "unit", "scale", "decimals", "best", "meaning")
    return {
        "cells": cells,
        "quality": [{name: getattr(s, name) for name in told} for s in axes],
        "latency": [{"key": key, "title": BY_KEY[key].title} for key in ("denoise_s", "end_to_end_s")],
    }


def compact(value: object) -> str:
    """A setting as one line of text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _numbers(e: Estimate) -> list[float | None]:
    return [x if x is not None and abs(x) < float("inf") else None for x in (e.value, e.low, e.high)]


def _estimate(e: Estimate) -> str:
    shown = BY_KEY[e.metric]
    if e.value is None:
        return ""
    interval = f" [{shown.text(e.low)}, {shown.text(e.high)}]" if e.has_interval else ""
    return f"{shown.text(e.value)} {shown.unit}{interval}"


def _ratio(ratio: Ratio) -> str:
    return "" if ratio.value is None else ratio.text()
