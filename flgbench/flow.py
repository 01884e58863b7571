"""Flow-matching mathematics, pure functions (methods.md, notation).

Path x_t = (1 - t) x0 + t eps with t = 1 noise, velocity v = eps - x0. Times are scalars or (B,) tensors in [0, 1].
"""

from __future__ import annotations

import torch


def per_clip(t: torch.Tensor | float, x: torch.Tensor) -> torch.Tensor:
    """Reshape times (B,) so that they broadcast over the non-batch dimensions of x."""
    t = torch.as_tensor(t, dtype=x.dtype, device=x.device)
    return t.view(-1, *[1] * (x.ndim - 1)) if t.ndim else t


def interpolate(x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor | float) -> torch.Tensor:
    """A point of the path: (1 - t) x0 + t noise."""
    t = per_clip(t, x0)
    return (1 - t) * x0 + t * noise


def velocity_target(x0: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """What a flow-matching model regresses: eps - x0."""
    return noise - x0


def clean_estimate(x: torch.Tensor, t: torch.Tensor | float, velocity: torch.Tensor) -> torch.Tensor:
    """Tweedie estimate X0(x_t, t; v) = x_t - t v, in fp32 because the difference cancels near t = 1."""
    x = x.float()
    return x - per_clip(t, x) * velocity.float()


def guide(velocity: torch.Tensor, unconditional: torch.Tensor, guidance_scale: float | torch.Tensor) -> torch.Tensor:
    """Classifier-free guidance, standard w: v(c0) + w (v(c) - v(c0)); w = 1 leaves v(c)."""
    return unconditional + per_clip(guidance_scale, velocity) * (velocity - unconditional)


def shift(u: torch.Tensor, amount: float) -> torch.Tensor:
    """Timestep shift t = s u / (1 + (s - 1) u): s > 1 spends more of the steps near noise."""
    return amount * u / (1 + (amount - 1) * u)


def unshift(t: torch.Tensor, amount: float) -> torch.Tensor:
    """Inverse of `shift`."""
    return t / (amount - (amount - 1) * t)


def euler_times(num_inference_steps: int, amount: float) -> torch.Tensor:
    """(steps + 1,) decreasing times from 1 to exactly 0, uniform in u before the shift."""
    return shift(torch.linspace(1, 0, num_inference_steps + 1), amount)


def elbo_weight(t: torch.Tensor) -> torch.Tensor:
    """Weight on the *velocity* error that makes uniform t an ELBO on this path: (1 - t) / t (methods.md 2.1)."""
    return (1 - t) / t
