"""Whether the live cluster can meet a profile's requests."""

from __future__ import annotations

from collections.abc import Iterable

from flgbench.errors import UsageError
from slurm import scheduler
from slurm.profiles import Profile, Resources


def check_profile(profile: Profile, kinds: Iterable[str]) -> list[str]:
    """One line a kind of step that says what will be asked for. Raises UsageError for the first that cannot be met."""
    offered = scheduler.partitions()
    lines = []
    tried: set[str] = set()  # alike requests are put to SLURM once
    for kind in kinds:
        wanted = profile.resources(kind)
        try:
            partition = _partition(wanted, offered)
            flags = wanted.flags()
            if str(flags) not in tried:
                # SLURM's own verdict covers what sinfo does not show: account, QOS, constraint, further options.
                scheduler.call("sbatch", "--test-only", *flags, "--wrap", "true")
                tried.add(str(flags))
        except UsageError as error:
            raise UsageError(f"profile {profile.name}, {kind}: {error}") from None
        limit = f"of at most {partition.minutes}" if partition.minutes is not None else "without limit"
        lines.append(
            f"{kind:8} ok: partition {partition.name}, {wanted.time_minutes} min {limit}, "
            f"{wanted.gpus} of {partition.gpus} GPUs, {wanted.cpus} of {partition.cpus} CPUs"
        )
    return lines


def _partition(wanted: Resources, offered: dict[str, scheduler.Partition]) -> scheduler.Partition:
    """The partition that would be used. Raises UsageError if it is not there or offers less than is asked for."""
    name = wanted.partition or next((p.name for p in offered.values() if p.default), "")
    if name not in offered:
        problem = f"no partition '{name}'" if name else "the profile names no partition and there is no default one"
        raise UsageError(f"{problem}. Partitions: {', '.join(offered)}")
    has = offered[name]
    for asked, most, unit in (
        (wanted.time_minutes, has.minutes, "minutes"),
        (wanted.gpus, has.gpus, "GPUs a node"),
        (wanted.cpus * wanted.tasks_per_node, has.cpus, "CPUs a node"),
        (wanted.memory_gb, has.memory_gb, "GB a node"),
    ):
        if most is not None and asked > most:
            raise UsageError(f"asks for {asked:g} {unit}, and partition '{name}' has at most {most:g}")
    return has
