"""Train the tiny wanx autoencoder: `AutoencoderKLWan`, 17x64x64x3 pixels to 16x5x8x8 latents.

Training goes from single frames to 5-frame windows of 32x32 pixels around an object, then to whole clips: most of what
there is to learn is small, and windows show it four times as often for the same work.
The loss is a mean of squared and absolute errors, weighted towards saturated pixels because the objects are few of them,
plus a small KL term that keeps the latents near a unit Gaussian's smoothness.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan

from flgbench.checkpoint import load_checkpoint, save_checkpoint
from flgbench.data import shapes
from flgbench.models.folded_conv import fold_convolutions
from flgbench.models.tiny import parallel
from flgbench.models.tiny.muon import Muon
from flgbench.training_log import TrainingLog

CONFIG = {
    "base_dim": 12,
    "decoder_base_dim": 12,
    "z_dim": 16,
    "dim_mult": [1, 4, 4],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 8,
}
STEPS = 1900
# (share of the steps, frames, side of the window, clips a batch)
PHASES = ((0.21, 1, 32, 48), (0.579, 5, 32, 12), (0.88, 17, 32, 4), (1.0, 17, 64, 2))
MUON_LR, ADAM_LR, KL_WEIGHT, SEED = 5e-3, 2e-3, 1e-4, 0


def to_model_range(video: torch.Tensor) -> torch.Tensor:
    """(N, T, H, W, 3) uint8 -> (N, 3, T, H, W) float32 in [-1, 1]."""
    return video.permute(0, 4, 1, 2, 3).float().div(127.5).sub(1)


def build() -> AutoencoderKLWan:
    torch.manual_seed(SEED)
    return fold_convolutions(AutoencoderKLWan(latents_mean=[0.0] * 16, latents_std=[1.0] * 16, **CONFIG))


def _batch(frames: int, side: int, clips: int, rng: np.random.Generator) -> torch.Tensor:
    """(clips, 3, frames, side, side) in [-1, 1]; windows lie around the main object or, as often, the second one.

    They start at any time, since the encoder takes any frame as the first, and at multiples of 8 pixels, so that the
    latent grid of a window is that of the whole frame.
    """
    factors = shapes.draw_factors("train", rng.integers(0, 10**9, clips))
    video = shapes.render(factors)
    start = int(rng.integers(0, shapes.FRAMES - frames + 1))
    paths = np.where(rng.random((clips, 1, 1)) < 0.5, shapes.trajectory(factors), shapes.trajectory2(factors))
    corner = (paths[:, start + frames // 2] - side / 2 + rng.uniform(-8, 8, (clips, 2))) / 8
    corner = 8 * np.clip(np.round(corner), 0, (shapes.SIZE - side) // 8).astype(int)
    windows = [v[start : start + frames, y : y + side, x : x + side] for v, (x, y) in zip(video, corner, strict=True)]
    return to_model_range(torch.stack(windows))


def train(folder: Path, steps: int = STEPS, report_every: int = 25) -> AutoencoderKLWan:
    """Train to `steps`, resuming from `folder/vae-checkpoint.safetensors`; appends to `folder/vae-log.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    vae = build()
    kernels = [p for p in vae.parameters() if p.ndim >= 4 and len(p) >= 8 and p.numel() > 1000]
    chosen = {id(p) for p in kernels}
    optimizers = [
        Muon(kernels, MUON_LR),
        torch.optim.AdamW([p for p in vae.parameters() if id(p) not in chosen], lr=ADAM_LR, betas=(0.9, 0.99)),
    ]
    peaks = (MUON_LR, ADAM_LR)
    named = dict(zip(("muon", "adam"), optimizers, strict=True))
    checkpoint, first = folder / "vae-checkpoint.safetensors", 0
    if checkpoint.exists():
        first = int(load_checkpoint(checkpoint, {"vae": vae}, named)[1]["step"])
    log = TrainingLog(folder / "vae-log.jsonl", "autoencoder", steps, active=parallel.rank() == 0)
    for step in range(first, steps):
        rank = parallel.rank()
        rng, generator = np.random.default_rng([SEED, step, rank]), torch.Generator().manual_seed(2 * step + rank)
        progress = step / steps
        _, frames, side, clips = next(p for p in PHASES if progress < p[0])
        clip = _batch(frames, side, max(1, clips // parallel.processes()), rng)
        posterior = vae.encode(clip).latent_dist
        latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)
        error = vae.decode(latents).sample - clip
        saturation = clip.amax(1, keepdim=True) - clip.amin(1, keepdim=True)
        weight = 1 + 2 * saturation
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        loss = (weight * (error**2 + 0.1 * error.abs())).mean() + KL_WEIGHT * kl
        vae.zero_grad()
        loss.backward()
        parallel.average_gradients(vae.parameters())
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        factor = min(1.0, (step + 1) / 50) * (1 - progress)
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * factor
            optimizer.step()
        if (step + 1) % report_every == 0:
            psnr = -10 * math.log10((error.detach() ** 2).mean().item() / 4)
            log.report(step + 1, frames=frames, loss=round(loss.item(), 5), psnr=round(psnr, 2), kl=round(kl.item(), 3))
        if ((step + 1) % 100 == 0 or step + 1 == steps) and rank == 0:
            save_checkpoint(checkpoint, {"vae": vae}, named, {}, {"step": step + 1})
    log.close()
    return vae.requires_grad_(False).eval()
