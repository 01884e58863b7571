"""Submit the steps of a plan as job arrays, whole or not at all."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import submitit

from flgbench import environment
from flgbench.errors import UsageError
from flgbench.plan import Plan
from flgbench.schedule import remaining
from flgbench.store import Store
from slurm import scheduler
from slurm.grouping import Array, group
from slurm.job import ROOT, StepJob, code_hash, save_steps
from slurm.profiles import Profile
from slurm.queue import Queue


def arrays_to_submit(plan: Plan, store: Store, profile: Profile, live: Collection[str]) -> list[Array]:
    """Arrays of what is neither done nor already in the scheduler, whose job ids are `live`."""
    queued = [k for k, r in Queue(store).records(plan.steps).items() if r.job in live and not store.is_done(k)]
    pending = [k for k in plan.steps if k not in queued and not store.is_done(k)]
    return group(plan, pending, profile, queued)


def submit(
    plan: Plan, store: Store, folder: Path, profile: Profile, max_jobs: int | None, owners: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Submit what has to run; returns step -> job id, of the new jobs only. `folder` is the run folder.

    `owners` are the runs that steps belong to, where a plan is of several. `max_jobs` limits the tasks of one array that
    run at a time. Raises UsageError when SLURM refuses; the queue then holds nothing of this submission.
    """
    queue = Queue(store)
    with queue.lock():
        live = scheduler.queue()
        arrays = arrays_to_submit(plan, store, profile, live)
        ids = {key: record.job for key, record in queue.records(plan.steps).items() if record.job in live}
        new: dict[str, str] = {}
        if not arrays:
            return new
        place = (folder / "slurm").resolve()
        place.mkdir(parents=True, exist_ok=True)
        save_steps(place / "steps.json", plan.steps)
        # A folder of its own: submitit takes a result left there by an older job of the same id for the new one's.
        logs = place / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        code = code_hash()
        array_ids: list[str] = []
        try:
            later = niceness(arrays, plan)
            for number, array in enumerate(arrays):
                executor = submitit.SlurmExecutor(logs, max_num_timeout=profile.max_timeouts)
                after = dependency(array, ids, array_ids)
                executor.update_parameters(**parameters(array, profile, after, max_jobs, later[number]))
                # Inside a job, sbatch would take the parent's resources from its environment.
                inside_job = "SLURM_JOB_ID" in os.environ
                with submitit.helpers.clean_env() if inside_job else nullcontext(), executor.batch():
                    jobs = [
                        executor.submit(StepJob(store.root.resolve(), place / "steps.json", key, code)) for key in array.keys
                    ]
                array_ids.append(jobs[0].job_id.partition("_")[0])
                for key, job in zip(array.keys, jobs, strict=True):
                    ids[key] = new[key] = job.job_id
                    queue.add(key, job.job_id, (owners or {}).get(key, folder.name), job.paths.stderr)
        except BaseException as error:
            # Half a plan would wait in the queue for parents that never come.
            scheduler.cancel(array_ids)
            if isinstance(error, submitit.core.utils.FailedJobError):
                said = (str(error).strip().splitlines() or ["no reason given"])[-1]
                raise UsageError(f"SLURM refuses, nothing is submitted: {said}") from None
            raise
    return new


def dependency(array: Array, ids: dict[str, str], array_ids: list[str]) -> str | None:
    """sbatch's --dependency: all of `after` ended well, and so did the task of the same index."""
    parts = [f"aftercorr:{array_ids[array.corresponding]}"] if array.corresponding is not None else []
    if array.after:
        parts.append(":".join(["afterok", *(ids[key] for key in array.after)]))
    return ",".join(parts) or None


def niceness(arrays: Sequence[Array], plan: Plan) -> list[int]:
    """sbatch's --nice of each array, 0 for the longest chain to the end: the critical path goes first."""
    chain = remaining(plan)
    longest = [max(chain[key] for key in array.keys) for array in arrays]
    return [sum(other > mine for other in longest) for mine in longest]


def parameters(array: Array, profile: Profile, after: str | None, max_jobs: int | None, nice: int = 0) -> dict[str, Any]:
    """The request in submitit's words: it knows some options itself, and takes the rest by sbatch's names."""
    options = ({"nice": nice} if nice else {}) | array.resources.sbatch()
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {
        "job_name": f"flg-{array.kind}",
        "time": options.pop("time"),  # submitit also reckons with it
        "nodes": options.pop("nodes"),
        "ntasks_per_node": options.pop("ntasks-per-node"),
        "signal_delay_s": profile.signal_seconds,
        "array_parallelism": max_jobs or len(array.keys),
        # PYTHONSAFEPATH: or the folder that `run` was called in, perhaps another checkout, would come first.
        "setup": [
            f"export GLIBC_TUNABLES={environment.MALLOC}",
            *array.resources.setup,
            f"export PYTHONSAFEPATH=1 PYTHONPATH={shlex.quote(path)}",
        ],
        "dependency": after,
        # Without kill-on-invalid-dep the children of a failed parent stay in the queue for ever.
        "additional_parameters": options | {"kill-on-invalid-dep": "yes", "requeue": True},
    }


def describe(arrays: list[Array], plan: Plan, profile: Profile, max_jobs: int | None) -> list[dict[str, Any]]:
    """The arrays and their sbatch settings, for --dry-run."""
    described = []
    for array, nice in zip(arrays, niceness(arrays, plan), strict=True):
        count = len(array.keys)
        flags = [f"--nice={nice}"] if nice and "nice" not in array.resources.options else []
        flags = [*array.resources.flags(), *flags, f"--signal=USR2@{profile.signal_seconds}", "--requeue"]
        flags += [f"--array=0-{count - 1}%{min(max_jobs or count, count)}"] if count > 1 else []
        described.append(
            {
                "kind": array.kind,
                "sbatch": flags,
                "after": list(array.after),
                "index_to_index": array.corresponding,
                "steps": list(array.keys),
            }
        )
    return described
