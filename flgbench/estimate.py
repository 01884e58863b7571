"""The costs of a plan as text and as JSON, with what they assume."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flgbench import costs
from flgbench.costs import GB, Cost, Device, Network
from flgbench.errors import UsageError
from flgbench.plan import Plan
from flgbench.registry import family_of, registry
from flgbench.run_settings import TINY, RunSettings

GPUS = 8  # where neither a profile nor a recipe says how many


@dataclass(frozen=True)
class Estimate:
    """`device` is None at tiny scale, where a core is what counts."""

    of_steps: Mapping[str, Cost]
    network: Network | None
    device: Device | None
    gpus: int
    source: str  # of what is assumed about the machine

    @staticmethod
    def of(settings: RunSettings, plan: Plan, profile: Any = None) -> Estimate:
        """Where a run of `settings` would cost what; `profile` of a cluster says on how many GPUs and which."""
        network = family_of(settings.model_dump()).network(settings.scale)
        device, gpus, source = _machine(settings, profile)
        told = {key: costs.cost(step, plan, network, device, gpus) for key, step in plan.steps.items()}
        return Estimate(told, network, device, gpus, source)

    def text(self, key: str) -> str:
        """One step's, in a fixed order; what is not known is left out."""
        cost, parts = self.of_steps[key], []
        if cost.seconds:
            parts.append(_time(cost.seconds) if self.device is None else f"{cost.gpu_hours:,.1f} GPU-h")
        if cost.memory and self.device:
            fits = cost.memory <= self.device.memory_gb * GB
            parts.append(f"{cost.memory / GB:,.0f} GB a GPU" + ("" if fits else f" (has {self.device.memory_gb:.0f})"))
        if cost.disk:
            work = f" and {_size(cost.work_disk)} while it runs" if cost.work_disk > cost.disk / 2 else ""
            parts.append(f"{_size(cost.disk)} of disk{work}")
        return ", ".join(parts)

    def disk(self, keys: Iterable[str]) -> float:
        """Bytes that these steps take at most at a time, one after the other."""
        left = [self.of_steps[key] for key in keys]
        return sum(cost.disk or 0 for cost in left) + max((cost.work_disk for cost in left), default=0)

    def total(self, keys: Sequence[str]) -> str:
        """Of the steps that are still to run."""
        left, disk = [self.of_steps[key] for key in keys], self.disk(keys)
        if self.network is None:
            return "nothing is known of what this family costs"
        seconds = sum(cost.seconds or 0 for cost in left)
        if self.device is None:
            return f"still to run: about {_time(seconds)} of one core for the denoiser's passes, {_size(disk)} of disk"
        hours = sum(cost.gpu_hours or 0 for cost in left)
        return (
            f"still to run: about {hours:,.0f} GPU-hours for the denoiser's passes, at most {_size(disk)} of disk at a time"
        )

    def assumptions(self) -> str:
        if self.network is None:
            return "costs: not known for this family"
        if self.device is None:
            return "costs: of one core of the machine in reports/measured; without encoding, decoding and metrics"
        device = self.device
        return (
            f"costs: {self.network.flops / 1e12:,.1f} TFLOP a pass; trained on {self.gpus} x {device.name} ({self.source}) "
            f"at an assumed {device.training_mfu:.0%} of its {device.peak / 1e12:,.0f} TFLOP/s, sampled on one at "
            f"{device.mfu:.0%}; without encoding, decoding and metrics"
        )

    def record(self) -> dict[str, dict[str, Any]]:
        """Per step: seconds, memory (bytes of a GPU), disk and work_disk (bytes), gpus, gpu_hours; null is not known."""
        return {key: asdict(cost) | {"gpu_hours": cost.gpu_hours} for key, cost in self.of_steps.items()}


def check_disk(runs: Sequence[tuple[RunSettings, Plan]], keys: Sequence[str], out: Path, profile: Any = None) -> None:
    """Raise UsageError where the steps `keys` of the real scales among `runs` do not fit the disk of the folder `out`."""
    needed = 0.0
    for settings, plan in runs:
        if settings.scale != TINY:
            needed += Estimate.of(settings, plan, profile).disk([key for key in keys if key in plan.steps])
    free = shutil.disk_usage(out).free
    if needed > free:
        raise UsageError(
            f"--out {out}: {_size(free)} are free and this run takes up to {_size(needed)} (`flgbench plan` tells of what): "
            f"choose another disk"
        )


def _machine(settings: RunSettings, profile: Any) -> tuple[Device | None, int, str]:
    if settings.scale == TINY:
        return None, 1, ""
    if profile is not None:
        asked = profile.resources("train")
        named = costs.device_named(f"{profile.hardware.gpu} {asked.constraint} {profile.name}".upper())
        return named or costs.ASSUMED, max(1, asked.nodes * asked.gpus), f"profile {profile.name}"
    if settings.recipe:
        return costs.ASSUMED, registry("recipes").get(settings.recipe)().gpus, f"as in recipe {settings.recipe}"
    return costs.ASSUMED, GPUS, "assumed; --profile tells"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:,.0f} min"


def _size(count: float) -> str:
    return f"{count / GB:,.1f} GB" if count >= GB else f"{count / 1e6:,.1f} MB"
