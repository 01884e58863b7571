"""Reports: tables, figures and the page, all of them pure functions of a run folder's tidy table."""

from __future__ import annotations

import importlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reports.data import RunData

# Entry points of the group `flgbench.reports`; the page comes last because it shows what the others wrote.
BUILT_IN = {
    "main_table": "reports.main_table:build",
    "comparisons": "reports.comparisons:build",
    "trainings": "reports.trainings:build",
    "sweeps": "reports.sweeps:build",
    "sweep_figures": "reports.sweep_figures:build",
    "summary": "reports.summary:build",
    "pareto": "reports.pareto:build",
    "waterfall": "reports.waterfall:build",
    "profile": "reports.profile:build",
    "per_condition": "reports.per_condition:build",
    "importance": "reports.importance:build",
    "training_curves": "reports.training_curves:build",
    "filmstrip": "reports.filmstrip:build",
    "blind_spots": "reports.blind_spots:build",
    "claims": "reports.claims:build",
    "paper_numbers": "reports.paper_numbers:build",
}
PAGE = "page"


def builders() -> dict[str, Callable[[RunData, Path], list[Path]]]:
    """Name -> build function of every report but the page: the built-in ones, then those that others registered."""
    from flgbench.registry import registry, resolve

    known = registry("reports")
    others = {name: known.get(name) for name in known.names() if name not in BUILT_IN and name != PAGE}
    return {name: resolve(target) for name, target in BUILT_IN.items()} | others


def build_all(run_folder: Path) -> Path:
    """Write run_folder/report/{index.html, tables/, figures/} and return the path of index.html.

    Everything is written beside and then renamed into place, so a report folder is always whole. One report that fails
    never stops the others: the page names it and the fault. Raises RunFolderError when the run folder is not readable.
    """
    from reports.data import load_run

    run_folder = Path(run_folder)
    run = load_run(run_folder)
    page = importlib.import_module("reports.page")
    work = Path(tempfile.mkdtemp(prefix=".report-", dir=run_folder))
    try:
        faults: dict[str, str] = {}
        for name, build in builders().items():
            try:
                build(run, work)
            except Exception as error:  # a report of another distribution may raise anything
                faults[name] = f"{type(error).__name__}: {error}"
        page.render(run, work, faults)
        work.chmod(0o755)
        target, old = run_folder / "report", run_folder / f"{work.name}-old"
        if target.exists():
            target.rename(old)
        work.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target / "index.html"
