"""Dynamic probabilistic pruning: one set of weights that works with and without the redundant blocks.

FastLightGen stage II (methods.md 2.2): L = alpha ||f(x_t; skip m) - sg f(x_t)||^2 + (1 - alpha) L_GT, m_b ~ Bernoulli(p).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from flgbench import flow
from flgbench.errors import StageFailure
from flgbench.models.base import VideoModel
from flgbench.settings import Settings
from flgbench.stage import Batch, Footprint, Roles, TrainedStage
from methods.parts.optimizer import adamw


class RecoverySettings(Settings):
    """Defaults of the paper (2603.01685) where known."""

    alpha: float = Field(1.0, ge=0, le=1, description="weight of distillation against ground truth; paper Table 4: 1")
    skip_probability: float = Field(0.5, gt=0, le=1, description="paper: Bernoulli(0.5)")
    target: Literal["teacher", "self"] = Field(
        "teacher", description="INFERRED: the dense pass that is imitated, frozen teacher's or the trained weights' own"
    )
    lr: float = Field(5e-4, gt=0, description="INFERRED at this scale; the paper trains 14B at 1e-5")
    shift: float = Field(3.0, gt=0, description="INFERRED: training times are uniform, then shifted as the teacher's")
    drift_limit: float = Field(
        2.5, gt=1, description="INFERRED: the stage fails when the dense loss is twice running this many times the teacher's"
    )


def recovery_loss(pruned: torch.Tensor, dense: torch.Tensor, truth: torch.Tensor, alpha: float) -> dict[str, torch.Tensor]:
    """The two squared errors of the pruned velocity, against the dense one (no gradient) and the truth, and their mix."""
    distillation = (pruned - dense.detach()).pow(2).mean()
    ground_truth = (pruned - truth).pow(2).mean()
    return {
        "loss": alpha * distillation + (1 - alpha) * ground_truth,
        "distillation": distillation.detach(),
        "ground_truth": ground_truth.detach(),
    }


class Recovery(TrainedStage):
    """Trains a dense copy of the teacher while the redundant blocks (role 'importance') are skipped at random."""

    Settings = RecoverySettings
    DRIFT_EVERY = 20

    def __init__(self, settings: RecoverySettings, roles: Roles) -> None:
        super().__init__(settings, roles)
        self.redundant: list[int] = roles.json("importance", "importance.json")["redundant"]
        self.drifting = False
        self.model = roles.teacher.copy().requires_grad_(True)
        self.optimizer = adamw(self.model.transformer, settings.lr, (0.9, 0.99))

    def student(self) -> VideoModel:
        return self.model

    def modules(self) -> dict[str, nn.Module]:
        return {"student": self.model.transformer}

    @classmethod
    def footprint(cls, settings: RecoverySettings, kept: float) -> Footprint:
        ran = 1 - settings.skip_probability * (1 - kept)
        return Footprint(1 + ran + 1 / cls.DRIFT_EVERY, 2 * ran, frozen=1.0, trained=1.0, student=1.0, graphs=1.0)

    def optimizers(self, iteration: int) -> list[torch.optim.Optimizer]:
        return [self.optimizer]

    def all_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"student": self.optimizer}

    def train_step(self, batch: Batch, iteration: int) -> dict[str, torch.Tensor]:
        noise = batch.noise()
        t = flow.shift(batch.uniform(), self.settings.shift)
        x_t = flow.interpolate(batch.latents, noise, t)
        truth = flow.velocity_target(batch.latents, noise)
        draws = torch.rand(len(self.redundant), generator=batch.generator)
        skip = [b for b, u in zip(self.redundant, draws, strict=True) if u < self.settings.skip_probability]
        imitated, other = self.roles.teacher, self.model
        if self.settings.target == "self":
            imitated, other = other, imitated
        with torch.no_grad():
            dense = imitated.velocity(x_t, t, batch.condition)
        losses = recovery_loss(self.model.velocity(x_t, t, batch.condition, skip), dense, truth, self.settings.alpha)
        if iteration % self.DRIFT_EVERY == 0:
            with torch.no_grad():
                both = {id(imitated): dense, id(other): other.velocity(x_t, t, batch.condition)}
            losses["dense_ground_truth"] = (both[id(self.model)] - truth).pow(2).mean()
            losses["teacher_ground_truth"] = (both[id(self.roles.teacher)] - truth).pow(2).mean()
        return losses

    def after_step(self, iteration: int, losses: dict[str, torch.Tensor]) -> None:
        if "dense_ground_truth" not in losses:
            return
        dense, teacher = losses["dense_ground_truth"].item(), losses["teacher_ground_truth"].item()
        was_drifting, self.drifting = self.drifting, dense > self.settings.drift_limit * teacher
        if was_drifting and self.drifting:  # once can be the noise of a small batch
            raise StageFailure("drifting", f"the dense loss is {dense:.3f}, the teacher's {teacher:.3f}, by {iteration}")
