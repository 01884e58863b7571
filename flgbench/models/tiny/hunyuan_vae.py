"""Train the tiny hunyuan autoencoder: `AutoencoderKLHunyuanVideo`, 17x64x64x3 pixels to 16x5x8x8 latents.

Its latent space is that of tiny wanx: the encoder regresses wanx's latents of the same clips, the decoder learns to see
through them. So both halves learn at once, each from a known partner, and the denoiser need not wait for either.
The decoder's loss is that of wanx's autoencoder: squared and absolute errors, weighted towards saturated pixels because
the objects are few of them. It sees 32x32 windows first, then whole frames, whose statistics the group norms take.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLHunyuanVideo

from flgbench.checkpoint import load_checkpoint, save_checkpoint
from flgbench.data import shapes
from flgbench.models.hunyuan_vae import fold_convolutions
from flgbench.models.tiny.muon import Muon
from flgbench.models.tiny.wanx_vae import to_model_range
from flgbench.training_log import TrainingLog

CONFIG = {
    "block_out_channels": (8, 16, 32, 64),
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "latent_channels": 16,
    "scaling_factor": 1.0,  # wanx's latents are normalised channel by channel
    "mid_block_add_attention": False,
}
STEPS = 3000
# (share of the steps, side of the decoder's window, clips a batch)
PHASES = ((0.6, 32, 6), (1.0, 64, 2))
MUON_LR, ADAM_LR, SEED = 5e-3, 2e-3, 0
ENCODER_CLIPS = 2


def build() -> AutoencoderKLHunyuanVideo:
    torch.manual_seed(SEED)
    return fold_convolutions(AutoencoderKLHunyuanVideo(**CONFIG))


def _windows(
    video: torch.Tensor, latents: torch.Tensor, factors: shapes.Factors, side: int, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows of `side` pixels around the main object or, as often, the second one, and the latents behind them."""
    if side == shapes.SIZE:
        return to_model_range(video), latents
    frame = int(rng.integers(0, shapes.FRAMES))
    paths = np.where(rng.random((len(video), 1, 1)) < 0.5, shapes.trajectory(factors), shapes.trajectory2(factors))
    corner = (paths[:, frame] - side / 2 + rng.uniform(-8, 8, (len(video), 2))) / 8
    corner = np.clip(np.round(corner), 0, (shapes.SIZE - side) // 8).astype(int)
    n = side // 8
    pixels = [v[:, 8 * y : 8 * y + side, 8 * x : 8 * x + side] for v, (x, y) in zip(video, corner, strict=True)]
    cells = [z[..., y : y + n, x : x + n] for z, (x, y) in zip(latents, corner, strict=True)]
    return to_model_range(torch.stack(pixels)), torch.stack(cells)


def _decoder_loss(error: torch.Tensor, clip: torch.Tensor) -> torch.Tensor:
    saturation = clip.amax(1, keepdim=True) - clip.amin(1, keepdim=True)
    return ((1 + 2 * saturation) * (error**2 + 0.1 * error.abs())).mean()


def train(
    latents: torch.Tensor,
    folder: Path,
    steps: int = STEPS,
    report_every: int = 25,
) -> AutoencoderKLHunyuanVideo:
    """Train to `steps`, resuming from `folder/vae-checkpoint.safetensors`; appends to `folder/vae-log.jsonl`.

    `latents` (N, 16, 5, 8, 8) are wanx's of the first N training clips; `start`: weights to begin with instead of random.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vae = build()
    kernels = [p for p in vae.parameters() if p.ndim >= 4 and len(p) >= 8 and p.numel() > 1000]
    chosen = {id(p) for p in kernels}
    optimizers = [
        Muon(kernels, MUON_LR),
        torch.optim.AdamW([p for p in vae.parameters() if id(p) not in chosen], lr=ADAM_LR, betas=(0.9, 0.99)),
    ]
    named = dict(zip(("muon", "adam"), optimizers, strict=True))
    checkpoint, first = folder / "vae-checkpoint.safetensors", 0
    if checkpoint.exists():
        first = int(load_checkpoint(checkpoint, {"vae": vae}, named)[1]["step"])
    log = TrainingLog(folder / "vae-log.jsonl", "autoencoder", steps)
    for step in range(first, steps):
        rng, progress = np.random.default_rng([SEED, step]), step / steps
        _, side, clips = next(p for p in PHASES if progress < p[0])
        index = rng.integers(0, len(latents), clips)
        factors = shapes.draw_factors("train", index)
        video, known = shapes.render(factors), latents[torch.as_tensor(index)].float()
        clip, cells = _windows(video, known, factors, side, rng)
        error = vae.decoder(vae.post_quant_conv(cells)) - clip
        pixels, target = to_model_range(video[:ENCODER_CLIPS]), known[:ENCODER_CLIPS]
        found = [vae.quant_conv(vae.encoder(p)).chunk(2, dim=1)[0] for p in (pixels, pixels[:, :, :1])]
        missed = torch.stack([(found[0] - target).pow(2).mean(), (found[1] - target[:, :, :1]).pow(2).mean()])
        loss = _decoder_loss(error, clip) + missed.sum()
        vae.zero_grad()
        loss.backward()
        for half in (vae.encoder, vae.decoder):
            torch.nn.utils.clip_grad_norm_(half.parameters(), 1.0)
        factor = min(1.0, (step + 1) / 50) * (1 - progress)
        for optimizer, peak in zip(optimizers, (MUON_LR, ADAM_LR), strict=True):
            optimizer.param_groups[0]["lr"] = peak * factor
            optimizer.step()
        if (step + 1) % report_every == 0:
            psnr = -10 * math.log10((error.detach() ** 2).mean().item() / 4)
            parts = [round(x, 5) for x in missed.tolist()]
            log.report(step + 1, side=side, loss=round(loss.item(), 5), psnr=round(psnr, 2), encoder=parts)
        if (step + 1) % 50 == 0 or step + 1 == steps:
            save_checkpoint(checkpoint, {"vae": vae}, named, {}, {"step": step + 1})
    log.close()
    return vae.requires_grad_(False).eval()
