"""Distribution matching distillation with two time scales (DMD2, arXiv 2405.14867; methods.md 3), on any student.

One stage serves DMD2 and FastLightGen's third: they differ in the student (dense or with blocks deleted) and in the
teacher (classifier-free guidance beta1 alone, or with the intra-guidance beta2 of the dense over the pruned pass).
MagicDistillation puts other networks into the same loop (`weak_to_strong`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from flgbench import flow
from flgbench.models.base import Condition, VideoModel
from flgbench.sampling import guided_training
from flgbench.settings import Settings
from flgbench.stage import Batch, Footprint, Roles, TrainedStage
from methods.parts.adversarial import FeatureDiscriminator, discriminator_loss, generator_loss
from methods.parts.lora import lora_layers, set_lora_scale, with_lora
from methods.parts.optimizer import adamw


class CommonMatchSettings(Settings):
    """Distribution matching for a student of `steps` passes at the shifted uniform times (4 steps: 1, .9, .75, .5)."""

    steps: int = Field(4, ge=1, le=50, description="passes of the student; the paper's comparison uses 4")
    lr: float = Field(1e-4, gt=0, description="INFERRED at this scale; DMD2's SDXL and FastLightGen's 14B use 5e-7")
    fake_lr: float = Field(4e-4, gt=0, description="INFERRED at this scale")
    fake_updates: int = Field(
        1,
        ge=1,
        description="INFERRED at this scale: critic updates per student update; DMD2: 5",
    )
    shift: float = Field(3.0, gt=0, description="INFERRED: shift of all times; the paper's 4 timesteps are unknown")
    backward_simulation: bool = Field(True, description="train on the student's own intermediate samples; DMD2 §4.5")
    gan_weight: float = Field(0.0, ge=0, description="weight of the adversarial term on teacher features; off as in [P]")


class MatchSettings(CommonMatchSettings):
    """The teacher's guidance in DMD2 and FastLightGen, and what their critic is made of."""

    later: ClassVar[frozenset[str]] = frozenset({"critic", "critic_rank"})

    beta1: float = Field(
        3.5,
        ge=0,
        description="INFERRED: guidance over the negative caption, standard w; unset, DMD2 takes the teacher's",
    )
    beta1_spread: float = Field(0.0, ge=0, description="beta1 ~ U(beta1 - spread, beta1 + spread) in each iteration")
    beta2: float = Field(0.0, ge=0, description="guidance of the dense over the pruned teacher; 0 is plain DMD2")
    beta2_spread: float = Field(0.0, ge=0, description="beta2 ~ U(beta2 - spread, beta2 + spread) in each iteration")
    critic: Literal["dense", "lora"] = Field(
        "dense", description="weights of its own, or a LoRA on the teacher's, which saves a copy and its optimiser states"
    )
    critic_rank: int = Field(128, ge=1, description="of the critic's LoRA; DMD2_wanx [P]: 128")


def well_guided_velocity(
    dense: torch.Tensor,
    unconditional: torch.Tensor,
    pruned: torch.Tensor | None,
    beta1: torch.Tensor | float,
    beta2: torch.Tensor | float,
) -> torch.Tensor:
    """F(c0) + beta1 (F(c) - F(c0)) + beta2 (F(c) - P(c)): INFERRED form of FastLightGen's teacher (methods.md 2.3)."""
    guided = flow.guide(dense, unconditional, beta1)
    return guided if pruned is None else guided + flow.per_clip(beta2, dense) * (dense - pruned)


def matching_gradient(clean: torch.Tensor, fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """g = (f - r) / mean |x_g - r|, the mean per clip over all other dimensions, in fp32 (DMD eq. 7-8)."""
    scale = (clean - real).abs().flatten(1).mean(1).clamp_min(1e-6)
    return (fake - real) / flow.per_clip(scale, clean)


def matching_loss(clean: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """0.5 ||x_g - sg(x_g - g)||^2, a mean: its gradient with respect to x_g is g / numel."""
    return 0.5 * (clean - (clean - gradient).detach()).pow(2).mean()


class DistributionMatching(TrainedStage):
    """Roles: 'recovered' (optional) holds the weights everything starts from, otherwise the teacher's; 'importance'
    (optional) the blocks that the student loses and the pruned teacher skips."""

    Settings: ClassVar[type[CommonMatchSettings]] = MatchSettings

    def __init__(self, settings: CommonMatchSettings, roles: Roles) -> None:
        super().__init__(settings, roles)
        self.real = roles.model("recovered") if "recovered" in roles.artifacts else roles.teacher
        pruned = "importance" in roles.artifacts
        self.redundant: list[int] = roles.json("importance", "importance.json")["redundant"] if pruned else []
        self.generator = self.real.without_blocks(self.redundant).requires_grad_(True)
        self.fake = self.make_fake()
        self.adapters = lora_layers(self.fake)  # none of a critic with weights of its own
        self.times = flow.euler_times(settings.steps, settings.shift)
        self.discriminator = FeatureDiscriminator(self.real) if settings.gan_weight > 0 else None
        betas = (0.0, 0.999)
        self._optimizers: dict[str, torch.optim.Optimizer] = {
            "student": adamw(self.generator.transformer, settings.lr, betas),
            "fake": adamw(self.fake.transformer, settings.fake_lr, betas),
        }
        if self.discriminator:
            self._optimizers["discriminator"] = adamw(self.discriminator, settings.fake_lr, betas)

    def make_fake(self) -> VideoModel:
        """The network that learns the score of the student's samples."""
        if self.settings.critic == "lora":
            return with_lora(self.real, self.settings.critic_rank)
        return self.real.copy().requires_grad_(True)

    def frozen(self) -> dict[str, nn.Module]:
        adapted = self.settings.critic == "lora" and self.discriminator is None
        return {} if adapted else {"real": self.real.transformer}

    @classmethod
    def footprint(cls, settings: Any, kept: float) -> Footprint:
        told = cls._footprint(settings, kept, real=2.0 + (kept if settings.beta2 > 0 and kept < 1 else 0.0))
        if settings.critic == "dense":
            return told
        frozen = 2.0 if settings.gan_weight > 0 else 1.0
        return replace(told, frozen=frozen, trained=told.trained - 1, adapter_rank=settings.critic_rank)

    @classmethod
    def _footprint(cls, settings: CommonMatchSettings, kept: float, real: float) -> Footprint:
        """With `real` passes for the real score, and a dense critic."""
        moving = 1 / settings.fake_updates
        adversarial = settings.gan_weight > 0
        before = (settings.steps - 1) / 2 if settings.backward_simulation else 0.0  # passes to a random step of the sampler
        forwards = (before + 1) * kept + 1 + moving * (real + 1)
        backwards = 2 + moving * 2 * kept
        if adversarial:
            forwards, backwards = forwards + 2 + moving, backwards + moving
        return Footprint(forwards, backwards, frozen=1.0, trained=kept + 1, student=kept, graphs=kept + 1 + adversarial)

    def student(self) -> VideoModel:
        return self.generator

    def modules(self) -> dict[str, nn.Module]:
        modules: dict[str, nn.Module] = {"student": self.generator.transformer, "fake": self.fake.transformer}
        return modules | ({"discriminator": self.discriminator} if self.discriminator else {})

    def all_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return self._optimizers

    def moves_student(self, iteration: int) -> bool:
        # The critic leads: it must know the student's samples before its score means anything.
        return iteration % self.settings.fake_updates == self.settings.fake_updates - 1

    def optimizers(self, iteration: int) -> list[torch.optim.Optimizer]:
        moving = self.moves_student(iteration)
        return [o for name, o in self._optimizers.items() if moving or name != "student"]

    def train_step(self, batch: Batch, iteration: int) -> dict[str, torch.Tensor]:
        """One generation serves the critic and, in its turn, the student; no gradient of one reaches the other."""
        moving = self.moves_student(iteration)
        with torch.set_grad_enabled(moving):
            clean = self.sample_student(batch)
        losses = self._critic_losses(clean.detach(), batch)
        if not moving:
            return losses
        student = self._student_losses(clean, batch)
        return losses | student | {"loss": losses["loss"] + student["loss"]}

    def _critic_losses(self, clean: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        x_t, t, noise = self._renoise(clean, batch)
        velocity = self.fake_velocity(x_t, t, batch.condition)
        loss = (velocity - flow.velocity_target(clean, noise)).pow(2).mean()
        losses = {"loss": loss, "fake": loss.detach()}
        if self.discriminator:
            real_t = flow.interpolate(batch.latents, noise, t)
            loss_d = discriminator_loss(
                self.discriminator(x_t, t, batch.condition), self.discriminator(real_t, t, batch.condition)
            )
            losses |= {"loss": loss + loss_d, "discriminator": loss_d.detach()}
        return losses

    def _student_losses(self, clean: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        x_t, t, _ = self._renoise(clean, batch)
        with torch.no_grad():
            real = flow.clean_estimate(x_t, t, self.real_velocity(x_t, t, batch.condition, batch))
            fake = flow.clean_estimate(x_t, t, self.fake_velocity(x_t, t, batch.condition))
            gradient = self.gradient(clean, fake, real, batch)
        loss = matching_loss(clean, gradient)
        losses = {"loss": loss, "gradient_rms": gradient.pow(2).mean().sqrt(), "clean": clean}
        if self.discriminator:
            self.discriminator.requires_grad_(False)  # the student is judged by the head, it does not train it
            loss_g = generator_loss(self.discriminator(x_t, t, batch.condition))
            self.discriminator.requires_grad_(True)
            losses |= {"loss": loss + self.settings.gan_weight * loss_g, "adversarial": loss_g.detach()}
        return losses

    def sample_student(self, batch: Batch) -> torch.Tensor:
        """Clean estimate of the student at a random step of its sampler; the gradient flows through that step only."""
        last = int(torch.randint(self.settings.steps, (1,), generator=batch.generator))
        if self.settings.backward_simulation:
            x = batch.noise()
            with torch.no_grad():
                for t, s in zip(self.times[:last], self.times[1 : last + 1], strict=True):
                    x = flow.interpolate(self._clean(x, t, batch.condition), batch.noise(), s)
        else:
            x = flow.interpolate(batch.latents, batch.noise(), self.times[last])
        return self._clean(x, self.times[last], batch.condition)

    def _clean(self, x: torch.Tensor, t: torch.Tensor, condition: Condition) -> torch.Tensor:
        return flow.clean_estimate(x, t, self.generator.velocity(x, t.to(x.device).expand(len(x)), condition))

    def _renoise(self, clean: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        noise = batch.noise()
        t = flow.shift(batch.uniform(0.02, 0.98), self.settings.shift)
        return flow.interpolate(clean, noise, t), t, noise

    def gradient(self, clean: torch.Tensor, fake: torch.Tensor, real: torch.Tensor, batch: Batch) -> torch.Tensor:
        """What the student's samples descend, from the two clean estimates of their noised versions."""
        return matching_gradient(clean, fake, real)

    def fake_velocity(self, x: torch.Tensor, t: torch.Tensor, condition: Condition) -> torch.Tensor:
        """The student's score: never guided."""
        if self.settings.critic == "lora":
            set_lora_scale(self.adapters, 1.0)
        return self.fake.velocity(x, t, condition)

    def real_velocity(self, x: torch.Tensor, t: torch.Tensor, condition: Condition, batch: Batch) -> torch.Tensor:
        """The guided teacher with this iteration's coefficients."""
        s = self.settings
        beta1 = batch.uniform(s.beta1 - s.beta1_spread, s.beta1 + s.beta1_spread)
        beta2 = batch.uniform(s.beta2 - s.beta2_spread, s.beta2 + s.beta2_spread)
        real = self.real
        if s.critic == "lora":  # without its adapter the critic is the teacher
            real = self.fake
            set_lora_scale(self.adapters, 0.0)
        dense, unconditional = guided_training(real, condition).branches(x, t)
        weak = s.beta2 > 0 and bool(self.redundant)
        pruned = real.velocity(x, t, condition, self.redundant) if weak else None
        return well_guided_velocity(dense, unconditional, pruned, beta1, beta2)
