"""Adversarial term on features of a frozen denoiser with a trainable head (FastGen's form of DMD2's GAN; methods.md 3)."""

from __future__ import annotations

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
        self._block = len(model.blocks) * 2 // 3
        width = model.width
        with torch.random.fork_rng(devices=[]):  # the same head whatever this process drew before
            torch.manual_seed(0)
            self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))

    def forward(self, x: torch.Tensor, t: torch.Tensor, condition: Condition) -> torch.Tensor:
        model, tokens = self._model[0], []
        # Removed at once: the model is shared, and a copy of it would carry the hook.
        hook = model.blocks[self._block].register_forward_hook(
            lambda module, inputs, output: tokens.append(model.block_tokens(output))
        )
        try:
            model.velocity(x, t, condition)
        finally:
            hook.remove()
        return self.head(tokens.pop().float()).mean(dim=(1, 2))


def generator_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """softplus(-D(x_g)), non-saturating."""
    return F.softplus(-fake_logits).mean()


def discriminator_loss(fake_logits: torch.Tensor, real_logits: torch.Tensor) -> torch.Tensor:
    """softplus(D(x_g)) + softplus(-D(x_real))."""
    return F.softplus(fake_logits).mean() + F.softplus(-real_logits).mean()
