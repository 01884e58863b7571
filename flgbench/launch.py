"""Run checked settings with an executor, and tell how it went: what `run`, `ablate` and `paper` share."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from flgbench.errors import UsageError
from flgbench.options import Executor, resource_profile
from flgbench.printing import show_cost, show_plan, show_submitted, show_summary

if TYPE_CHECKING:
    from flgbench.run_settings import RunSettings


def _check_executor(executor: Executor, slots: int | None, wait: bool) -> None:
    if executor == Executor.inline and slots is not None:
        raise UsageError("--executor inline runs one step at a time: leave out --slots")
    if executor == Executor.slurm and slots is not None:
        raise UsageError("--executor slurm takes --max-jobs: leave out --slots")
    if executor != Executor.slurm and not wait:
        raise UsageError("--no-wait needs --executor slurm")


def launch(
    settings: Sequence[RunSettings],
    out: Path,
    executor: Executor,
    profile: str | None = None,
    max_jobs: int | None = None,
    wait: bool = True,
    slots: int | None = None,
    dry_run: bool = False,
    as_json: bool = False,
) -> None:
    """Everything of `settings`, one a family, that is not cached, then the report; a sweep says first what it costs.

    Exit code 1 when a step failed. Raises UsageError for options that the executor does not have.
    """
    _check_executor(executor, slots, wait)
    resources = resource_profile(executor, profile, max_jobs)
    if any(each.variants for each in settings) and not as_json:
        show_cost(settings, out, weights_needed=not dry_run)
    if dry_run:
        show_plan(settings, out, as_json, resources, max_jobs)
        return
    from flgbench import environment
    from flgbench import runs as work

    command = "flgbench " + " ".join(sys.argv[1:])
    if resources is not None:
        from slurm import cluster

        folder, status, submitted = cluster.execute(settings, out, resources, max_jobs, wait, command)
        if not wait:
            show_submitted(folder, out, submitted, as_json)
            return
    else:
        slots = slots or len(environment.gpus()) or environment.cores()
        folder, status = work.execute(settings, out, executor.value, slots, command)
    bad = work.failed(status)
    page = folder / "report" / "index.html"
    if as_json:
        print(json.dumps({"run": str(folder), "report": str(page), "failed": {k: s.reason for k, s in bad.items()}}))
    else:
        show_summary(folder)
        for key, state in bad.items():
            print(f"{state.state}: {key}: {state.reason}")
        print(f"report: {page}")
    if bad:
        raise typer.Exit(1)
