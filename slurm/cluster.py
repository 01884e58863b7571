"""The runs of a command on a SLURM cluster: plan, check, submit; then follow them to the report, now or later."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flgbench import environment, runs
from flgbench.collect import collect
from flgbench.errors import UsageError
from flgbench.estimate import check_disk
from flgbench.plan import Plan
from flgbench.progress import Progress
from flgbench.run_settings import RunSettings
from flgbench.runner import BLOCKED, CACHED, FAILED, RUNNING, WAITING, Status, initial_status
from flgbench.settings import build_settings
from flgbench.store import Store, write_json
from slurm import launcher, scheduler, state
from slurm.check import check_profile, check_shared
from slurm.profiles import Profile
from slurm.queue import Queue

POLL = 3.0  # seconds between two looks at the scheduler
PATIENCE = 100  # looks in a row that a scheduler may leave unanswered (5 minutes)


def settings_for(settings: Sequence[RunSettings], profile: Profile) -> list[RunSettings]:
    """Timing uses the CPUs that the profile gives it, not those of the machine that submits."""
    return [each.model_copy(update={"threads": profile.resources("latency").cpus}) for each in settings]


def hardware_of(profile: Profile) -> dict[str, Any]:
    """The hardware that latency is keyed by."""
    return environment.hardware() | profile.hardware.model_dump(exclude_none=True)


def preview(
    settings: Sequence[RunSettings], out: Path, profile: Profile, max_jobs: int | None
) -> tuple[runs.Command, list[dict[str, Any]]]:
    """What `execute` would do, and the arrays as text. Needs no SLURM."""
    work = runs.checked(settings_for(settings, profile), out, hardware_of(profile))
    try:
        live = scheduler.queue()
    except UsageError:  # a plan can be looked at anywhere
        live = {}
    arrays = launcher.arrays_to_submit(work.plan, work.store, profile, live)
    return work, launcher.describe(arrays, work.plan, profile, max_jobs)


def execute(
    settings: Sequence[RunSettings], out: Path, profile: Profile, max_jobs: int | None, wait: bool, command: str
) -> tuple[Path, dict[str, Status], int]:
    """Submit what is not cached of the runs, one a family; with `wait`, follow them and write the report.

    Returns the folder of the report, the status of every step and the number of new jobs. Raises UsageError, with nothing
    submitted, when the cluster cannot meet the profile.
    """
    hardware = hardware_of(profile)
    work = runs.checked(settings_for(settings, profile), out, hardware)
    plan, store, folder = work.plan, work.store, work.folder
    cached = [key for key, s in initial_status(plan, store).items() if s.state == CACHED]
    if len(cached) < len(plan.steps):
        check_profile(profile, sorted({plan.steps[key].kind for key in plan.steps if key not in cached}))
        check_shared(out, profile)
    runs.check_writable(out)
    to_run = [key for key in plan.steps if key not in cached]
    check_disk([(run.settings, run.plan) for run in work.runs], to_run, out, profile)
    work.write()
    started = time.time()
    submission = {"profile": profile.name, "hardware": hardware, "command": command, "started": started, "cached": cached}
    for place in {folder, *(run.folder for run in work.runs)}:  # each can be reported, watched and cancelled alone
        (place / "slurm").mkdir(parents=True, exist_ok=True)
        write_json(place / "slurm" / "submission.json", submission)
    new = launcher.submit(plan, store, folder, profile, max_jobs, work.owners)
    if not wait:
        return folder, _statuses(plan, store, cached), len(new)
    try:
        status = follow(plan, store, cached)
    except KeyboardInterrupt:
        print(f"\nthe jobs go on: see `flgbench {{status,report,cancel}} {folder.name} --out {out}`", file=sys.stderr)
        raise
    if new or to_run or not (folder / "report" / "index.html").exists():
        work.collect(status, command, started)
        work.report()
    return folder, status, len(new)


def follow(plan: Plan, store: Store, cached: list[str]) -> dict[str, Status]:
    """Show progress until no step waits or runs; returns the last status. Raises UsageError if SLURM stays silent."""
    last: dict[str, Status] = {}
    silent = 0
    with Progress(plan, store) as progress:
        while True:
            try:
                now = _statuses(plan, store, cached)
                silent = 0
            except UsageError:  # a restart of slurmctld takes minutes, and the jobs do not mind
                silent += 1
                if silent > PATIENCE:
                    raise
                time.sleep(POLL)
                continue
            confirmed = {key: _confirmed(last.get(key), status) for key, status in now.items()}
            progress.update(confirmed)
            if all(s.state not in (WAITING, RUNNING) for s in confirmed.values()):
                return confirmed
            last = now
            time.sleep(POLL)


def _confirmed(before: Status | None, now: Status) -> Status:
    """A failure counts when two looks agree: accounting and shared file systems lag behind the queue."""
    if now.state not in (FAILED, BLOCKED) or (before and before.state in (FAILED, BLOCKED)):
        return now
    return before or Status(WAITING)


def _statuses(plan: Plan, store: Store, cached: list[str]) -> dict[str, Status]:
    records = Queue(store).records(plan.steps)
    parents = {key: list(step.inputs.values()) for key, step in plan.steps.items()}
    # A finished run needs no SLURM: its report can be made anywhere.
    live = {} if all(store.is_done(key) for key in plan.steps) else scheduler.queue()
    return state.statuses(parents, store, records, live, cached)


def submission_of(folder: Path) -> dict[str, Any] | None:
    """How a run was submitted, or None if it ran on one machine."""
    path = folder / "slurm" / "submission.json"
    return json.loads(path.read_text()) if path.exists() else None


def gather(folder: Path) -> None:
    """Collect the results that a run's jobs have left so far, without the process that submitted them."""
    submission = submission_of(folder)
    assert submission is not None
    record = json.loads((folder / "plan.json").read_text())
    settings = build_settings(RunSettings, record["settings"], "run")
    plan, store = runs.prepare(settings, folder.parent.parent, submission["hardware"])
    if [s["key"] for s in record["steps"]] != list(plan.steps):
        raise UsageError(f"{folder.name} was planned by another version of flgbench: report it with that, or run again")
    status = _statuses(plan, store, submission["cached"])
    facts = runs.run_facts(folder.name, submission["command"], submission["started"])
    collect(plan, store, settings, status, folder, facts)
