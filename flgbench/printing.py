"""What verbs print. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flgbench.run_settings import RunSettings
    from flgbench.runs import Prepared
    from flgbench.store import Store

MS_A_PASS = 8.3  # core-milliseconds of `schedule.estimate`'s unit, at tiny scale on an AMD EPYC (Zen 4): reports/measured


def show_submitted(folder: Path, out: Path, jobs: int, as_json: bool) -> None:
    """What was submitted to a cluster, and the verbs that follow it."""
    if as_json:
        print(json.dumps({"run": str(folder), "jobs": jobs}))
        return
    print(f"{folder.name}: {jobs} jobs submitted")
    for verb in ("status", "report", "cancel"):
        print(f"  flgbench {verb} {folder.name} --out {out}")


def show_plan(settings: Sequence[RunSettings], out: Path, as_json: bool, profile: Any, max_jobs: int | None) -> None:
    """Every step of each run, and with a cluster's `profile` the arrays they would be submitted in."""
    from flgbench import runs as work

    arrays: list[dict[str, Any]] = []
    if profile is None:
        command = work.checked(settings, out, weights_needed=False)
    else:
        from slurm import cluster

        command, arrays = cluster.preview(settings, out, profile, max_jobs)
    if as_json:
        more: dict[str, Any] = {"arrays": arrays} if profile is not None else {}
        told = [_plan_as_json(run, command.store, profile) for run in command.runs]
        print(json.dumps((told[0] if len(told) == 1 else {"runs": told}) | more))
        return
    for run in command.runs:
        if len(command.runs) > 1:
            print(f"{run.settings.model} {run.settings.scale}:")
        _print_plan(run, command.store, profile)
    for number, array in enumerate(arrays):
        print(f"array {number}: {len(array['steps'])} {array['kind']}, sbatch {' '.join(array['sbatch'])}")
        if array["index_to_index"] is not None:
            print(f"  each task after its own of array {array['index_to_index']}")
        if array["after"]:
            print(f"  all after {' '.join(array['after'])}")


def _plan_as_json(run: Prepared, store: Store, profile: Any) -> dict[str, Any]:
    from flgbench.estimate import Estimate
    from flgbench.runner import initial_status
    from flgbench.runs import plan_record

    estimate = Estimate.of(run.settings, run.plan, profile)
    states = {k: s.state for k, s in initial_status(run.plan, store).items()}
    costs = {"costs": estimate.record(), "assumed": estimate.assumptions()}
    return plan_record(run.plan, run.settings) | {"status": states} | costs


def _print_plan(run: Prepared, store: Store, profile: Any) -> None:
    from flgbench.cells import ABSENT
    from flgbench.estimate import Estimate
    from flgbench.runner import CACHED, initial_status
    from flgbench.runs import print_plan

    estimate, status = Estimate.of(run.settings, run.plan, profile), initial_status(run.plan, store)
    if any(step.settings.get("weights") == ABSENT for step in run.plan.steps.values()):
        print(f"the weights of scale {run.settings.scale} are {ABSENT}: a run needs them, and its keys are others")
    print(estimate.assumptions())
    print_plan(run.plan, status, {key: estimate.text(key) for key in run.plan.steps})
    print(estimate.total([key for key, state in status.items() if state.state != CACHED]))


def show_cost(settings: Sequence[RunSettings], out: Path, weights_needed: bool = True) -> None:
    """One line before a sweep: what is there already, and about how long the rest takes."""
    from flgbench import runs as work
    from flgbench.run_settings import TINY
    from flgbench.runner import CACHED, initial_status
    from flgbench.schedule import estimate

    command = work.checked(settings, out, weights_needed=weights_needed)
    steps = command.plan.steps
    status = initial_status(command.plan, command.store)
    rest = [step for key, step in steps.items() if status[key].state != CACHED]
    passes = sum(map(estimate, rest))
    tiny = all(each.scale == TINY for each in settings)
    minutes = f" ({passes * MS_A_PASS / 60_000:.0f} core-minutes)" if tiny else ""
    print(
        f"{len(steps)} steps: {len(steps) - len(rest)} cached, {len(rest)} to run, worth about {passes:,.0f} "
        f"passes of the network{minutes}",
        flush=True,
    )


def show_summary(folder: Path) -> None:
    """The main table of a finished run, or of each of several, as text."""
    path = folder / "report" / "tables" / "summary.txt"
    if path.exists():
        print(path.read_text())
