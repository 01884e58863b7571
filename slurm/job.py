"""What runs inside a SLURM job: one step, by the code path of the local runner. A job carries paths and settings only.

A job of several tasks is one training over several processes (`flgbench.distributed`): all tasks run the step, the first
one writes.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from dataclasses import asdict
from pathlib import Path

import submitit

from flgbench import environment
from flgbench.cells import Step
from flgbench.runner import work
from flgbench.store import Store, write_json

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("flgbench", "methods", "baselines", "slurm")  # what decides an artifact; reports only read them


class Refused(RuntimeError):
    """The job must not compute: other code, other hardware, or a parent that is not there."""


def code_hash() -> str:
    """SHA-256 over the paths and contents of all Python sources that this process would run, first 12 digits."""
    total = hashlib.sha256()
    for package in SOURCES:
        for path in sorted((ROOT / package).rglob("*.py")):
            total.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return total.hexdigest()[:12]


def save_steps(path: Path, steps: dict[str, Step]) -> None:
    """Everything a job needs to know about its step, for all steps of a run."""
    write_json(path, {key: asdict(step) for key, step in steps.items()})


def load_step(path: Path, key: str) -> Step:
    """Raises Refused if the file's step does not have the key that was submitted."""
    step = Step(**json.loads(path.read_text())[key])
    if step.key != key:
        raise Refused(f"{path} describes {step.key} under this key: it was changed after submission")
    return step


class StepJob(submitit.helpers.Checkpointable):
    """Runs step `key` of the file `steps` into the store at `root`; `code` is the hash of the code at submission.

    SLURM may start it any number of times: training goes on from its last checkpoint, a finished step is left as it is.
    """

    def __init__(self, root: Path, steps: Path, key: str, code: str) -> None:
        self.root, self.steps, self.key, self.code = str(root), str(steps), key, code

    def __call__(self) -> None:
        store = Store(Path(self.root))
        if store.is_done(self.key):
            return
        first = os.environ.get("SLURM_PROCID", "0") == "0"
        if first:
            store.start(self.key)
            store.event(self.key, "job", id=job_id(), node=os.environ.get("SLURMD_NODENAME", socket.gethostname()))
        try:
            step = load_step(Path(self.steps), self.key)
            self._check(step, store)
            join_tasks()
        except Exception as error:
            if first:
                store.event(self.key, "failed", reason=f"{type(error).__name__}: {error}")
            raise
        work(step, store.root, int(os.environ.get("SLURM_CPUS_PER_TASK", environment.cores())))

    def _check(self, step: Step, store: Store) -> None:
        if (now := code_hash()) != self.code:
            raise Refused(f"the code in {ROOT} has changed since submission (was {self.code}, is {now}): submit again")
        # The scheduler has seen the parents end well, unless it has forgotten them, which it counts the same.
        for parent in step.inputs.values():
            if not store.is_done(parent):
                raise Refused(f"needs {parent}, which is not in {store.root}")
        expected = step.settings.get("hardware")
        if step.exclusive and expected:
            found = environment.hardware()
            differing = [f"{k} is '{found.get(k)}', not '{v}'" for k, v in expected.items() if found.get(k) != v]
            if differing:
                raise Refused(f"timing for other hardware: {'; '.join(differing)}: set [hardware] of the profile")

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Called by submitit inside the handler of SLURM's warning: bookkeeping only, checkpoints are periodic."""
        Store(Path(self.root)).event(self.key, "requeued", id=job_id())
        return submitit.helpers.DelayedSubmission(self)


def join_tasks() -> None:
    """Make one process group of the tasks of this job, if it has several: a GPU each, or by gloo without GPUs."""
    if int(os.environ.get("SLURM_NTASKS", "1")) == 1:
        return
    from flgbench import distributed

    submitit.helpers.TorchDistributedEnvironment().export(overwrite=True)
    distributed.join()


def job_id() -> str:
    """This job's id as squeue prints it: "12", or "12_3" in an array."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID", "")
