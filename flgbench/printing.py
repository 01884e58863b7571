"""What verbs print. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MS_A_PASS = 8.3  # core-milliseconds of `schedule.estimate`'s unit, at tiny scale on an AMD EPYC (Zen 4): reports/measured


def show_submitted(folder: Path, out: Path, jobs: int, as_json: bool) -> None:
    """What was submitted to a cluster, and the verbs that follow it."""
    if as_json:
        print(json.dumps({"run": str(folder), "jobs": jobs}))
        return
    print(f"{folder.name}: {jobs} jobs submitted")
    for verb in ("status", "report", "cancel"):
        print(f"  flgbench {verb} {folder.name} --out {out}")


def show_plan(settings: Any, out: Path, as_json: bool, profile: Any, max_jobs: int | None) -> None:
    """Every step of a run, and with a cluster's `profile` the arrays they would be submitted in."""
    from flgbench import runs as work
    from flgbench.cells import ABSENT
    from flgbench.estimate import Estimate
    from flgbench.runner import CACHED, initial_status

    arrays: list[dict[str, Any]] = []
    if profile is None:
        steps, store = work.prepare(settings, out, weights_needed=False)
    else:
        from slurm import cluster

        settings, steps, store, arrays = cluster.preview(settings, out, profile, max_jobs)
    status = initial_status(steps, store)
    estimate = Estimate.of(settings, steps, profile)
    if as_json:
        states = {k: s.state for k, s in status.items()}
        more: dict[str, Any] = {"arrays": arrays} if profile is not None else {}
        more |= {"costs": estimate.record(), "assumed": estimate.assumptions()}
        print(json.dumps(work.plan_record(steps, settings) | {"status": states} | more))
        return
    if any(step.settings.get("weights") == ABSENT for step in steps.steps.values()):
        print(f"the weights of scale {settings.scale} are {ABSENT}: a run needs them, and its keys are others")
    print(estimate.assumptions())
    work.print_plan(steps, status, {key: estimate.text(key) for key in steps.steps})
    print(estimate.total([key for key, state in status.items() if state.state != CACHED]))
    for number, array in enumerate(arrays):
        print(f"array {number}: {len(array['steps'])} {array['kind']}, sbatch {' '.join(array['sbatch'])}")
        if array["index_to_index"] is not None:
            print(f"  each task after its own of array {array['index_to_index']}")
        if array["after"]:
            print(f"  all after {' '.join(array['after'])}")


def show_cost(settings: Any, out: Path, weights_needed: bool = True) -> None:
    """One line before a sweep: what is there already, and about how long the rest takes."""
    from flgbench import runs as work
    from flgbench.run_settings import TINY
    from flgbench.runner import CACHED, initial_status
    from flgbench.schedule import estimate

    steps, store = work.prepare(settings, out, weights_needed=weights_needed)
    status = initial_status(steps, store)
    rest = [step for key, step in steps.steps.items() if status[key].state != CACHED]
    passes = sum(map(estimate, rest))
    minutes = f" ({passes * MS_A_PASS / 60_000:.0f} core-minutes)" if settings.scale == TINY else ""
    print(
        f"{len(steps.steps)} steps: {len(steps.steps) - len(rest)} cached, {len(rest)} to run, worth about {passes:,.0f} "
        f"passes of the network{minutes}",
        flush=True,
    )


def show_summary(folder: Path) -> None:
    """The main table of a finished run, as text."""
    path = folder / "report" / "tables" / "summary.txt"
    if path.exists():
        print(path.read_text())
