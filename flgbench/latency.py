"""What `flgbench latency` does: networks in the shape of methods' students, timed side by side without any training.

Random weights take as long as trained ones, so the full size is timed without a checkpoint. Which blocks a student lost
does not matter for its time either, only how many: see `Method.shape`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import Field

from flgbench import devices, environment
from flgbench.contracts import Baseline, Family, FamilyPreset, Method
from flgbench.errors import UsageError
from flgbench.models import DEFAULT_FAMILY
from flgbench.models.base import Placement, StudentShape, VideoModel
from flgbench.models.parts import tensor_bytes
from flgbench.registry import did_you_mean, registry
from flgbench.sampling import SamplerSettings
from flgbench.settings import Settings, build_settings
from flgbench.sweeps import Variant, merged
from flgbench.timing import weight_bytes

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
HOUR = 3600.0
# Share of a large matrix product's rate that a clip reaches, for estimates: attention and element-wise work are slower.
REACHED = 0.6
WARM_PASSES = 4  # of a network, about, before it is timed
LIBRARIES = 2**30  # bytes of a CPU's memory that the process takes besides weights and activations, about


class LatencySettings(Settings):
    """Everything that decides what is timed."""

    model: str = DEFAULT_FAMILY
    scale: str = "tiny"
    weights: Literal["random", "teacher"] = "teacher"
    checkpoint: str | None = None
    revision: str | None = None
    names: tuple[str, ...] = Field(min_length=1, description="methods and baselines")
    method_settings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    variants: tuple[Variant, ...] = Field((), description="points of sweeps, further rows")
    lose_first: str | None = Field(None, description="the kind of block that a pruned student is taken to lose first")
    passes_only: tuple[str, ...] = Field((), description="of `names` those of which single passes are timed, no clips")
    pairs: int = Field(20, ge=1, description="timed conditions; from 2 on there are intervals")
    passes: int = Field(3, ge=1, description="single passes of each network timed before every condition")
    encode_first: bool = Field(False, description="encode all conditions and free the encoders before the denoiser is made")
    compiled: bool = Field(False, description="also time networks whose blocks torch.compile made faster")
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["fp32", "bf16"] = "fp32"
    clip: tuple[int, int, int] | None = Field(None, description="frames, height, width; none: the scale's own")
    attention: Literal["auto", "cudnn", "flash", "efficient", "math"] = "auto"
    allow_fallback: bool = False
    threads: int = Field(1, ge=1)


@dataclass(frozen=True)
class Cell:
    """One method or baseline: how its clips are sampled, and by a network of which shape."""

    name: str
    label: str
    kind: str
    changes: str
    sampler: SamplerSettings
    shape: StudentShape


@dataclass(frozen=True)
class Estimate:
    """What a measurement is about to take, and whether it can."""

    seconds: float
    bytes: int
    rate: float  # FLOP/s of a matrix product here
    device: str

    def text(self) -> str:
        return (
            f"about {_duration(self.seconds)} and {self.bytes / 2**30:.3g} GiB on {self.device} "
            f"(a matrix product reaches {self.rate / 1e12:.3g} TFLOP/s here)"
        )


def _duration(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def find_family(settings: LatencySettings) -> tuple[Family, FamilyPreset]:
    """The family and its numbers at the scale asked for. Raises UsageError for unknown ones."""
    family: Family = registry("families").get(settings.model)(settings.checkpoint, settings.revision)
    if settings.scale not in family.scales:
        raise UsageError(
            f"--scale {settings.scale}: family '{settings.model}' has {', '.join(family.scales)}"
            f"{did_you_mean(settings.scale, family.scales)}"
        )
    preset = family.preset(settings.scale)
    kinds = [kind.name for kind in preset.kinds]
    if settings.lose_first is not None and settings.lose_first not in kinds:
        several = f"has {', '.join(kinds)}" if kinds else "has one kind of block, leave it out"
        raise UsageError(f"--lose-first {settings.lose_first}: {settings.model} {settings.scale} {several}")
    return family, replace(preset, loses=settings.lose_first)


def find_cells(settings: LatencySettings, preset: FamilyPreset) -> list[Cell]:
    """What is timed, the reference first. Raises UsageError for what has no network or unknown settings."""
    cells = []
    for name in settings.names:
        if name in registry("methods").names():
            own = settings.method_settings.get(name, {})
            cells.append(_method_cell(name, name, own, preset))
            points = [v for v in settings.variants if v.method == name]
            cells += [_method_cell(v.name, name, merged(own, v.settings), preset) for v in points]
            continue
        cls: Any = registry("baselines").get(name)
        baseline: Baseline = cls(preset)
        sampler = baseline.sampler()
        if sampler is None:
            raise UsageError(f"'{name}' makes its clips without the denoiser: it has no passes to time")
        cells.append(Cell(name, cls.label, cls.kind, cls.changes, sampler, StudentShape.without(preset.blocks)))
    return sorted(cells, key=lambda cell: cell.kind != "reference")


def _method_cell(row: str, name: str, values: dict[str, Any], preset: FamilyPreset) -> Cell:
    cls: Any = registry("methods").get(name)
    method: Method = cls(build_settings(cls.Settings, values, name), preset)
    label = f"{cls.label}{row.removeprefix(name).replace('@', ', ')}"
    return Cell(row, label, cls.kind, cls.changes, method.sampler(), method.shape())


def estimate(settings: LatencySettings, cells: list[Cell], family: Family, clip: tuple[int, int, int]) -> Estimate:
    """From the architecture on the meta device, and from how fast this device multiplies matrices.

    Raises UsageError when the device has less memory, or when a CPU would take more than an hour.
    """
    device, dtype = torch.device(settings.device), DTYPES[settings.dtype]
    model = family.untrained(settings.scale, clip, "meta", dtype)
    model.shares_weights = True
    per_pass = {cell.shape: sum(family.pass_flops(model.shaped(cell.shape)).values()) for cell in cells}
    around = family.around(model)
    whole = [cell for cell in cells if cell.name not in settings.passes_only]
    single = sum(per_pass.values()) * (WARM_PASSES + settings.pairs * settings.passes)
    clips = settings.pairs * sum(cell.sampler.nfe * per_pass[cell.shape] + around.flops for cell in whole)
    modes = 2 if settings.compiled else 1
    rate, (name, room) = devices.matmul_rate(device, dtype), _room(device)
    weights, denoiser = weight_bytes(model, unread=True), tensor_bytes(model.transformer)
    if settings.encode_first:  # what stays beside the denoiser is the decoder
        weights = max(weights - denoiser, denoiser + around.decoder_bytes)
    needed = weights + around.activation_bytes
    found = Estimate(modes * (single + clips) / (REACHED * rate), needed, rate, name)
    if found.bytes > room:
        first = "" if settings.encode_first else "--encode-first, "
        raise UsageError(
            f"--scale {settings.scale} at {size_text(clip)} needs {found.text()}, which has {room / 2**30:.3g} GiB free: "
            f"give {first}smaller --frames, --height, --width, another --scale or a larger device"
        )
    if device.type == "cpu" and found.seconds > HOUR:
        raise UsageError(
            f"--scale {settings.scale} at {size_text(clip)} would take {found.text()}: give --device cuda, or smaller "
            f"--frames, --height, --width or fewer --methods until it is within an hour"
        )
    return found


def builder(settings: LatencySettings, family: Family, clip: tuple[int, int, int]) -> Callable[[], VideoModel]:
    """What makes the model that is timed."""
    if settings.weights == "random":
        return lambda: family.untrained(settings.scale, clip, settings.device, DTYPES[settings.dtype])
    return lambda: family.load(settings.scale, Placement(settings.device, DTYPES[settings.dtype]))


def size_text(clip: tuple[int, int, int]) -> str:
    """A clip's size in words."""
    frames, height, width = clip
    return f"{frames} frames of {height}x{width}"


def _room(device: torch.device) -> tuple[str, float]:
    """The device's name and the bytes that are free on it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device), torch.cuda.mem_get_info(device)[0]
    return environment.processor(), environment.free_memory() - LIBRARIES
