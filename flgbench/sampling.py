"""Samplers as pure functions of a velocity, and the wrapper that counts network passes (NFE)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from pydantic import Field

from flgbench import flow
from flgbench.models.base import Condition, VideoModel
from flgbench.settings import Settings

Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Noise = Callable[[int], torch.Tensor]  # number of the step -> fresh noise of x's shape


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


class SamplerSettings(Settings):
    """How a student or a teacher is sampled. `guidance_scale` 1 means no guidance and one pass a step."""

    kind: Literal["euler", "renoise"] = "euler"
    num_inference_steps: int = Field(50, ge=1, le=1000)
    guidance_scale: float = Field(1.0, ge=1.0)
    shift: float = Field(3.0, gt=0)

    @property
    def nfe(self) -> int:
        """Network passes a clip; CFG counts two."""
        return self.num_inference_steps * (2 if self.guidance_scale != 1 else 1)

    def schedule(self) -> torch.Tensor:
        """(steps + 1,) times from 1 to 0."""
        return flow.euler_times(self.num_inference_steps, self.shift)


class GuidedVelocity:
    """A model with its condition as a function of (x, t); counts passes in `nfe`.

    `batched` computes both guidance branches in one pass of twice the batch: the same result, but small models gain.
    """

    def __init__(self, model: VideoModel, condition: Condition, guidance_scale: float = 1.0, batched: bool = False) -> None:
        self.model, self.condition = model, condition
        self.guidance_scale, self.batched = guidance_scale, batched
        self.unconditional = condition.unconditional()
        self.both = Condition.concatenate([condition, self.unconditional]) if batched else None
        self.nfe = 0

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        times = t.expand(len(x))
        if self.guidance_scale == 1:
            self.nfe += 1
            return self.model.velocity(x, times, self.condition)
        self.nfe += 2
        if self.both is not None:
            v, v0 = self.model.velocity(torch.cat([x, x]), times.repeat(2), self.both).chunk(2)
        else:
            v = self.model.velocity(x, times, self.condition)
            v0 = self.model.velocity(x, times, self.unconditional)
        return flow.guide(v, v0, self.guidance_scale)


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
) -> tuple[torch.Tensor, int]:
    """Latents (B, C, T, H, W) for clips (condition, sample) in `identities`, and the passes each took."""

    def noise(draw: int) -> torch.Tensor:
        return torch.stack([clip_noise(c, s, draw, model.latent_shape) for c, s in identities])

    velocity = GuidedVelocity(model, condition, settings.guidance_scale, batched_cfg)
    x, times = noise(0), settings.schedule()
    with torch.inference_mode():
        if settings.kind == "euler":
            latents = euler(velocity, x, times)
        else:
            latents = renoise(velocity, x, times, lambda i: noise(i + 1))
    return latents, velocity.nfe
