"""Reports: tables, figures and the page, all of them pure functions of a run folder's tidy table."""

from __future__ import annotations

import importlib
import shutil
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flgbench.environment import cores

if TYPE_CHECKING:
    from reports.data import RunData

    Build = Callable[[RunData, Path], list[Path]]

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
    "paper_tables": "reports.paper_tables:build",
}
PAGE = "page"
# Figures take most of the time: they are drawn in two processes, the slowest first.
DRAWN = ("sweep_figures", "per_condition", "filmstrip", "training_curves", "profile", "waterfall", "pareto", "importance")
Made = tuple[list[Path], str]  # files, or why there are none


def builders() -> dict[str, Build]:
    """Name -> build function of every report but the page: the built-in ones, then those that others registered."""
    from flgbench.registry import registry, resolve

    known = registry("reports")
    others = {name: known.get(name) for name in known.names() if name not in BUILT_IN and name != PAGE}
    return {name: resolve(target) for name, target in BUILT_IN.items()} | others


def build_all(run_folder: Path) -> Path:
    """Write run_folder/report/{index.html, tables/, figures/} and return the path of index.html.

    What is there already and was made from the same results by the same code stays (`reports.ledger`): delete a figure,
    and only that is drawn again. Everything is written beside and then renamed into place, so a report folder is always
    whole. One report that fails never stops the others: the page names it and the fault. Raises RunFolderError when the
    run folder is not readable.
    """
    from reports.data import load_run
    from reports.ledger import basis

    run_folder = Path(run_folder)
    return write(load_run(run_folder), basis([run_folder]), run_folder / "report")


def write(run: RunData, basis: str, target: Path) -> Path:
    """The report of `run` in the folder `target`; `basis` is the digest of what the run was read from."""
    from reports.ledger import Ledger, own_basis

    page = importlib.import_module("reports.page")
    work = Path(tempfile.mkdtemp(prefix=".report-", dir=target.parent))
    try:
        ledger, known = Ledger(work, target), builders()
        own = {name: own_basis(basis, build) for name, build in known.items()}
        made = _make(run, work, {name: build for name, build in known.items() if not ledger.keep(name, own[name])})
        faults = {name: fault for name, (_, fault) in made.items() if fault}
        for name in made.keys() - faults.keys():
            ledger.record(name, own[name], made[name][0])
        seen = f"{basis} {ledger.digest()} {sorted(faults.items())}"
        if not ledger.keep(PAGE, seen):
            ledger.record(PAGE, seen, page.render(run, work, faults))
        ledger.write()
        swap(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target / "index.html"


def _make(run: RunData, out: Path, todo: dict[str, Build]) -> dict[str, Made]:
    """Build every report of `todo`; with a second core, figures in two processes."""
    drawn = [name for name in DRAWN if name in todo]
    found = {name: _made(build, run, out) for name, build in todo.items() if name not in drawn}
    # A fork has the run and all that the tables have derived from it. It touches no torch, whose threads it would lack.
    if len(drawn) > 1 and cores() > 1 and sys.platform == "linux":
        with ProcessPoolExecutor(2, get_context("fork"), _take, (run, out, todo)) as pool:
            waiting = {name: pool.submit(_draw, name) for name in drawn}
            return found | {name: future.result() for name, future in waiting.items()}
    return found | {name: _made(todo[name], run, out) for name in drawn}


def _made(build: Build, run: RunData, out: Path) -> Made:
    try:
        return build(run, out), ""
    except Exception as error:  # a report of another distribution may raise anything
        return [], f"{type(error).__name__}: {error}"


_taken: list[Any] = []  # in a drawing process: what it has from its parent


def _take(*given: Any) -> None:
    _taken[:] = given


def _draw(name: str) -> Made:
    run, out, todo = _taken
    return _made(todo[name], run, out)


def swap(work: Path, target: Path) -> None:
    """Put the folder `work` in the place of `target`, whole."""
    work.chmod(0o755)
    old = work.with_name(f"{work.name}-old")
    if target.exists():
        target.rename(old)
    work.rename(target)
    shutil.rmtree(old, ignore_errors=True)
