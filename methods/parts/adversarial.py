"""Adversarial term on features of a frozen denoiser with a trainable head (FastGen's form of DMD2's GAN; methods.md 3)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from flgbench.models.base import Condition, VideoModel


class FeatureDiscriminator(nn.Module):
    """Logits (B,) of 'real' for noised latents, from the frozen model's tokens after its block at two thirds of the depth.

    The features are differentiable in the latents; only the head is trained.
    """

    def __init__(self, model: VideoModel) -> None:
        super().__init__()
        self._model = [model]  # in a list: the frozen denoiser is no sub-module of the head
        block = len(model.blocks) * 2 // 3
        self._tokens: list[torch.Tensor] = []
        model.blocks[block].register_forward_hook(lambda module, inputs, output: self._keep(output))
        self._listening = False
        watched: Any = model.blocks[block]
        width = int(watched.norm1.normalized_shape[0])
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))

    def _keep(self, tokens: torch.Tensor) -> None:
        if self._listening:
            self._tokens.append(tokens)

    def forward(self, x: torch.Tensor, t: torch.Tensor, condition: Condition) -> torch.Tensor:
        self._listening = True
        try:
            self._model[0].velocity(x, t, condition)
            return self.head(self._tokens.pop()).mean(dim=(1, 2))
        finally:
            self._listening = False
            self._tokens.clear()


def generator_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """softplus(-D(x_g)), non-saturating."""
    return F.softplus(-fake_logits).mean()


def discriminator_loss(fake_logits: torch.Tensor, real_logits: torch.Tensor) -> torch.Tensor:
    """softplus(D(x_g)) + softplus(-D(x_real))."""
    return F.softplus(fake_logits).mean() + F.softplus(-real_logits).mean()
