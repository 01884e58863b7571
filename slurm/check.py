"""Whether the live cluster can meet a profile's requests, and sees the output folder."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from pathlib import Path

from flgbench.errors import UsageError
from slurm import scheduler
from slurm.profiles import Profile, Resources

# File systems that no other machine sees, unless this one exports them.
LOCAL = frozenset(("tmpfs", "ramfs", "overlay", "ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs"))


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


def check_shared(folder: Path, profile: Profile) -> None:
    """Raise UsageError if `folder` is on a disk of this machine and the cluster has nodes that are other machines."""
    kind, here = filesystem(folder), platform.node().partition(".")[0]
    others = sorted(scheduler.hosts() - {here, "localhost"})
    if kind in LOCAL and others and not profile.shared_folder:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise UsageError(
            f"--out {folder}: {kind} of this machine ({here}), which the nodes {', '.join(others[:3])}{more} may not see: "
            f"name a folder that all share, or set shared_folder = true in profile {profile.name} if they mount this one"
        )


def filesystem(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """The type of the file system that `folder` (which need not exist yet) is on; "" where nothing tells."""
    if not mounts.exists():
        return ""
    place, found, longest = folder.resolve(), "", -1
    for line in mounts.read_text().splitlines():
        _, point, kind, *_ = line.split(" ")
        mount = Path(point.replace("\\040", " "))
        if place.is_relative_to(mount) and len(mount.parts) >= longest:  # of two mounts on one point the later one counts
            found, longest = kind, len(mount.parts)
    return found
