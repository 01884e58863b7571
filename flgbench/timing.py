"""Timing clips and network passes: synchronised and warm (evaluation.md 4.3).

Of a clip, text and image encoding, denoising and decoding to uint8 are timed apart, each with the device synchronised on
both sides. Batch 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from flgbench.models.base import Condition, VideoModel
from flgbench.models.cache import FirstBlockCache
from flgbench.models.parts import Part, tensor_bytes
from flgbench.sampling import SamplerSettings, generate

WARM_SECONDS = 1.0
STAGES = ("text_s", "denoise_s", "decode_s", "end_to_end_s")


def now() -> float:
    """Seconds, after everything queued on a device has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def warm_up(once: Callable[[], float], most: int = 10, seconds: float = WARM_SECONDS) -> dict[str, Any]:
    """Repeat until the last three times agree within 2 %; returns the runs made and whether they agreed.

    `once` returns the seconds it took. `most` runs, and none more once they have taken `seconds`.
    """
    taken: list[float] = []
    while True:
        taken.append(once())
        last = taken[-3:]
        settled = len(last) == 3 and max(last) <= 1.02 * min(last)
        if settled or len(taken) == most or sum(taken) > seconds:
            return {"runs": len(taken), "settled": settled}


@dataclass(frozen=True)
class Told:
    """A clip's condition, and the seconds of its text and image encoding."""

    condition: Condition
    seconds: float


def time_clip(
    model: VideoModel,
    sampler: SamplerSettings,
    image: torch.Tensor,
    caption: list[str],
    condition: int,
    batched_cfg: bool = False,
    cache: FirstBlockCache | None = None,
    inputs: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, float]:
    """Seconds of each stage for one clip; reading its `inputs` (see `VideoModel.with_inputs`) counts as text."""
    return time_told(model, sampler, time_encoding(model, image, caption, inputs), condition, batched_cfg, cache)


@torch.inference_mode()
def time_encoding(
    model: VideoModel, image: torch.Tensor, caption: list[str], inputs: Mapping[str, torch.Tensor] | None = None
) -> Told:
    """One clip's condition and the seconds it took."""
    began = now()
    condition = model.with_inputs(model.condition(image, caption), inputs or {})
    return Told(condition, now() - began)


@torch.inference_mode()
def time_told(
    model: VideoModel,
    sampler: SamplerSettings,
    told: Told,
    condition: int,
    batched_cfg: bool = False,
    cache: FirstBlockCache | None = None,
) -> dict[str, float]:
    """As `time_clip`, of a clip that was `told` to the model before."""
    marks = [now()]
    latents, _ = generate(model, told.condition, [(condition, 0)], sampler, batched_cfg, cache)
    marks.append(now())
    model.decode(latents)
    marks.append(now())
    denoise, decode = (b - a for a, b in zip(marks[:-1], marks[1:], strict=True))
    return dict(zip(STAGES, (told.seconds, denoise, decode, told.seconds + denoise + decode), strict=True))


def weight_bytes(model: VideoModel, unread: bool = False) -> int:
    """Bytes of the weights of all parts of a model, each once: denoiser, autoencoder, encoders.

    A part that is read when it is first needed counts once it is; with `unread` it is read now.
    """
    held = [(part.get() if unread else part.loaded) if isinstance(part, Part) else part for part in model.held()]
    return tensor_bytes(*(part for part in held if isinstance(part, nn.Module)))


class DeviceMemory:
    """While open, what a CUDA device allocates beyond what was there; `growth` and `reserved` in bytes, None on a CPU.

    `growth` is the peak of live tensors, `reserved` the peak of what torch's allocator holds, other models included.
    """

    growth: int | None = None
    reserved: int | None = None

    def __enter__(self) -> DeviceMemory:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        return self

    def __exit__(self, *error: object) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            self.growth = torch.cuda.max_memory_allocated() - self.before
            self.reserved = torch.cuda.max_memory_reserved()
