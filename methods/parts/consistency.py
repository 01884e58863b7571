"""Latent consistency distillation of a guided flow (LCM, arXiv 2310.04378; VideoLCM, arXiv 2312.09109; methods.md 4)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import nn

from flgbench import flow
from flgbench.models.base import VideoModel
from flgbench.sampling import guided_training
from flgbench.settings import Settings
from flgbench.stage import Batch, Footprint, Roles, TrainedStage
from methods.parts.optimizer import adamw


class ConsistencySettings(Settings):
    """A student of `steps` passes, consistent over `grid` points of the teacher's guided trajectory."""

    steps: int = Field(4, ge=1, le=50, description="passes of the student; the paper's comparison uses 4")
    grid: int = Field(50, ge=1, description="points of the trajectory: 1000 / 20, the skip interval of LCM [P]")
    guidance_scale: float = Field(
        3.5, ge=1, description="INFERRED: guidance of the Euler step, standard w; LCM takes the teacher's unless set"
    )
    shift: float = Field(3.0, gt=0, description="INFERRED: shift of all times, equal to the other methods'")
    ema_decay: float = Field(0.95, ge=0, lt=1, description="of the target network; VideoLCM [P]")
    huber: float = Field(1e-3, gt=0, description="h of the pseudo-Huber loss; LCM's code [P]")
    lr: float = Field(1e-4, gt=0, description="INFERRED at this scale; VideoLCM 3e-5, FastVideo 1e-6 [P]")


def euler_step(x: torch.Tensor, t: torch.Tensor | float, s: torch.Tensor | float, velocity: torch.Tensor) -> torch.Tensor:
    """x_s = x_t - (t - s) v for times (B,), in fp32: at s = 0 it is the clean estimate X0(x_t, t; v)."""
    x = x.float()
    return x - flow.per_clip(t - s, x) * velocity.float()


def pseudo_huber(difference: torch.Tensor, h: float) -> torch.Tensor:
    """mean(sqrt(d^2 + h^2) - h): d^2 / 2h for small d, |d| for large ones."""
    square = difference.float().pow(2)
    # Equal to sqrt(d^2 + h^2) - h, but exact where d is much smaller than h.
    return (square / ((square + h * h).sqrt() + h)).mean()


class ConsistencyDistillation(TrainedStage):
    """Trains f(x_t, t) = x_t - t v(x_t, t) to be the same along the trajectory of the frozen, guided teacher.

    f(x, 0) = x holds for any weights: no boundary condition has to be learnt, and at the last grid point, where s = 0,
    the target is the clean estimate of the Euler step itself.

    Roles: 'recovered' and 'importance' (both or none) hold the weights that the student starts from and the blocks that it
    loses. The trajectory is always the frozen teacher's. What is exported is the trained student, not the target: a decay of
    0.95 remembers some 20 iterations, which steadies the target but is no average worth exporting, and no other method
    exports one.
    """

    Settings = ConsistencySettings

    def __init__(self, settings: ConsistencySettings, roles: Roles) -> None:
        super().__init__(settings, roles)
        start = roles.model("recovered") if "recovered" in roles.artifacts else roles.teacher
        redundant = roles.json("importance", "importance.json")["redundant"] if "importance" in roles.artifacts else []
        self.model = start.without_blocks(redundant).requires_grad_(True)
        self.target = self.model.copy().requires_grad_(False)
        self.times = flow.euler_times(settings.grid, settings.shift)
        self.optimizer = adamw(self.model.transformer, settings.lr)

    def student(self) -> VideoModel:
        return self.model

    def modules(self) -> dict[str, nn.Module]:
        return {"student": self.model.transformer, "target": self.target.transformer}

    @classmethod
    def footprint(cls, settings: ConsistencySettings, kept: float) -> Footprint:
        guided = 2.0 if settings.guidance_scale != 1 else 1.0
        # The target moves by little steps, so it is kept in fp32: twice a frozen network of its size.
        return Footprint(2 * kept + guided, 2 * kept, frozen=1 + 2 * kept, trained=kept, student=kept, graphs=kept)

    def optimizers(self, iteration: int) -> list[torch.optim.Optimizer]:
        return [self.optimizer]

    def all_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"student": self.optimizer}

    def train_step(self, batch: Batch, iteration: int) -> dict[str, torch.Tensor]:
        n = batch.integers(self.settings.grid)
        times = self.times.to(n.device)
        t, s = times[n], times[n + 1]
        x_t = flow.interpolate(batch.latents, batch.noise(), t)
        clean = flow.clean_estimate(x_t, t, self.model.velocity(x_t, t, batch.condition))
        with torch.no_grad():
            teacher = guided_training(self.roles.teacher, batch.condition, self.settings.guidance_scale)
            x_s = euler_step(x_t, t, s, teacher(x_t, t))
            target = flow.clean_estimate(x_s, s, self.target.velocity(x_s, s, batch.condition))
        # No 'clean' entry: the loop ends a training whose clean estimates are static, and static clips are what the paper
        # reports of this method (dynamic degree 0.003). They are a result to be measured, so they are logged, not guarded.
        motion = clean.detach().diff(dim=2).std() / batch.latents.diff(dim=2).std()
        return {"loss": pseudo_huber(clean - target, self.settings.huber), "motion": motion}

    @torch.no_grad()
    def after_step(self, iteration: int, losses: dict[str, torch.Tensor]) -> None:
        """target <- decay target + (1 - decay) student."""
        target, student = (list(m.transformer.parameters()) for m in (self.target, self.model))
        torch._foreach_lerp_(target, student, 1 - self.settings.ema_decay)
