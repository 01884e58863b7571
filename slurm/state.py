"""Where the steps of a run stand: what the artifacts say, and what the scheduler says of those that are not there."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from flgbench.errors import UsageError
from flgbench.runner import BLOCKED, CACHED, DONE, FAILED, RUNNING, WAITING, Status
from flgbench.status import runs_of
from flgbench.store import Store
from slurm import scheduler
from slurm.queue import Queue, Record
from slurm.scheduler import Job

History = Callable[[Iterable[str]], dict[str, Job]]


def statuses(
    parents: Mapping[str, Collection[str]],
    store: Store,
    records: Mapping[str, Record],
    live: Mapping[str, Job],
    cached: Collection[str] = (),
    history: History = scheduler.history,
) -> dict[str, Status]:
    """The status of every step. `parents`: step -> the steps it needs, parents first; `live`: the scheduler's queue.

    Read the records and the queue before calling this: a job that ends in between has then left its artifact.
    """
    missing = [key for key in parents if not store.is_done(key)]
    ended = history([records[k].job for k in missing if k in records and records[k].job not in live])
    status: dict[str, Status] = {}
    for key, needs in parents.items():
        if key not in missing:
            status[key] = Status(CACHED if key in cached else DONE)
            continue
        record = records.get(key)
        job = live.get(record.job) if record else None
        bad = next((p for p in needs if status[p].state in (FAILED, BLOCKED)), None)
        if bad is not None and (job is None or job.state == "PENDING"):
            status[key] = Status(BLOCKED, f"needs {bad}, which {status[bad].state}")
        elif job is not None:
            status[key] = Status(WAITING if job.state == "PENDING" else RUNNING, job.reason)
        elif record is None:
            status[key] = Status(WAITING, "not submitted")
        else:
            status[key] = Status(FAILED, reason(store, key, record, ended.get(record.job)))
    return status


def reason(store: Store, key: str, record: Record, ended: Job | None) -> str:
    """Why a job left the queue without an artifact: its own last word, or SLURM's where it could say none."""
    said = [e for e in store.events(key) if e["event"] in ("job", "failed")]
    of_this_job = len(said) > 1 and said[-2].get("id") == record.job and said[-1]["event"] == "failed"
    if of_this_job and (ended is None or ended.state in ("FAILED", "COMPLETED")):
        return said[-1]["reason"]
    if ended is not None:
        return f"SLURM ended job {record.job}: {ended.state}, {ended.reason}, after {ended.elapsed}; log: {record.log}"
    return f"job {record.job} left SLURM's queue and no artifact; log: {record.log}"


def look(parents: Mapping[str, Collection[str]], store: Store) -> dict[str, dict[str, Any]]:
    """What `flgbench status` adds to its lines: state, reason, job; of a live job SLURM's view and its place in the queue.

    Nothing without SLURM, as on a laptop with a copy of the run: the files speak alone.
    """
    records = Queue(store).records(parents)
    try:
        live = scheduler.queue()
    except UsageError:
        return {}
    found: dict[str, dict[str, Any]] = {}
    for key, status in statuses(parents, store, records, live).items():
        found[key] = {"state": status.state} | ({"reason": status.reason} if status.state in (FAILED, BLOCKED) else {})
        if key not in records or status.state == DONE:
            continue
        found[key] |= {"job": records[key].job}
        if job := live.get(records[key].job):
            found[key] |= {"slurm": f"{job.state} {job.reason}".strip(), "elapsed": job.elapsed}
            found[key] |= {"place": job.place} if job.place is not None else {}
        found[key] |= {"log": records[key].log}
    return found


def cancel_run(folder: Path) -> int:
    """End the jobs that the run in `folder` has submitted and that wait or run; returns how many. Raises UsageError."""
    steps = json.loads((folder / "plan.json").read_text())["steps"]
    records = Queue(Store(folder.parent.parent / "store")).records(s["key"] for s in steps)
    live = scheduler.queue()
    names = {run.name for run in runs_of(folder)}
    mine = sorted(r.job for r in records.values() if r.run in names and r.job in live)
    scheduler.cancel(mine)
    return len(mine)
