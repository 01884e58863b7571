"""The one training loop: accumulation, clipping, EMA, checkpoints, resume, collapse guards, log lines.

The budget is counted in network passes of one clip through the dense teacher: a forward is 1, a forward with its backward
3, both scaled by the share of blocks that ran (`PassTally`). Every iteration draws from a generator seeded by
(seed, iteration), so a resumed run continues exactly where it stopped with nothing else to restore. Over several
processes (`flgbench.distributed`) each trains on its share of the same clips and draws.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from pydantic import Field
from torch import nn

from flgbench import distributed
from flgbench.checkpoint import load_checkpoint, save_checkpoint
from flgbench.errors import StageFailure, UsageError
from flgbench.models.base import PassTally
from flgbench.settings import Settings
from flgbench.stage import TrainedStage, TrainingData

Log = Callable[..., None]
GUARD_EVERY, LOG_EVERY = 10, 5


class LoopSettings(Settings):
    """What the loop does around a stage. `budget` is in network passes (see module)."""

    budget: float = Field(8_000, gt=0)
    batch: int = Field(2, ge=1, description="INFERRED: clips; few passes go further in more and smaller updates")
    accumulate: int = Field(1, ge=1)
    clip_norm: float = Field(10.0, gt=0, description="DMD2's SDXL recipe clips at 10 [P]")
    warmup: int = Field(10, ge=0, description="INFERRED: first iterations, over which all learning rates rise from zero")
    decay: float = Field(
        0.4, ge=0, le=1, description="INFERRED: last share of the budget, over which all learning rates fall to zero"
    )
    seed: int = 0
    checkpoint_seconds: float = Field(20.0, gt=0)


def train(
    stage: TrainedStage, data: TrainingData, settings: LoopSettings, tally: PassTally, work: Path, log: Log
) -> dict[str, float]:
    """Run `stage` until its budget is spent, resuming from `work/checkpoint.safetensors` if that exists.

    `log` gets one call per reported iteration: iteration, passes, fraction, seconds and the named losses. Leaves the EMA
    in the student if the stage asks for one. Returns iterations, passes and seconds of training. Raises StageFailure, and
    UsageError for a batch that the processes cannot share.
    """
    shares = distributed.processes()
    if settings.batch % shares:
        raise UsageError(f"a batch of {settings.batch} clips cannot be shared by {shares} processes")
    tally.processes = shares
    plain = stage.student().copy().transformer if shares > 1 else None
    modules, optimizers = stage.modules(), stage.all_optimizers()
    distributed.shard(modules, optimizers.values())
    student = modules["student"]
    ema = {k: v.detach().clone() for k, v in student.named_parameters()} if stage.ema_decay else {}
    checkpoint = work / "checkpoint.safetensors"
    iteration, seconds = 0, 0.0
    if checkpoint.exists():
        ema_saved, scalars = load_checkpoint(checkpoint, modules, optimizers)
        ema = {k: distributed.sharded_like(ema_saved[k], v) for k, v in ema.items()}
        iteration, seconds, tally.passes = int(scalars["iteration"]), scalars["seconds"], scalars["passes"]
    else:
        tally.passes = 0.0
    # A checkpoint holds no learning rates: these are the stage's own. Loading makes new groups, so they are read after it.
    rates = [(group, group["lr"]) for optimizer in optimizers.values() for group in optimizer.param_groups]
    began, saved = time.monotonic() - seconds, time.monotonic()
    guarded = iteration - GUARD_EVERY

    while tally.passes < settings.budget:
        spent = tally.passes / settings.budget
        losses: dict[str, torch.Tensor] = {}
        for part in range(settings.accumulate):
            seed = (settings.seed * 1_000_003 + iteration) * 64 + part
            generator = torch.Generator().manual_seed(seed)
            batch = data.batch(settings.batch, generator, distributed.rank(), shares)
            losses = stage.train_step(batch, iteration)
            (losses["loss"] / settings.accumulate).backward()
            losses = distributed.average(losses)
        distributed.reshard(modules.values())
        for group, rate in rates:
            group["lr"] = rate * rate_factor(iteration, spent, settings)
        for optimizer in stage.optimizers(iteration):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
            optimizer.step()
        for optimizer in optimizers.values():
            optimizer.zero_grad()
        if stage.ema_decay and stage.moves_student(iteration):
            _move_ema(ema, student, stage.ema_decay)
        if not torch.isfinite(losses["loss"]):
            raise StageFailure("NaN", f"the loss is {losses['loss'].item()} at iteration {iteration}")
        # Counted from the last check: alternating stages have a 'clean' in some iterations only.
        if "clean" in losses and iteration >= guarded + GUARD_EVERY:
            check_collapse(losses["clean"].detach(), data.latents)
            guarded = iteration
        stage.after_step(iteration, losses)
        iteration += 1
        seconds = time.monotonic() - began
        if iteration % LOG_EVERY == 0 or tally.passes >= settings.budget:
            named = {k: v.item() for k, v in losses.items() if v.ndim == 0}
            fraction = min(1.0, tally.passes / settings.budget)
            if distributed.rank() == 0:
                log(iteration=iteration, passes=tally.passes, fraction=fraction, seconds=seconds, **named)
        if distributed.first_says(time.monotonic() - saved > settings.checkpoint_seconds):
            scalars = {"iteration": iteration, "seconds": seconds, "passes": tally.passes}
            save_checkpoint(checkpoint, modules, optimizers, ema, scalars)
            saved = time.monotonic()

    if ema:
        student.load_state_dict(student.state_dict() | ema)
    if plain is not None:  # whole again, in every process: shards cannot be saved as a model or sampled alone
        plain.load_state_dict({k: distributed.whole(v) for k, v in student.state_dict().items()})
        stage.student().transformer = plain
    return {"iterations": iteration, "passes": tally.passes, "seconds": seconds}


def rate_factor(iteration: int, spent: float, settings: LoopSettings) -> float:
    """Of every learning rate, in iteration 0, 1, ... with the share `spent` of the budget gone."""
    rise = (iteration + 1) / settings.warmup if settings.warmup else 1.0
    fall = (1 - spent) / settings.decay if settings.decay else 1.0
    return min(1.0, rise, fall)


@torch.no_grad()
def _move_ema(ema: dict[str, torch.Tensor], student: nn.Module, decay: float) -> None:
    weights = dict(student.named_parameters())
    torch._foreach_lerp_(list(ema.values()), [weights[k] for k in ema], 1 - decay)


def check_collapse(clean: torch.Tensor, reference: torch.Tensor) -> None:
    """Raise StageFailure if latents (B, C, T, H, W) have become NaN, static, solid or saturated against real ones.

    The limits are far outside what a working student shows: they end lost runs, they do not judge quality.
    """
    if not torch.isfinite(clean).all():
        raise StageFailure("NaN", "the student's clean estimate is not finite")
    real = reference[: 4 * len(clean)]
    for word, spread, low, high in (
        ("static", lambda z: z.diff(dim=2).std(), 0.05, None),
        ("solid", lambda z: z.std(dim=(3, 4)).mean(), 0.05, None),
        ("saturated", lambda z: z.std(), None, 4.0),
    ):
        ratio = (spread(clean.float()) / spread(real.float())).item()
        if (low is not None and ratio < low) or (high is not None and ratio > high):
            raise StageFailure(word, f"the student's spread is {ratio:.3f} of real clips' (limits {low} to {high})")
