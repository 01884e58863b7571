"""Shallow blocks deleted, then recovered from features and adversarially: ICMD on a DiT (arXiv 2411.18375; methods.md 6).

The source prunes U-Nets, whose resolution levels tell content from motion. A DiT has none: which blocks go, what a
matched layer is and the discriminator are our adaptation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from pydantic import Field
from torch import nn

from flgbench import flow
from flgbench.models.base import Condition, VideoModel
from flgbench.settings import Settings
from flgbench.stage import Batch, Footprint, Roles, TrainedStage
from methods.parts.importance import leading
from methods.parts.optimizer import adamw
from methods.parts.video_discriminator import VideoDiscriminator, hinge_discriminator_loss, hinge_generator_loss


class ContentSettings(Settings):
    """L = L_task + l_icd L_ICD + l_mca L_MCA with the weights of the paper's Table 5."""

    keep: float = Field(
        0.7, gt=0, le=1, description="INFERRED: share of blocks that remain, as FastLightGen's; the U-Net lost ~40 %"
    )
    l_icd: float = Field(0.1, ge=0, description="weight of the content distillation; 2411.18375, Table 5: 0.1")
    l_mca: float = Field(1.0, ge=0, description="weight of the adversarial loss; 2411.18375, Table 5: 1; 0 turns it off")
    lr: float = Field(2e-4, gt=0, description="INFERRED at this scale; the paper's was not found")
    discriminator_lr: float = Field(
        1e-4, gt=0, description="INFERRED at this scale: with l_mca 1, 1e-3 loses the student; the paper's was not found"
    )
    discriminator_width: int = Field(64, ge=1, description="INFERRED: channels; the paper's discriminator was not found")
    caption_dropout: float = Field(
        0.1, ge=0, le=1, description="INFERRED: share of clips told the negative caption, which guidance needs"
    )
    shift: float = Field(3.0, gt=0, description="INFERRED: training times are uniform, then shifted as the teacher's")


def shallow_blocks(keep: float, sizes: Sequence[int]) -> list[int]:
    """The blocks that go so that the share `keep` of all `sizes` remains: 1, 3, 5, ..., if need be then 2, 4, 6, ...

    Counted from the shallow end, so the first half of the depth is thinned first; every other one, so that no two
    neighbours go before it must be; never block 0 (methods.md 6, INFERRED).
    """
    order = [*range(1, len(sizes), 2), *range(2, len(sizes), 2)]
    return sorted(leading(order, keep, sizes))


@contextmanager
def captured_states(model: VideoModel, positions: Sequence[int]) -> Iterator[list[torch.Tensor]]:
    """While open, the list grows by the output (B, tokens, width) of each block at `positions`, in order of depth."""
    states: list[torch.Tensor] = []
    handles = [
        model.blocks[p].register_forward_hook(lambda module, inputs, output: states.append(model.block_tokens(output)))
        for p in positions
    ]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def content_loss(student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor]) -> torch.Tensor:
    """L_ICD = sum_l mean ||h_l^stu - sg h_l^tea||^2 / Var(h_l^tea) over matched states (B, tokens, width).

    A token belongs to one frame, so the match is frame by frame. The variance is one number a layer: states grow with
    depth, and without it the last layers would be the whole sum.
    """
    pairs = [(s.float(), t.detach().float()) for s, t in zip(student, teacher, strict=True)]
    terms = [(s - t).pow(2).mean() / t.var() for s, t in pairs]
    return torch.stack(terms).sum()


def drop_captions(condition: Condition, dropped: torch.Tensor) -> Condition:
    """The condition with the negative caption where `dropped` (B,) is true; the image stays."""
    negative = condition.unconditional()

    def mixed(kept: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return torch.where(dropped.view(-1, *[1] * (kept.ndim - 1)), other, kept)

    extras = {name: mixed(kept, negative.extras[name]) for name, kept in condition.extras.items()}
    return replace(condition, text=mixed(condition.text, negative.text), extras=extras)


class ContentDistillation(TrainedStage):
    """Trains the teacher without its shallow blocks on real clips, the teacher's states and a discriminator."""

    Settings = ContentSettings

    def __init__(self, settings: ContentSettings, roles: Roles) -> None:
        super().__init__(settings, roles)
        self.teacher = roles.teacher
        self.model = self.teacher.without_blocks(shallow_blocks(settings.keep, self.teacher.block_parameters))
        self.model.requires_grad_(True)
        # Where the student's blocks were before the deletion: states are matched at original indices.
        self.matched = [self.teacher.kept_blocks.index(k) for k in self.model.kept_blocks]
        self._optimizers: dict[str, torch.optim.Optimizer] = {
            "student": adamw(self.model.transformer, settings.lr, (0.9, 0.99))
        }
        self.discriminator: VideoDiscriminator | None = None
        if settings.l_mca > 0:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                self.discriminator = VideoDiscriminator(self.teacher.latent_shape[0], settings.discriminator_width)
            self._optimizers["discriminator"] = adamw(self.discriminator, settings.discriminator_lr, (0.0, 0.99))

    def student(self) -> VideoModel:
        return self.model

    def modules(self) -> dict[str, nn.Module]:
        student: dict[str, nn.Module] = {"student": self.model.transformer}
        return student | ({"discriminator": self.discriminator} if self.discriminator else {})

    @classmethod
    def footprint(cls, settings: ContentSettings, kept: float) -> Footprint:
        return Footprint(1 + kept, 2 * kept, frozen=1.0, trained=kept, student=kept, graphs=kept)

    def optimizers(self, iteration: int) -> list[torch.optim.Optimizer]:
        return list(self._optimizers.values())

    def all_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return self._optimizers

    def train_step(self, batch: Batch, iteration: int) -> dict[str, torch.Tensor]:
        """One pass of each network serves all losses; no gradient of student or discriminator reaches the other."""
        s = self.settings
        noise = batch.noise()
        t = flow.shift(batch.uniform(), s.shift)
        x_t = flow.interpolate(batch.latents, noise, t)
        condition = drop_captions(batch.condition, batch.uniform() < s.caption_dropout)
        with torch.no_grad(), captured_states(self.teacher, self.matched) as teacher_states:
            teacher_velocity = self.teacher.velocity(x_t, t, condition)
        with captured_states(self.model, range(len(self.model.blocks))) as states:
            velocity = self.model.velocity(x_t, t, condition)

        task = (velocity - flow.velocity_target(batch.latents, noise)).pow(2).mean()
        content = content_loss(states, teacher_states)
        clean = flow.clean_estimate(x_t, t, velocity)
        losses = {"task": task.detach(), "content": content.detach(), "clean": clean}
        loss = task + s.l_icd * content
        if self.discriminator:
            teacher_clean = flow.clean_estimate(x_t, t, teacher_velocity)
            adversarial, discriminator = self._adversarial_losses(clean, teacher_clean, batch)
            loss = loss + s.l_mca * adversarial + discriminator
            losses |= {"adversarial": adversarial.detach(), "discriminator": discriminator.detach()}
        return losses | {"loss": loss}

    def _adversarial_losses(
        self, clean: torch.Tensor, teacher_clean: torch.Tensor, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """L_MCA of the student and of the discriminator, on clean estimates renoised to t' with the same noise."""
        assert self.discriminator is not None
        noise = batch.noise()
        level = flow.shift(batch.uniform(), self.settings.shift)
        fake = flow.interpolate(clean, noise, level)
        real = flow.interpolate(teacher_clean, noise, level)
        self.discriminator.requires_grad_(False)  # the student is judged by it, it does not train it
        adversarial = hinge_generator_loss(self.discriminator(fake, level))
        self.discriminator.requires_grad_(True)
        discriminator = hinge_discriminator_loss(self.discriminator(fake.detach(), level), self.discriminator(real, level))
        return adversarial, discriminator
