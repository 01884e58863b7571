"""Train the tiny wanx autoencoder: `AutoencoderKLWan`, 17x64x64x3 pixels to 16x5x8x8 latents.

Clips grow during training (1, then 5, then 17 frames): most of what there is to learn is spatial and short clips are cheap.
The loss is a mean of squared and absolute errors, weighted towards saturated pixels because the objects are few of them,
plus a small KL term that keeps the latents near a unit Gaussian's smoothness.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file, save_file

from flgbench.data import shapes
from flgbench.models.folded_conv import fold_convolutions

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
STEPS = 1500
# (share of the steps, frames, clips a batch)
PHASES = ((0.1, 1, 24), (0.75, 5, 8), (1.0, 17, 3))
PEAK_LR, KL_WEIGHT, SEED = 3e-3, 1e-4, 0


def to_model_range(video: torch.Tensor) -> torch.Tensor:
    """(N, T, H, W, 3) uint8 -> (N, 3, T, H, W) float32 in [-1, 1]."""
    return video.permute(0, 4, 1, 2, 3).float().div(127.5).sub(1)


def build() -> AutoencoderKLWan:
    torch.manual_seed(SEED)
    return fold_convolutions(AutoencoderKLWan(latents_mean=[0.0] * 16, latents_std=[1.0] * 16, **CONFIG))


def _batch(frames: int, clips: int, rng: np.random.Generator) -> torch.Tensor:
    """(clips, 3, frames, 64, 64) in [-1, 1]; windows start anywhere, since the encoder takes any frame as the first."""
    video = shapes.render(shapes.draw_factors("train", rng.integers(0, 10**9, clips)))
    start = int(rng.integers(0, shapes.FRAMES - frames + 1))
    return to_model_range(video[:, start : start + frames])


def train(folder: Path, steps: int = STEPS, report_every: int = 25) -> AutoencoderKLWan:
    """Train to `steps`, resuming from `folder/vae-checkpoint.safetensors`; appends to `folder/vae-log.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    vae = build()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=PEAK_LR, betas=(0.9, 0.99), weight_decay=1e-4)
    checkpoint, first = folder / "vae-checkpoint.safetensors", 0
    if checkpoint.exists():
        vae.load_state_dict(load_file(checkpoint))
        first = json.loads(checkpoint.with_suffix(".json").read_text())["step"]
    began = time.monotonic()
    for step in range(first, steps):
        rng, generator = np.random.default_rng([SEED, step]), torch.Generator().manual_seed(step)
        progress = step / steps
        _, frames, clips = next(p for p in PHASES if progress < p[0])
        clip = _batch(frames, clips, rng)
        posterior = vae.encode(clip).latent_dist
        latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)
        error = vae.decode(latents).sample - clip
        saturation = clip.amax(1, keepdim=True) - clip.amin(1, keepdim=True)
        weight = 1 + 3 * saturation
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        loss = (weight * (error**2 + 0.1 * error.abs())).mean() + KL_WEIGHT * kl
        for group in optimizer.param_groups:
            # Adam's moments are not kept over a restart, so every start warms up.
            warmup = min(1.0, (step - first + 1) / 50)
            group["lr"] = PEAK_LR * warmup * (0.5 + 0.5 * math.cos(math.pi * progress)) + 1e-5
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % report_every == 0:
            line = {
                "step": step + 1,
                "seconds": round(time.monotonic() - began, 1),
                "frames": frames,
                "loss": round(loss.item(), 5),
                "psnr": round(-10 * math.log10((error.detach() ** 2).mean().item() / 4), 2),
                "kl": round(kl.item(), 3),
            }
            with (folder / "vae-log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
        if (step + 1) % 100 == 0 or step + 1 == steps:
            save_checkpoint(vae, checkpoint, step + 1)
    return vae.requires_grad_(False).eval()


def save_checkpoint(vae: AutoencoderKLWan, path: Path, step: int) -> None:
    partial = path.with_suffix(".partial")
    save_file({k: v.detach().contiguous() for k, v in vae.state_dict().items()}, partial)
    partial.replace(path)
    path.with_suffix(".json").write_text(json.dumps({"step": step}))
