"""SLURM's own commands, asked and parsed: what is on offer, where jobs stand, ending them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from flgbench.errors import UsageError

TIMEOUT = 20  # seconds that a command may take


@dataclass(frozen=True)
class Job:
    """One job as the scheduler tells it: SLURM's word for its state, D-HH:MM:SS elapsed, place 1 for the next to start."""

    state: str
    reason: str = ""
    elapsed: str = ""
    place: int | None = None


@dataclass(frozen=True)
class Partition:
    """A partition's limit in minutes (None: no limit) and the largest node's GPUs, CPUs and memory in GiB."""

    name: str
    minutes: int | None
    gpus: int
    cpus: int
    memory_gb: float
    default: bool


def call(*command: str) -> str:
    """stdout of a SLURM command. Raises UsageError with its last line when it fails or is not there."""
    if shutil.which(command[0]) is None:
        raise UsageError(f"no SLURM on this machine: '{command[0]}' is not on PATH (slurm/README.md has one to try)")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        raise UsageError(f"SLURM does not answer: {command[0]} took more than {TIMEOUT} s") from None
    if done.returncode != 0:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip() and not line.startswith("Try ")]
        raise UsageError(f"SLURM refuses: {said[-1].strip() if said else f'exit code {done.returncode}'}")
    return done.stdout


def partitions() -> dict[str, Partition]:
    """Every partition, from sinfo: for a partition of unlike nodes, the largest of each number."""
    found: dict[str, Partition] = {}
    for line in call("sinfo", "-h", "-o", "%P|%l|%G|%c|%m").splitlines():
        shown, limit, gres, cpus, memory = line.split("|")
        name = shown.rstrip("*")  # the star marks the default partition
        gpus = sum(int(n) for n in re.findall(r"gpu(?::[^:,()]+)?:(\d+)", gres))
        here = Partition(
            name, minutes(limit), gpus, int(cpus.rstrip("+")), int(memory.rstrip("+")) / 1024, shown.endswith("*")
        )
        before = found.get(name, here)
        most = {field: max(getattr(before, field), getattr(here, field)) for field in ("gpus", "cpus", "memory_gb")}
        found[name] = replace(here, **most)
    return found


def hosts() -> set[str]:
    """Host names of all nodes, without their domains."""
    return {line.strip().partition(".")[0] for line in call("sinfo", "-h", "-o", "%n").splitlines() if line.strip()}


def minutes(limit: str) -> int | None:
    """SLURM's [D-]HH:MM:SS or MM:SS in whole minutes; None for no limit."""
    if not re.fullmatch(r"(\d+-)?[\d:]+", limit):
        return None
    days, _, clock = limit.rpartition("-")
    parts = [int(p) for p in clock.split(":")]
    hours, mins = (parts[-3] if len(parts) > 2 else 0), (parts[-2] if len(parts) > 1 else parts[0])
    return int(days or 0) * 1440 + hours * 60 + mins


def queue() -> dict[str, Job]:
    """All waiting and running jobs of this user by id ("12" or, of an array, "12_3"), with their place in the queue."""
    lines = call("squeue", "-h", "-r", "-S", "-p,i", "--me", "-o", "%i|%T|%r|%M").splitlines()
    jobs: dict[str, Job] = {}
    place = 0
    for line in lines:
        job_id, state, reason, elapsed = line.strip().split("|")
        waits = state == "PENDING" and not reason.startswith("Dependency")
        place += waits
        jobs[job_id] = Job(state, "" if reason == "None" else reason, elapsed, place if waits else None)
    return jobs


def history(ids: Iterable[str]) -> dict[str, Job]:
    """How jobs that have left the queue ended, from sacct; nothing for those it does not (yet) know."""
    wanted = sorted(set(ids))
    if not wanted or shutil.which("sacct") is None:
        return {}
    try:
        lines = call("sacct", "-n", "-P", "-X", "-j", ",".join(wanted), "-o", "JobID,State,ExitCode,Elapsed").splitlines()
    except UsageError:  # a cluster without accounting: the artifacts still tell what is done
        return {}
    found = {}
    for line in lines:
        job_id, state, code, elapsed = line.split("|")
        # "CANCELLED by 1000": the first word is the state.
        found[job_id] = Job(state.split()[0], state if " " in state else f"exit code {code}", elapsed)
    return found


def cancel(ids: Sequence[str]) -> None:
    """End jobs, whatever they are doing."""
    for start in range(0, len(ids), 500):  # a command line has its limit
        call("scancel", *ids[start : start + 500])
