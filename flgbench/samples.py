"""Clips of a student in training, decoded beside its log: what a loss curve does not show."""

from __future__ import annotations

from pathlib import Path

import torch

from flgbench import distributed
from flgbench.models.base import VideoModel
from flgbench.video import write_mp4

FPS = 8


def write_sample(model: VideoModel, latents: torch.Tensor, folder: Path, iteration: int) -> None:
    """The first clip of `latents` (B, C, T, H, W) as `folder/iteration-N.mp4`, by the first process."""
    if distributed.rank() > 0:
        return
    folder.mkdir(parents=True, exist_ok=True)
    video = model.decode(torch.nan_to_num(latents[:1].float()))[0]
    write_mp4(folder / f"iteration-{iteration:06d}.mp4", video.cpu().numpy(), FPS)
