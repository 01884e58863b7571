"""Samplers as pure functions of a velocity, and the wrapper that counts network passes (NFE)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from pydantic import Field, model_validator

from flgbench import flow
from flgbench.models.base import Condition, VideoModel
from flgbench.settings import Settings

if TYPE_CHECKING:
    from flgbench.models.cache import FirstBlockCache

Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Noise = Callable[[int], torch.Tensor]  # number of the step -> fresh noise of x's shape

# A pass of a tiny network is mostly the starting of kernels; a large one's activations fill a GPU.
CLIPS_AT_ONCE = {"cpu": 24, "cuda": 4}
DECODED_AT_ONCE = 4  # of more the activations leave a CPU's caches


def euler(velocity: Velocity, x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    """First-order solver of dx/dt = v along decreasing `times` (steps + 1,), as FlowMatchEulerDiscreteScheduler."""
    for t, s in zip(times[:-1], times[1:], strict=True):
        x = x + (s - t) * velocity(x, t)
    return x


def renoise(velocity: Velocity, x: torch.Tensor, times: torch.Tensor, noise: Noise) -> torch.Tensor:
    """Few-step sampler of DMD2 and LCM: estimate x0, renoise to the next time, repeat (DMD2 §4.4; LCM Algorithm 1)."""
    for i, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
        x0 = flow.clean_estimate(x, t, velocity(x, t))
        x = flow.interpolate(x0, noise(i), s) if s > 0 else x0
    return x


def unipc(velocity: Velocity, x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    """UniPC of order 2 (arXiv 2302.04867) by diffusers, along decreasing `times` (steps + 1,) from 1 to 0.

    One evaluation a step: the corrector reuses the next step's. `times` are shifted already, so flow_shift stays 1.
    """
    from diffusers import UniPCMultistepScheduler  # slow to import, and only this sampler needs it

    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    scheduler.set_timesteps(sigmas=times[:-1].double().numpy())
    scheduler.set_begin_index(0)
    # The scheduler's timesteps are rounded to thousandths; its sigmas are the times it computes with.
    for t, timestep in zip(scheduler.sigmas[:-1], scheduler.timesteps, strict=True):
        x = scheduler.step(velocity(x, t), timestep, x, return_dict=False)[0]
    return x


class SamplerSettings(Settings):
    """How a student or a teacher is sampled.

    `guidance_scale` is that of classifier-free guidance: 1 means none and one pass a step. A guidance-distilled network
    can have `embedded_guidance` instead, or both, whose scales multiply.
    """

    kind: Literal["euler", "renoise", "unipc"] = "euler"
    num_inference_steps: int = Field(50, ge=1, le=1000)
    guidance_scale: float = Field(1.0, ge=1.0)
    shift: float = Field(3.0, gt=0)
    embedded_guidance: float | None = Field(
        None, ge=1, description="scale that a guidance-distilled network is told, at no further pass; none: it is told 1"
    )
    cache_threshold: float | None = Field(
        None, ge=0, description="relative change of the first block's residual below which a pass is cached; none: no cache"
    )
    times: tuple[float, ...] | None = Field(
        None, description="descending times in (0, 1] of the steps, in place of even ones shifted by `shift`; they end at 0"
    )

    @model_validator(mode="after")
    def _times_descend(self) -> Self:
        if self.times is None:
            return self
        if len(self.times) != self.num_inference_steps:
            raise ValueError(f"{len(self.times)} times for {self.num_inference_steps} steps")
        if any(a <= b for a, b in zip((float("inf"), *self.times), (*self.times, 0.0), strict=True)) or self.times[0] > 1:
            raise ValueError(f"times must descend within (0, 1], their end at 0 is understood, got {list(self.times)}")
        return self

    @property
    def nfe(self) -> int:
        """Network passes a clip; CFG counts two."""
        return self.num_inference_steps * (2 if self.guidance_scale != 1 else 1)

    def schedule(self) -> torch.Tensor:
        """(steps + 1,) times from 1, or the first of `times`, to 0."""
        if self.times is not None:
            return torch.tensor([*self.times, 0.0])
        return flow.euler_times(self.num_inference_steps, self.shift)

    def record(self) -> dict[str, Any]:
        """What keys and reports have of it. What is not used is left out, so that a new option changes no old key."""
        return self.model_dump(mode="json", exclude_none=True, exclude={"shift"} if self.times is not None else None)


def solve(velocity: Velocity, noise: Noise, settings: SamplerSettings) -> torch.Tensor:
    """The latents that `settings` lead to; `noise(0)` is where they start, `noise(i + 1)` the renoising after step i."""
    x, times = noise(0), settings.schedule()
    with torch.inference_mode():
        if settings.kind == "renoise":
            return renoise(velocity, x, times, lambda i: noise(i + 1))
        return {"euler": euler, "unipc": unipc}[settings.kind](velocity, x, times)


class GuidedVelocity:
    """A model with its condition as a function of (x, t); counts passes in `nfe`.

    `batched` computes both guidance branches in one pass of twice the batch: the same result, but small models gain.
    `branch` is entered around every pass with its name ('cond', 'uncond' or 'both'), for caches that keep them apart.
    """

    def __init__(
        self,
        model: VideoModel,
        condition: Condition,
        guidance_scale: float = 1.0,
        batched: bool = False,
        branch: Callable[[str], AbstractContextManager] = nullcontext,
    ) -> None:
        self.model, self.condition = model, condition
        self.guidance_scale, self.batched, self.branch = guidance_scale, batched, branch
        self.unconditional = condition.unconditional()
        self.both = Condition.concatenate([condition, self.unconditional]) if batched else None
        self.nfe = 0

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if self.guidance_scale == 1:
            self.nfe += 1
            return self._pass("cond", x, t.expand(len(x)), self.condition)
        return flow.guide(*self.branches(x, t), self.guidance_scale)

    def branches(self, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The velocities that guidance is made of, v(c) and v(c0)."""
        times = t.expand(len(x))
        self.nfe += 2
        if self.both is not None:
            v, v0 = self._pass("both", torch.cat([x, x]), times.repeat(2), self.both).chunk(2)
            return v, v0
        return self._pass("cond", x, times, self.condition), self._pass("uncond", x, times, self.unconditional)

    def _pass(self, branch: str, x: torch.Tensor, times: torch.Tensor, condition: Condition) -> torch.Tensor:
        with self.branch(branch):
            return self.model.velocity(x, times, condition)


def guided_training(model: VideoModel, condition: Condition, guidance_scale: float = 1.0) -> GuidedVelocity:
    """That of the few clips of a training's batch, which has times (B,): batched on a CPU, where a pass of a small network
    is mostly the starting of kernels; in two passes on a GPU, which need half the room."""
    return GuidedVelocity(model, condition, guidance_scale, batched=model.device.type == "cpu")


def asked(condition: Condition, settings: SamplerSettings) -> Condition:
    """The condition with the scale that `settings` have a guidance-distilled network told."""
    return condition if settings.embedded_guidance is None else condition.guided(settings.embedded_guidance)


def clip_noise(condition: int, sample: int, draw: int, shape: Sequence[int]) -> torch.Tensor:
    """Standard normal noise of one clip: the same for every method, whatever the batch it is computed in.

    `draw` 0 is the starting noise, draw i + 1 the renoising after step i.
    """
    seed = ((condition * 1009 + sample) * 101 + draw) * 7919 + 17
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))


def generate(
    model: VideoModel,
    condition: Condition,
    identities: Sequence[tuple[int, int]],
    settings: SamplerSettings,
    batched_cfg: bool = False,
    cache: FirstBlockCache | None = None,
) -> tuple[torch.Tensor, int]:
    """Latents (B, C, T, H, W) for clips (condition, sample) in `identities`, and the passes each took.

    `cache` is what `build_cache(model, settings)` gave, to spare building it again and to read its count.
    """
    cache = cache or build_cache(model, settings)
    if cache is None:
        return _denoise(model, condition, identities, settings, batched_cfg)
    made, nfe = [], 0
    for i, identity in enumerate(identities):  # one by one: the cache would decide for a whole batch at once
        cache.reset()
        alone = condition.select(slice(i, i + 1))
        latents, nfe = _denoise(cache.model, alone, [identity], settings, batched_cfg, cache.branch)
        made.append(latents)
    return torch.cat(made), nfe


def build_cache(model: VideoModel, settings: SamplerSettings) -> FirstBlockCache | None:
    """The cache that `settings` ask for, around a copy of `model`."""
    if settings.cache_threshold is None:
        return None
    from flgbench.models.cache import FirstBlockCache  # imports diffusers

    return FirstBlockCache(model, settings.cache_threshold)


def _denoise(
    model: VideoModel,
    condition: Condition,
    identities: Sequence[tuple[int, int]],
    settings: SamplerSettings,
    batched_cfg: bool,
    branch: Callable[[str], AbstractContextManager] = nullcontext,
) -> tuple[torch.Tensor, int]:
    def noise(draw: int) -> torch.Tensor:
        # Drawn on the CPU, where it does not depend on the device.
        return torch.stack([clip_noise(c, s, draw, model.latent_shape) for c, s in identities]).to(model.device)

    velocity = GuidedVelocity(model, asked(condition, settings), settings.guidance_scale, batched_cfg, branch)
    return solve(velocity, noise, settings), velocity.nfe
