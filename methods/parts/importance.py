"""Block importance by deletion damage, and which blocks are therefore redundant (FastLightGen stage I; methods.md 2.1)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import torch
from pydantic import Field

from flgbench import flow
from flgbench.models.base import VideoModel
from flgbench.settings import Settings
from flgbench.stage import ComputedStage, TrainingData
from flgbench.store import write_json


class ImportanceSettings(Settings):
    """How damage is estimated and how much is to go."""

    keep: float = Field(0.7, gt=0, le=1, description="share of the blocks' parameters that remains; 2603.01685: 30 % pruned")
    clips: int = Field(16, ge=1, description="INFERRED: number of real clips; the paper's count was not found")
    times: int = Field(4, ge=1, description="INFERRED: points of the fixed t grid; the paper's grid was not found")
    weight: str = Field(
        "x0", pattern="^(x0|elbo)$", description="INFERRED: ranks by plain x0 error; 'elbo' uses the exact ELBO weight"
    )


def n_leading(amount: float, sizes: Sequence[int]) -> int:
    """How many of `sizes`, from the first on, come nearest to `amount` in sum; of two as near the even, as `round` does."""
    sums = list(accumulate(sizes, initial=0))
    return min(range(len(sums)), key=lambda n: (round(abs(sums[n] - amount), 6), n % 2))


def leading(order: Sequence[int], keep: float, sizes: Sequence[int]) -> list[int]:
    """The first blocks of `order` that go so that about the share `keep` of all `sizes` remains; at least one block stays.

    `sizes` are the blocks' parameters by position. Equal blocks so are counted, unequal ones weighed.
    """
    count = n_leading((1 - keep) * sum(sizes), [sizes[b] for b in order])
    return list(order[: min(len(sizes) - 1, count)])


def n_redundant(keep: float, n_blocks: int) -> int:
    """How many of as many equal blocks go so that the share `keep` remains (rounded; at least one stays)."""
    return len(leading(range(n_blocks), keep, [1] * n_blocks))


@torch.no_grad()
def deletion_damage(model: VideoModel, data: TrainingData, clips: int, times: int) -> dict[str, torch.Tensor]:
    """Error of the one-step clean estimate with each block bypassed, minus the dense model's.

    D_b = E ||x0 - X0(x_t, t; v^-b)||^2 - ||x0 - X0(x_t, t; v)||^2 on real clips; the same t grid and noise for all b.
    Returns 'x0' and 'elbo' damages (blocks,) and 'dense' (1,), the dense x0 error. Since x0 - X0 = t (v_pred - v), the
    ELBO weight (1 - t) / t on the velocity error is (1 - t) / t^3 on the x0 error.
    """
    x0, condition = data.latents[:clips], data.condition.select(slice(0, clips))
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    target = flow.velocity_target(x0, noise)
    grid = (torch.arange(times) + 0.5) / times
    n = len(model.blocks)
    errors = torch.zeros(n + 1, times)  # velocity errors; row n is the dense model
    for j, t in enumerate(grid):
        for i in range(0, len(x0), 16):
            part = slice(i, i + 16)
            x_t = flow.interpolate(x0[part], noise[part], t)
            for b in range(n + 1):
                skip = (b,) if b < n else ()
                v = model.velocity(x_t, t.expand(len(x_t)), condition.select(part), skip).to(x0.device)
                errors[b, j] += (v - target[part]).pow(2).mean() * len(x_t) / len(x0)
    x0_errors, elbo_errors = errors * grid**2, errors * flow.elbo_weight(grid)
    return {
        "x0": (x0_errors[:n] - x0_errors[n]).mean(1),
        "elbo": (elbo_errors[:n] - elbo_errors[n]).mean(1),
        "dense": x0_errors[n].mean()[None],
    }


class Importance(ComputedStage):
    """Writes `importance.json`: damage of every block and the redundant set, least damaging first."""

    Settings = ImportanceSettings

    @classmethod
    def passes(cls, settings: ImportanceSettings, blocks: int) -> float:
        return float(settings.clips * settings.times * blocks)  # the dense pass, and one without each block

    def compute(self, out: Path) -> None:
        model, settings = self.roles.teacher, self.settings
        damage = deletion_damage(model, self.roles.data, settings.clips, settings.times)
        ranking = damage[settings.weight].argsort().tolist()
        write_json(
            out / "importance.json",
            {
                "blocks": list(model.kept_blocks),
                "x0_error": damage["x0"].tolist(),
                "elbo": damage["elbo"].tolist(),
                "dense_x0_error": damage["dense"].item(),
                "kinds": list(model.block_kinds),
                "redundant": leading(ranking, settings.keep, model.block_parameters),
            },
        )
