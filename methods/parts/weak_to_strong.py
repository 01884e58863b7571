"""Weak-to-strong video distillation (W2SVD): one LoRA makes both scores (MagicDistillation, arXiv 2503.13319; methods.md 5).

W_fake = W + strong BA, W_real = W + weak BA with weak < strong: the real score leans a little toward the student's samples,
so the two distributions overlap where plain distribution matching compares what has nothing in common.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from flgbench.models.base import Condition, VideoModel
from flgbench.sampling import guided_training
from flgbench.stage import Batch, Footprint
from methods.parts.distribution_matching import CommonMatchSettings, DistributionMatching, matching_gradient
from methods.parts.lora import lora_share, set_lora_scale, with_lora


class WeakToStrongSettings(CommonMatchSettings):
    """Distribution matching between the two scales of one LoRA."""

    rank: int = Field(16, ge=1, description="INFERRED at this width, an eighth of it; DMD2_wanx uses 128")
    weak: float = Field(0.25, ge=0, description="scale of the LoRA in the real score; best of the paper's sweep")
    strong: float = Field(1.0, gt=0, description="INFERRED: scale of the LoRA in the fake score")
    guidance_scale: float = Field(
        3.5, ge=1, description="INFERRED: guidance of the real score, standard w; the method takes the teacher's unless set"
    )
    fake_lr: float = Field(
        1e-3, gt=0, description="INFERRED at this scale: of the LoRA, 20 times the student's, the ratio of DMD2_wanx"
    )
    backward_simulation: bool = Field(False, description="the paper's figure: the student starts from noised real clips")
    regularization: float = Field(
        0.0, ge=0, description="INFERRED: weight of the pull to real clips; in the paper it costs nearly all motion"
    )
    gan_weight: float = Field(0.03, ge=0, description="INFERRED: the paper's was not found; FastGen's DMD2 uses 0.03")

    @model_validator(mode="after")
    def _weak_below_strong(self) -> Self:
        if self.weak >= self.strong:
            raise ValueError(f"weak {self.weak} must be below strong {self.strong}")
        return self


class WeakToStrong(DistributionMatching):
    """Distribution matching with the fake score W + strong BA and the real score W + weak BA; weak = 0 is DMD2 with a LoRA.

    The LoRA learns in the critic's turn only, through W_fake; every pass first sets the scale that it needs. It is discarded
    with the critic: the student has weights of its own. A pass with a backward counts as three though the frozen weights
    need no gradient: the adapter's own products (a fifth of the layers' at the tiny scale) make up for most of it.
    """

    Settings = WeakToStrongSettings

    def make_fake(self) -> VideoModel:
        return with_lora(self.real, self.settings.rank)

    def frozen(self) -> dict[str, nn.Module]:
        return {"real": self.real.transformer} if self.discriminator else {}

    @classmethod
    def footprint(cls, settings: Any, kept: float) -> Footprint:
        real = 2.0 if settings.guidance_scale != 1 else 1.0
        told = cls._footprint(settings, kept, real)
        # The fake's frozen weights make both scores; another copy serves the discriminator only.
        frozen = 2.0 if settings.gan_weight > 0 else 1.0
        return replace(told, frozen=frozen, trained=told.trained - 1, adapter_rank=settings.rank)

    def train_step(self, batch: Batch, iteration: int) -> dict[str, torch.Tensor]:
        losses = super().train_step(batch, iteration)
        # The one backward through the LoRA is the fake score's: activations computed again have to be of that network.
        set_lora_scale(self.adapters, self.settings.strong)
        return losses

    def fake_velocity(self, x: torch.Tensor, t: torch.Tensor, condition: Condition) -> torch.Tensor:
        set_lora_scale(self.adapters, self.settings.strong)
        return self.fake.velocity(x, t, condition)

    def real_velocity(self, x: torch.Tensor, t: torch.Tensor, condition: Condition, batch: Batch) -> torch.Tensor:
        """Guided W_real: guidance is of this score only."""
        set_lora_scale(self.adapters, self.settings.weak)
        return guided_training(self.fake, condition, self.settings.guidance_scale)(x, t)

    def gradient(self, clean: torch.Tensor, fake: torch.Tensor, real: torch.Tensor, batch: Batch) -> torch.Tensor:
        """g + regularization g_reg; g_reg puts the real clip in the place of the real score's estimate (form INFERRED)."""
        gradient = matching_gradient(clean, fake, real)
        if self.settings.regularization > 0:
            gradient = gradient + self.settings.regularization * matching_gradient(clean, fake, batch.latents)
        return gradient

    def _student_losses(self, clean: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        losses = super()._student_losses(clean, batch)
        return losses | {"weak_share": lora_share(self.adapters, self.settings.weak)}
