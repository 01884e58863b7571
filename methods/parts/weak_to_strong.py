"""Weak-to-strong video distillation (W2SVD): one LoRA makes both scores (MagicDistillation, arXiv 2503.13319; methods.md 5).

W_fake = W + strong BA, W_real = W + weak BA with weak < strong: the real score leans a little toward the student's samples,
so the two distributions overlap where plain distribution matching compares what has nothing in common.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from flgbench.models.base import Condition, VideoModel
from flgbench.sampling import GuidedVelocity
from flgbench.stage import Batch
from methods.parts.distribution_matching import CommonMatchSettings, DistributionMatching, matching_gradient

ADAPTER = "default"


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


def with_lora(model: VideoModel, rank: int) -> VideoModel:
    """A frozen copy of the model with a trainable LoRA on every linear layer of its blocks; BA = 0 at first."""
    # Here and not above: importing it takes seconds, and planning a run reads this module.
    from peft import LoraConfig, inject_adapter_in_model

    copy = model.copy().requires_grad_(False)
    inside = {id(layer) for layer in copy.blocks.modules()}
    linear = [n for n, m in copy.transformer.named_modules() if isinstance(m, nn.Linear) and id(m) in inside]
    with torch.random.fork_rng(devices=[]):  # the same A whatever this process drew before
        torch.manual_seed(0)
        # alpha = rank: the adapter's own scale is 1, so that `set_lora_scale` is the factor of BA.
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=linear)
        copy.transformer = inject_adapter_in_model(config, copy.transformer, ADAPTER)
    return copy


def lora_layers(model: VideoModel) -> list[Any]:
    """The adapted layers of a model from `with_lora`."""
    from peft.tuners.lora import LoraLayer

    return [layer for layer in model.blocks.modules() if isinstance(layer, LoraLayer)]


def set_lora_scale(model: VideoModel, scale: float) -> None:
    """W + scale BA from now on. A graph that was built before keeps the scale of its own forward pass."""
    for layer in lora_layers(model):
        layer.set_scale(ADAPTER, scale)


@torch.no_grad()
def lora_share(model: VideoModel, scale: float) -> torch.Tensor:
    """|scale BA| / |W|, Frobenius norms over all adapted layers together: how far the weights are from the teacher's."""
    set_lora_scale(model, scale)
    layers = lora_layers(model)
    change = torch.stack([layer.get_delta_weight(ADAPTER).pow(2).sum() for layer in layers]).sum()
    weight = torch.stack([layer.get_base_layer().weight.pow(2).sum() for layer in layers]).sum()
    return (change / weight).sqrt()


class WeakToStrong(DistributionMatching):
    """Distribution matching with the fake score W + strong BA and the real score W + weak BA; weak = 0 is DMD2 with a LoRA.

    The LoRA learns in the critic's turn only, through W_fake; every pass first sets the scale that it needs. It is discarded
    with the critic: the student has weights of its own. A pass with a backward counts as three though the frozen weights
    need no gradient: the adapter's own products (a fifth of the layers' at the tiny scale) make up for most of it.
    """

    Settings = WeakToStrongSettings

    def make_fake(self) -> VideoModel:
        return with_lora(self.real, self.settings.rank)

    def fake_velocity(self, x: torch.Tensor, t: torch.Tensor, condition: Condition) -> torch.Tensor:
        set_lora_scale(self.fake, self.settings.strong)
        return self.fake.velocity(x, t, condition)

    def real_velocity(self, x: torch.Tensor, t: torch.Tensor, condition: Condition, batch: Batch) -> torch.Tensor:
        """Guided W_real: guidance is of this score only."""
        set_lora_scale(self.fake, self.settings.weak)
        return GuidedVelocity(self.fake, condition, self.settings.guidance_scale)(x, t)

    def gradient(self, clean: torch.Tensor, fake: torch.Tensor, real: torch.Tensor, batch: Batch) -> torch.Tensor:
        """g + regularization g_reg; g_reg puts the real clip in the place of the real score's estimate (form INFERRED)."""
        gradient = matching_gradient(clean, fake, real)
        if self.settings.regularization > 0:
            gradient = gradient + self.settings.regularization * matching_gradient(clean, fake, batch.latents)
        return gradient

    def _student_losses(self, clean: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        losses = super()._student_losses(clean, batch)
        return losses | {"weak_share": lora_share(self.fake, self.settings.weak)}
