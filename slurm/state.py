"""Where the steps of a run stand: what the artifacts say, and what the scheduler says of those that are not there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flgbench.plan import Plan
from flgbench.runner import BLOCKED, CACHED, DONE, FAILED, RUNNING, WAITING, Status
from flgbench.store import Store
from slurm import scheduler
from slurm.scheduler import Job

History = Callable[[list[str]], dict[str, Job]]


def statuses(
    plan: Plan,
    store: Store,
    records: Mapping[str, Mapping[str, Any]],
    live: Mapping[str, Job],
    run: str,
    history: History = scheduler.history,
) -> dict[str, Status]:
    """The status of every step. `records`: the last job of each step (see launcher.Queue); `live`: the scheduler's queue.

    Ask the scheduler before calling this: a job that ends in between has then left its artifact.
    """
    gone = [k for k in plan.steps if k in records and records[k]["job"] not in live and not store.is_done(k)]
    ended = history([records[k]["job"] for k in gone]) if gone else {}
    status: dict[str, Status] = {}
    for key, step in plan.steps.items():
        bad = next((p for p in step.inputs.values() if status[p].state in (FAILED, BLOCKED)), None)
        record = records.get(key)
        job = live.get(record["job"]) if record else None
        if store.is_done(key):
            status[key] = Status(DONE if record and record["run"] == run else CACHED)
        elif bad is not None and (job is None or job.state == "PENDING"):
            status[key] = Status(BLOCKED, f"needs {bad}, which {status[bad].state}")
        elif job is not None:
            status[key] = Status(WAITING if job.state == "PENDING" else RUNNING, job.reason)
        elif record is None:
            status[key] = Status(WAITING, "not submitted")
        else:
            status[key] = Status(FAILED, _reason(store, key, record["job"], ended.get(record["job"])))
    return status


def _reason(store: Store, key: str, job: str, ended: Job | None) -> str:
    """Why a job left the queue without an artifact: its own last word, or SLURM's if it could say none."""
    events = store.events(key)
    started = max((i for i, e in enumerate(events) if e["event"] == "job" and e.get("id") == job), default=None)
    own = next((e["reason"] for e in reversed(events) if e["event"] == "failed"), None) if started is not None else None
    if own and (ended is None or ended.state in ("FAILED", "COMPLETED")):
        return own
    if ended is not None:
        return f"SLURM ended job {job}: {ended.state}, {ended.reason}, after {ended.elapsed}"
    return f"job {job} is gone from SLURM's queue and left no artifact"
