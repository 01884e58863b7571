"""Run a plan on this machine: a queue over worker processes. One failed step never stops its neighbours.

Workers are spawned once and take steps until the plan is done, so importing torch is paid once a slot. An exclusive step
(timing) waits until nothing else runs. All state is in the store: killing any process and running again continues.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flgbench import environment
from flgbench.orphans import die_with_parent
from flgbench.store import Store

if TYPE_CHECKING:  # the plan imports torch, and the words of a status are wanted without it
    from flgbench.cells import Step
    from flgbench.plan import Plan

KILLED = "its worker process was killed twice (out of memory, or by hand); run again to continue"
WAITING, RUNNING, CACHED, DONE, FAILED, BLOCKED = "waiting", "running", "cached", "done", "failed", "blocked"


@dataclass
class Status:
    """Where a step stands: one of cached, waiting, running, done, failed, blocked, with the reason."""

    state: str
    reason: str = ""


def initial_status(plan: Plan, store: Store) -> dict[str, Status]:
    """What the store says before anything runs."""
    return {key: Status(CACHED if store.is_done(key) else WAITING) for key in plan.steps}


def needed(plan: Plan, status: dict[str, Status]) -> set[str]:
    """Steps that have to run: unfinished ones. A finished step's unfinished parents are not needed for it."""
    return {key for key, s in status.items() if s.state == WAITING}


def _ready(plan: Plan, status: dict[str, Status]) -> Iterable[Step]:
    for key, step in plan.steps.items():
        if status[key].state == WAITING and all(status[parent].state in (CACHED, DONE) for parent in step.inputs.values()):
            yield step


def _block_children(plan: Plan, status: dict[str, Status], failed: str) -> None:
    for child in plan.children(failed):
        if status[child].state == WAITING:
            status[child] = Status(BLOCKED, f"needs {failed}, which {status[failed].state}")
            _block_children(plan, status, child)


def work(step: Step, root: Path, threads: int) -> None:
    """Run one step with `threads` threads: what a worker process of this machine, or a job of a cluster, does."""
    import torch

    from flgbench.steps import execute

    torch.set_num_threads(threads)
    execute(step, Store(root))


def _quiet_worker(devices: Any = None) -> None:
    import signal

    if devices is not None:  # before CUDA is touched: a step sees the GPU of its slot and no other
        os.environ["CUDA_VISIBLE_DEVICES"] = devices.get()

    # Ctrl-C belongs to the parent, which ends the workers; they must not print a traceback each.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    die_with_parent()


def run_inline(plan: Plan, store: Store, on_change: Callable[[dict[str, Status]], None]) -> dict[str, Status]:
    """One step after the other in this process: for tests and debugging."""
    from flgbench.steps import execute

    status = initial_status(plan, store)
    while ready := next(iter(_ready(plan, status)), None):
        status[ready.key] = Status(RUNNING)
        on_change(status)
        try:
            execute(ready, store)
            status[ready.key] = Status(DONE)
        except Exception as error:
            status[ready.key] = Status(FAILED, f"{type(error).__name__}: {error}")
            _block_children(plan, status, ready.key)
        on_change(status)
    return status


def run_local(
    plan: Plan, store: Store, slots: int, cores: int, on_change: Callable[[dict[str, Status]], None]
) -> dict[str, Status]:
    """At most `slots` steps at a time, each with cores // slots threads; an exclusive one alone with all cores.

    The step whose chain is longest goes first. Where there are GPUs each slot has one, and its steps see no other.
    """
    from flgbench.schedule import remaining

    urgency, gpus = remaining(plan), environment.gpus()
    status = initial_status(plan, store)
    running: dict[Future, str] = {}
    losses: Counter[str] = Counter()
    pool = new_pool(slots, gpus)
    try:
        while True:
            for step in sorted(_ready(plan, status), key=lambda s: -urgency[s.key]):
                alone = any(plan.steps[k].exclusive for k in running.values())
                if len(running) >= slots or alone or (step.exclusive and running):
                    continue
                # A step alone on the machine may use all of it; others share.
                threads = cores if step.exclusive else max(1, cores // slots)
                running[pool.submit(work, step, store.root, threads)] = step.key
                status[step.key] = Status(RUNNING)
            on_change(status)
            if not running:
                break
            finished, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in finished:
                if future not in running:  # it was lost together with another's worker and waits again
                    continue
                key = running.pop(future)
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    # A worker was killed and its pool is lost with everything in it. Which step's worker it was is not
                    # told, so all that ran go on from their checkpoints in a new pool, but not for ever.
                    lost = [key, *running.values()]
                    running.clear()
                    pool = new_pool(slots, gpus)
                    for other in lost:
                        losses[other] += 1
                        status[other] = Status(WAITING) if losses[other] < 2 else Status(FAILED, KILLED)
                else:
                    lost = [key]
                    status[key] = Status(DONE) if error is None else Status(FAILED, f"{type(error).__name__}: {error}")
                for other in lost:
                    if status[other].state == FAILED:
                        store.event(other, "failed", reason=status[other].reason)
                        _block_children(plan, status, other)
                if not running:
                    break
    finally:
        for process in list((getattr(pool, "_processes", None) or {}).values()):
            process.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
    return status


def new_pool(slots: int, gpus: Sequence[str] = ()) -> ProcessPoolExecutor:
    """`slots` worker processes; each sees one of `gpus`, in turn."""
    environment.keep_memory()
    context = multiprocessing.get_context("spawn")
    devices = None
    if gpus:
        devices = context.SimpleQueue()
        for slot in range(slots):
            devices.put(gpus[slot % len(gpus)])
    return ProcessPoolExecutor(slots, mp_context=context, initializer=_quiet_worker, initargs=(devices,))
