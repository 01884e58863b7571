"""A small discriminator of noised latent videos with a spatial and a temporal head, and its hinge losses (methods.md 6)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm


class VideoDiscriminator(nn.Module):
    """Logits of 'the teacher made it' for latents (B, C, T, H, W) at noise level t' (B,).

    A convolution trunk sees each frame alone. The spatial head judges its frames, the temporal head convolves the
    trunk's features along time, place by place: motion is judged where it happens.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.level = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))
        self.enter = nn.Conv2d(channels, width, 3, padding=1)
        self.trunk = nn.Sequential(nn.SiLU(), nn.Conv2d(width, width, 3, stride=2, padding=1), nn.SiLU())
        self.spatial = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, 1, 1))
        self.temporal = nn.Sequential(nn.Conv1d(width, width, 3, padding=1), nn.SiLU(), nn.Conv1d(width, 1, 1))
        # The usual partner of the hinge: without a bound on its slope the discriminator's gradient drowns all others.
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
                spectral_norm(module)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """(B, 2 T): one logit a frame from each head, spatial ones first, averaged over places."""
        clips, frames = len(x), x.shape[2]
        level = self.level(t[:, None]).repeat_interleave(frames, dim=0)[..., None, None]
        features = self.trunk(self.enter(x.transpose(1, 2).flatten(0, 1)) + level)  # (B T, width, H', W')
        spatial = self.spatial(features).mean(dim=(1, 2, 3)).view(clips, frames)
        along_time = features.unflatten(0, (clips, frames)).permute(0, 3, 4, 2, 1).flatten(0, 2)  # (B H' W', width, T)
        temporal = self.temporal(along_time).view(clips, -1, frames).mean(dim=1)
        return torch.cat([spatial, temporal], dim=1)


def hinge_discriminator_loss(fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """max(0, 1 + D(student)) + max(0, 1 - D(teacher)), a mean over logits."""
    return F.relu(1 + fake).mean() + F.relu(1 - real).mean()


def hinge_generator_loss(fake: torch.Tensor) -> torch.Tensor:
    """-D(student): the partner of the hinge (INFERRED; a note on the paper shows -log D, which needs no hinge)."""
    return -fake.mean()
