"""Runs from settings to report: plan, check, execute with progress, collect, write the report.

A command runs one family or several. Several have a run each, whose folders are those of the same runs alone, and all
their steps are one queue; a folder beside them names them and holds the report of them all.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flgbench import environment
from flgbench.collect import collect
from flgbench.errors import UsageError
from flgbench.estimate import check_disk
from flgbench.plan import Plan, joined, plan
from flgbench.progress import Progress
from flgbench.run_settings import RunSettings
from flgbench.runner import BLOCKED, CACHED, FAILED, RUNNING, WAITING, Status, initial_status, run_inline, run_local
from flgbench.settings import build_settings, digest
from flgbench.status import step_lines, unfinished
from flgbench.store import Store, write_json

Runner = Callable[[Plan, Store, Callable[[dict[str, Status]], None]], dict[str, Status]]


def run_name(settings: RunSettings) -> str:
    """Folder of a run: the same settings continue the same run. What is not given is left out, so old names stay."""
    told = {name: value for name, value in settings.model_dump(mode="json").items() if value is not None}
    return f"{settings.model}-{settings.scale}-{digest(told)}"


def check_writable(out: Path) -> None:
    """Raise UsageError unless files can be made in `out`."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"--out {out}: cannot write there ({error.strerror}): choose another folder") from None


def prepare(
    settings: RunSettings, out: Path, hardware: Mapping[str, Any] | None = None, weights_needed: bool = True
) -> tuple[Plan, Store]:
    """The checked plan: wrong settings and damaged artifacts raise UsageError here, before any work.

    `hardware` says where latency will be timed, if that is not this machine; `weights_needed`: see `plan`.
    """
    steps = plan(settings, hardware or environment.hardware(), weights_needed)
    store = Store(out / "store")
    store.check(steps.steps)
    return steps, store


@dataclass(frozen=True)
class Prepared:
    """One family's run of a command, checked, and the folder of its results."""

    settings: RunSettings
    plan: Plan
    folder: Path


@dataclass(frozen=True)
class Command:
    """The runs of one command: a run for each family, all their steps as one plan, and the folder of their report."""

    runs: list[Prepared]
    plan: Plan
    store: Store
    folder: Path

    @property
    def owners(self) -> dict[str, str]:
        """Step -> name of its run."""
        return {key: run.folder.name for run in self.runs for key in run.plan.steps}

    def write(self) -> None:
        """Write the plans, with which `status` begins. The folder of them all comes last: it is the latest run."""
        for run in self.runs:
            run.folder.mkdir(parents=True, exist_ok=True)
            write_json(run.folder / "plan.json", plan_record(run.plan, run.settings))
        if len(self.runs) > 1:
            self.folder.mkdir(parents=True, exist_ok=True)
            told = {"runs": [run.folder.name for run in self.runs], "steps": _step_records(self.plan)}
            write_json(self.folder / "plan.json", told)

    def collect(self, status: Mapping[str, Status], command: str, started: float) -> None:
        """Write the results of every run; of a run in which nothing is new they stay."""
        for run in self.runs:
            own = {key: status[key] for key in run.plan.steps}
            nothing_new = all(s.state == CACHED for s in own.values())
            collected = all((run.folder / name).exists() for name in ("cells.json", "steps.json"))
            if not (nothing_new and collected and not unfinished(run.folder)):
                facts = run_facts(run.folder.name, command, started, _earlier(run.folder))
                collect(run.plan, self.store, run.settings, own, run.folder, facts)

    def report(self) -> Path:
        """Write the report, of several runs as `flgbench report A B` does; returns its page."""
        if len(self.runs) == 1:
            return build_report(self.folder)
        return build_merged([run.folder for run in self.runs], self.folder / "report")


def checked(
    settings: Sequence[RunSettings], out: Path, hardware: Mapping[str, Any] | None = None, weights_needed: bool = True
) -> Command:
    """The checked runs of `settings`, one a family; raises UsageError as `prepare` does, for any of them."""
    prepared = [prepare(each, out, hardware, weights_needed) for each in settings]
    folders = [out / "runs" / run_name(each) for each in settings]
    found = [Prepared(s, made, f) for s, (made, _), f in zip(settings, prepared, folders, strict=True)]
    if len(found) == 1:
        return Command(found, found[0].plan, prepared[0][1], folders[0])
    scales = "+".join(dict.fromkeys(s.scale for s in settings))
    name = f"{'+'.join(s.model for s in settings)}-{scales}-{digest([f.name for f in folders])}"
    return Command(found, joined([p for p, _ in prepared]), prepared[0][1], out / "runs" / name)


def execute(
    settings: Sequence[RunSettings], out: Path, executor: str, slots: int, words: str
) -> tuple[Path, dict[str, Status]]:
    """Run everything of `settings`, one a family, that is not cached: the folder of the report, the status of every step.

    `words` are the command as it was given. Run folders are written even when steps failed; of a run that goes on or was
    interrupted, `gather` writes them.
    """
    work = checked(settings, out)
    check_writable(out)
    started = time.time()
    status = initial_status(work.plan, work.store)
    check_disk([(run.settings, run.plan) for run in work.runs], [k for k, s in status.items() if s.state != CACHED], out)
    work.write()
    try:
        with Progress(work.plan, work.store) as progress:
            if executor == "inline":
                status = run_inline(work.plan, work.store, progress.update)
            else:
                status = run_local(work.plan, work.store, slots, environment.cores(), progress.update)
    except KeyboardInterrupt:
        print("\ninterrupted: the same command continues where this stopped", file=sys.stderr)
        raise
    work.collect(status, words, started)
    work.report()
    return work.folder, status


def gather(folder: Path) -> None:
    """Collect what a run on this machine has finished so far, without the process that runs it.

    Raises UsageError when the run was planned by another version, or for other hardware: its steps have other keys.
    """
    record = json.loads((folder / "plan.json").read_text())
    settings = build_settings(RunSettings, record["settings"], "run")
    steps, store = prepare(settings, folder.parent.parent)
    if [s["key"] for s in record["steps"]] != list(steps.steps):
        raise UsageError(
            f"{folder.name} was planned by another version of flgbench or elsewhere: report it there, or run again"
        )
    told = zip(steps.steps, step_lines(folder), strict=True)
    known = {"done": CACHED, "running": RUNNING, "failed": FAILED, "blocked": BLOCKED}
    status = {key: Status(known.get(line["state"], WAITING), line.get("reason", "")) for key, line in told}
    facts = {"name": folder.name, "command": "", "environment": environment.facts(), "started": None}
    collect(steps, store, settings, status, folder, facts | {"finished": None, "seconds": None})


def run_facts(name: str, command: str, started: float, earlier: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What run.json records about a run that ends now; `started` in seconds since the epoch.

    `earlier`: what it recorded when the same run ended before. Then it began with that, and took its seconds too.
    """
    told = earlier or {}
    return {
        "name": name,
        "command": command,
        "environment": environment.facts(),
        "started": told.get("started") or time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(time.time() - started + (told.get("seconds") or 0), 1),
    }


def _earlier(folder: Path) -> Mapping[str, Any] | None:
    """The run.json of a run that goes on."""
    file = folder / "run.json"
    return json.loads(file.read_text()) if file.exists() else None


def build_report(folder: Path) -> Path:
    """Rewrite every table, figure and the page of a run folder; returns the page."""
    from reports import build_all

    return build_all(folder)


def build_merged(folders: Sequence[Path], target: Path) -> Path:
    """Write one report of several runs into `target`; returns its page."""
    from reports.merged import build

    return build(folders, target)


def _step_records(steps: Plan) -> list[dict[str, Any]]:
    titles = steps.titles()
    told = ((key, {"kind": s.kind, "name": s.name, "inputs": dict(s.inputs)}) for key, s in steps.steps.items())
    return [{"key": key, "title": titles[key]} | record for key, record in told]


def plan_record(steps: Plan, settings: RunSettings) -> dict:
    """The plan as JSON: what `status` reads, without importing torch."""
    return {
        "settings": settings.model_dump(mode="json"),
        "steps": _step_records(steps),
        "cells": {c.name: c.sample for c in steps.cells if not c.skipped},  # with the step that makes its clips
    }


def print_plan(steps: Plan, status: dict[str, Status], costs: Mapping[str, str]) -> None:
    """One line a step: state, kind, name, key, and what it is told to cost."""
    for key, step in steps.steps.items():
        state = {"waiting": "to run"}.get(status[key].state, status[key].state)
        print(f"{state:8} {step.kind:8} {step.name:20} {key:50} {costs[key]}".rstrip())
    for cell in steps.skipped:
        print(f"{'skipped':8} {cell.kind:8} {cell.name:20} {cell.reason}")
    counts = Counter(s.state for s in status.values())
    print(f"{len(steps.steps)} steps: {counts[CACHED]} cached, {len(steps.steps) - counts[CACHED]} to run")


def failed(status: dict[str, Status]) -> dict[str, Status]:
    return {k: s for k, s in status.items() if s.state in (FAILED, BLOCKED)}
