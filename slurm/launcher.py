"""Submit the steps of a plan as job arrays. Nothing is submitted unless every request can be met."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import submitit

from flgbench.errors import UsageError
from flgbench.plan import Plan
from flgbench.store import Store, write_json
from slurm import scheduler
from slurm.grouping import Array, group
from slurm.job import ROOT, StepJob, code_hash, save_steps
from slurm.profiles import Profile, Resources


class Queue:
    """Which job computes which step: one small file a step beside the store, shared by all runs of the store.

    Two runs with a common step thus submit it once, and the same command given again submits nothing twice.
    """

    def __init__(self, store: Store) -> None:
        self.folder = store.root.parent / "queue"

    def record(self, key: str, job: str, run: str, log: Path) -> None:
        write_json(self.folder / f"{key}.json", {"job": job, "run": run, "log": str(log), "submitted": time.time()})

    def jobs(self, keys: Any) -> dict[str, dict[str, Any]]:
        """The last job of each of `keys` that has had one."""
        paths = {key: self.folder / f"{key}.json" for key in keys}
        return {key: json.loads(path.read_text()) for key, path in paths.items() if path.exists()}

    @contextmanager
    def lock(self) -> Iterator[None]:
        """One submission at a time. A lock of the process: it ends with it, however that ends."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            yield


def arrays_to_submit(plan: Plan, store: Store, profile: Profile, live: dict[str, scheduler.Job]) -> list[Array]:
    """What is neither done nor already waiting or running in the scheduler. `live` is the scheduler's queue."""
    queued = {key for key, record in Queue(store).jobs(plan.steps).items() if record["job"] in live}
    pending = [key for key in plan.steps if key not in queued and not store.is_done(key)]
    return group(plan, pending, profile, [k for k in queued if not store.is_done(k)])


def check_profile(profile: Profile, kinds: list[str]) -> list[str]:
    """One line a kind of step that says what will be asked for. Raises UsageError for the first that cannot be met."""
    offered = scheduler.partitions()
    default = next((p.name for p in offered.values() if p.default), None)
    lines = []
    for kind in kinds:
        wanted = profile.resources(kind)
        name = wanted.partition or default
        where = f"profile {profile.name}, {kind}"
        if name is None or name not in offered:
            raise UsageError(f"{where}: no partition '{name}' here. Partitions: {', '.join(offered)}")
        has = offered[name]
        for asked, most, unit in (
            (wanted.time_minutes, has.minutes, "minutes"),
            (wanted.gpus, has.gpus, "GPUs a node"),
            (wanted.cpus, has.cpus, "CPUs a node"),
            (wanted.memory_gb, has.memory_gb, "GB a node"),
        ):
            if most is not None and asked > most:
                raise UsageError(f"{where}: asks for {asked:g} {unit}, and partition '{name}' has {most:g}")
        # SLURM's own verdict covers what sinfo does not show: account, QOS, constraint, further options.
        flags = [f"--{k}" if v is True else f"--{k}={v}" for k, v in wanted.sbatch().items()]
        try:
            scheduler.call("sbatch", "--test-only", *flags, "--wrap", "true")
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None
        limit = f"{has.minutes} min" if has.minutes else "none"
        lines.append(f"{kind:8} ok: partition {name}, {wanted.time_minutes} min (limit {limit}), {wanted.gpus} GPUs")
    return lines


def submit(plan: Plan, store: Store, folder: Path, profile: Profile, max_jobs: int | None) -> dict[str, str]:
    """Submit what has to run; returns step -> job id, of the new jobs only. `folder` is the run folder.

    Raises UsageError, with nothing left in the queue, when SLURM refuses.
    """
    queue = Queue(store)
    with queue.lock():
        live = scheduler.queue()
        arrays = arrays_to_submit(plan, store, profile, live)
        if not arrays:
            return {}
        check_profile(profile, sorted({a.kind for a in arrays}))
        steps = (folder / "slurm" / "steps.json").resolve()
        steps.parent.mkdir(parents=True, exist_ok=True)
        save_steps(steps, plan.steps)
        # A folder of its own: submitit takes a result left there by an older job of the same id for the new one's.
        logs = steps.parent / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        ids = {k: r["job"] for k, r in queue.jobs(plan.steps).items() if r["job"] in live}
        code, new = code_hash(), {}
        parents: list[str] = []  # job id of each array, without index
        try:
            for array in arrays:
                executor = submitit.SlurmExecutor(logs, max_num_timeout=profile.max_timeouts)
                after = dependency(array, ids, parents)
                executor.update_parameters(**parameters(array.resources, profile, array, after, max_jobs))
                with executor.batch():
                    jobs = [executor.submit(StepJob(store.root.resolve(), steps, k, code)) for k in array.keys]
                parents.append(jobs[0].job_id.partition("_")[0])
                for key, job in zip(array.keys, jobs, strict=True):
                    ids[key] = new[key] = job.job_id
                    queue.record(key, job.job_id, folder.name, job.paths.stderr)
        except submitit.core.utils.FailedJobError as error:
            scheduler.cancel(sorted(new.values()))
            raise UsageError(f"SLURM refuses, nothing is submitted: {str(error).strip().splitlines()[-1]}") from None
        except BaseException:  # Ctrl-C too: half a plan in the queue would only wait for parents that never come
            scheduler.cancel(sorted(new.values()))
            raise
    return new


def dependency(array: Array, ids: dict[str, str], parents: list[str]) -> str | None:
    """sbatch's --dependency: all of `after` ended well, and the task of the same index too."""
    parts = [f"aftercorr:{parents[array.corresponding]}"] if array.corresponding is not None else []
    if array.after:
        parts.append(":".join(["afterok", *(ids[k] for k in array.after)]))
    return ",".join(parts) or None


def parameters(
    resources: Resources, profile: Profile, array: Array, after: str | None, max_jobs: int | None
) -> dict[str, Any]:
    """The request in submitit's words: it knows some options itself, and takes the rest by sbatch's names."""
    options = resources.sbatch()
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {
        "job_name": f"flg-{array.kind}",
        "time": options.pop("time"),  # submitit also reckons with it
        "nodes": options.pop("nodes"),
        "ntasks_per_node": options.pop("ntasks-per-node"),
        "signal_delay_s": profile.signal_seconds,
        "array_parallelism": max_jobs or len(array.keys),
        # PYTHONSAFEPATH: or the folder that `run` was called in, perhaps another checkout, would come first.
        "setup": [*resources.setup, f"export PYTHONSAFEPATH=1 PYTHONPATH={shlex.quote(path)}"],
        "dependency": after,
        # Without kill-on-invalid-dep the children of a failed parent stay in the queue for ever.
        "additional_parameters": options | {"kill-on-invalid-dep": "yes", "requeue": True},
    }


def describe(arrays: list[Array], profile: Profile, max_jobs: int | None) -> str:
    """The arrays and their sbatch settings, for --dry-run."""
    lines = []
    for number, array in enumerate(arrays):
        waits = [f"task i after task i of array {array.corresponding}"] if array.corresponding is not None else []
        waits += [f"all after {len(array.after)} step{'s' * (len(array.after) > 1)}"] if array.after else []
        lines.append(f"array {number}: {len(array.keys)} × {array.kind}" + "".join(f", {w}" for w in waits))
        flags = [f"--{k}" if v is True else f"--{k}={v}" for k, v in array.resources.sbatch().items()]
        flags += [f"--array=0-{len(array.keys) - 1}%{min(max_jobs or len(array.keys), len(array.keys))}"]
        lines.append(f"  sbatch {' '.join(flags)} --signal=USR2@{profile.signal_seconds} --requeue")
        lines += [f"    {key}" for key in array.keys]
    return "\n".join(lines)
