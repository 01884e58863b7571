"""The one training loop: accumulation, clipping, EMA, checkpoints, resume, collapse guards, log lines.

The budget is counted in network passes of one clip through the dense teacher: a forward is 1, a forward with its backward
3, both scaled by the share of blocks that ran (`PassTally`). Every iteration draws from a generator seeded by
(seed, iteration), so a resumed run continues exactly where it stopped with nothing else to restore. Over several
processes (`flgbench.distributed`) each trains on its share of the same clips and draws. What only large models need is
in `SizedSettings`: sharded in mixed precision, activations computed again, checkpoints that no process gathers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from flgbench import distributed
from flgbench.checkpoint import (
    assemble,
    load_checkpoint,
    load_sharded,
    save_checkpoint,
    save_sharded,
    sharded_checkpoint,
    skeleton,
)
from flgbench.errors import StageFailure, UsageError
from flgbench.loop_settings import LoopSettings, SizedSettings
from flgbench.models.base import PassTally
from flgbench.samples import write_sample
from flgbench.stage import Latents, TrainedStage, TrainingData
from flgbench.throughput import Throughput

Log = Callable[..., None]
GUARD_EVERY, LOG_EVERY = 10, 5


class Weights:
    """The stage's networks where they are trained, their EMA, and checkpoints of all of it."""

    def __init__(self, stage: TrainedStage, settings: LoopSettings, work: Path) -> None:
        self.stage, self.work = stage, work
        self.sized = settings.sized
        self.modules, self.optimizers = stage.modules(), stage.all_optimizers()
        self.frozen: dict[str, nn.Module] = {}  # those that are sharded too
        self.alone = distributed.processes() == 1 and self.sized is None
        self._whole: nn.Module | None = None
        if self.sized:
            distributed.ensure_group()
            self._whole = skeleton(self.modules["student"])
            self._shard_all(self.sized)
        else:
            if not self.alone:
                self._whole = stage.student().copy().transformer
            for module in self.modules.values():
                module.to(distributed.device())
            distributed.shard(self.modules, self.optimizers.values())
        self.ema_decay = (self.sized.ema_decay if self.sized else None) or stage.ema_decay or 0.0
        self.ema_from = self.sized.ema_from if self.sized else 0
        named = self.student.named_parameters()
        self.ema = {k: v.detach().clone() for k, v in named} if self.ema_decay else {}

    def _shard_all(self, sized: SizedSettings) -> None:
        self.frozen = self.stage.frozen()
        for module in (*self.modules.values(), *self.frozen.values()):
            enable = getattr(module, "enable_gradient_checkpointing", None)  # a discriminator has none
            if sized.activation_checkpointing and callable(enable):
                enable()
        compute = torch.bfloat16 if sized.precision == "bf16" else torch.float32
        sharding = distributed.Sharding(compute, sized.offload)
        distributed.shard(self.modules, self.optimizers.values(), sharding)
        distributed.shard(self.frozen, (), sharding, masters=False)

    @property
    def student(self) -> nn.Module:
        return self.modules["student"]

    def load(self) -> dict[str, float]:
        """The scalars of the last checkpoint, whose weights and states are restored; empty if there is none."""
        if self.sized:
            folder = sharded_checkpoint(self.work)
            return load_sharded(folder, self.modules, self.optimizers, self.ema) if folder else {}
        file = self.work / "checkpoint.safetensors"
        if not file.exists():
            return {}
        saved, scalars = load_checkpoint(file, self.modules, self.optimizers)
        self.ema = {k: distributed.sharded_like(saved[k].to(v.device), v) for k, v in self.ema.items()}
        return scalars

    def save(self, scalars: Mapping[str, float]) -> None:
        if self.sized:
            save_sharded(self.work, self.modules, self.optimizers, self.ema, scalars)
        else:
            file = self.work / "checkpoint.safetensors"
            save_checkpoint(file, self.modules, self.optimizers, self.ema, scalars)

    def reshard(self) -> None:
        if not self.alone:
            distributed.reshard([*self.modules.values(), *self.frozen.values()])

    @torch.no_grad()
    def move_ema(self, iteration: int) -> None:
        if not self.ema or not self.stage.moves_student(iteration):
            return
        weights = dict(self.student.named_parameters())
        decay = self.ema_decay if iteration >= self.ema_from else 0.0
        torch._foreach_lerp_(list(self.ema.values()), [weights[k] for k in self.ema], 1 - decay)

    def finish(self) -> None:
        """Leave the EMA, if there is one, in the student, and the student whole: shards can be neither saved nor sampled.

        At size only the first process has it, with weights that lie in files.
        """
        if self.ema:
            self.student.load_state_dict(self.student.state_dict() | self.ema)
        if self.sized:
            assert self._whole is not None
            made = assemble(self.student, self._whole, self.work / "student")
            self.stage.student().transformer = made if made is not None else self.student
        elif self._whole is not None:  # whole again, in every process
            self._whole.load_state_dict({k: distributed.whole(v) for k, v in self.student.state_dict().items()})
            self.stage.student().transformer = self._whole


def train(
    stage: TrainedStage,
    data: TrainingData,
    settings: LoopSettings,
    tally: PassTally,
    work: Path,
    log: Log,
    flops_per_pass: float | None = None,
    peak: float | None = None,
) -> dict[str, float]:
    """Run `stage` until its budget is spent, resuming from the last checkpoint in `work` if there is one.

    `log` gets one call per reported iteration: iteration, passes, fraction, seconds and the named losses; at size also
    what `Throughput` says, with `flops_per_pass` of one clip and the `peak` FLOP/s of a device. Leaves the EMA in the
    student if there is one. Networks are trained on the device of the process, and a training at size uses the stage's
    frozen networks up: they stay sharded. Returns iterations, passes and seconds of training. Raises StageFailure, and
    UsageError for a batch that the processes cannot share.
    """
    shares = distributed.processes()
    if settings.batch % shares:
        raise UsageError(f"a batch of {settings.batch} clips cannot be shared by {shares} processes")
    tally.processes = shares
    with _on_device(stage, settings):
        weights = Weights(stage, settings, work)
        facts = _loop(stage, data, settings, tally, weights, log, Throughput(0.0, flops_per_pass, peak and peak * shares))
        weights.finish()
    return facts


@contextmanager
def _on_device(stage: TrainedStage, settings: LoopSettings) -> Iterator[None]:
    """The stage's frozen networks on the device of this process for as long as it trains."""
    moved = {} if settings.sized else {module: next(module.parameters()).device for module in stage.frozen().values()}
    for module in moved:
        module.to(distributed.device())
    try:
        yield
    finally:
        for module, device in moved.items():
            module.to(device)


def _loop(
    stage: TrainedStage,
    data: TrainingData,
    settings: LoopSettings,
    tally: PassTally,
    weights: Weights,
    log: Log,
    throughput: Throughput,
) -> dict[str, float]:
    shares, sized, device = distributed.processes(), settings.sized, distributed.device()
    scalars = weights.load()
    iteration, seconds = int(scalars.get("iteration", 0)), scalars.get("seconds", 0.0)
    tally.passes = scalars.get("passes", 0.0)
    throughput.report(tally.passes)
    # A checkpoint holds no learning rates: these are the stage's own. Loading makes new groups, so they are read after it.
    rates = [(group, group["lr"]) for optimizer in weights.optimizers.values() for group in optimizer.param_groups]
    began, saved = time.monotonic() - seconds, time.monotonic()
    guarded = iteration - GUARD_EVERY
    save_every = sized.checkpoint_seconds if sized else settings.checkpoint_seconds
    sampled = iteration

    while (spent := settings.spent(iteration, tally.passes)) < 1:
        losses: dict[str, torch.Tensor] = {}
        for part in range(settings.accumulate):
            seed = (settings.seed * 1_000_003 + iteration) * 64 + part
            generator = torch.Generator().manual_seed(seed)
            batch = data.batch(settings.batch, generator, distributed.rank(), shares).to(device)
            if not weights.alone and (sized is None or sized.defer_reduction):
                distributed.reduce_gradients(weights.modules.values(), part == settings.accumulate - 1)
            losses = stage.train_step(batch, iteration)
            (losses["loss"] / settings.accumulate).backward()
            losses = distributed.average(losses)
            throughput.count(settings.batch)
        weights.reshard()
        for group, rate in rates:
            group["lr"] = rate * rate_factor(iteration, spent, settings)
        for optimizer in stage.optimizers(iteration):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
            optimizer.step()
        for optimizer in weights.optimizers.values():
            optimizer.zero_grad()
        weights.move_ema(iteration)
        if not torch.isfinite(losses["loss"]):
            raise StageFailure("NaN", f"the loss is {losses['loss'].item()} at iteration {iteration}")
        clean = losses["clean"].detach() if "clean" in losses else None
        if sized and sized.sample_every and clean is not None and iteration >= sampled + sized.sample_every:
            write_sample(stage.student(), clean, weights.work.parent / "samples", iteration)
            sampled = iteration
        # Counted from the last check: alternating stages have a 'clean' in some iterations only.
        if clean is not None and iteration >= guarded + GUARD_EVERY:
            try:
                check_collapse(clean, data.latents)
            except StageFailure:
                if sized and sized.sample_every:
                    write_sample(stage.student(), clean, weights.work.parent / "samples", iteration)
                raise
            guarded = iteration
        stage.after_step(iteration, losses)
        iteration += 1
        seconds = time.monotonic() - began
        spent = settings.spent(iteration, tally.passes)
        if iteration % LOG_EVERY == 0 or spent >= 1:
            named = {k: v.item() for k, v in losses.items() if v.ndim == 0}
            named |= throughput.report(tally.passes) if sized else {}
            if distributed.rank() == 0:
                log(iteration=iteration, passes=tally.passes, fraction=min(1.0, spent), seconds=seconds, **named)
        if distributed.first_says(time.monotonic() - saved > save_every):
            weights.save({"iteration": iteration, "seconds": seconds, "passes": tally.passes})
            saved = time.monotonic()
    return {"iterations": iteration, "passes": tally.passes, "seconds": seconds}


def rate_factor(iteration: int, spent: float, settings: LoopSettings) -> float:
    """Of every learning rate, in iteration 0, 1, ... with the share `spent` of the budget gone."""
    rise = (iteration + 1) / settings.warmup if settings.warmup else 1.0
    fall = (1 - spent) / settings.decay if settings.decay else 1.0
    return min(1.0, rise, fall)


def check_collapse(clean: torch.Tensor, reference: Latents) -> None:
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
