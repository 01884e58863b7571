"""What the training loop does around a stage, as settings. Nothing here imports torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from flgbench.settings import Settings


class SizedSettings(Settings):
    """What a large model's training needs besides: FSDP2 over the processes, however many, and checkpoints in shards."""

    precision: Literal["bf16", "fp32"] = Field("bf16", description="of compute; master weights and reductions are fp32")
    activation_checkpointing: bool = Field(True, description="keep each block's input and compute the rest again")
    offload: bool = Field(False, description="weights, gradients and optimiser states wait on the CPU")
    defer_reduction: bool = Field(
        True, description="accumulating, reduce gradients once an iteration; off saves a whole copy of them"
    )
    ema_decay: float | None = Field(None, gt=0, lt=1, description="of the student's weights; unset, as the stage says")
    ema_from: int = Field(0, ge=0, description="iteration at which the EMA begins")
    checkpoint_seconds: float = Field(1200.0, gt=0)
    sample_every: int = Field(0, ge=0, description="iterations between decoded clips of the student; 0 makes none")


class LoopSettings(Settings):
    """What the loop does around a stage. `budget` is in network passes (see module)."""

    later: ClassVar[frozenset[str]] = frozenset({"iterations", "sized"})

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
    iterations: int | None = Field(None, ge=1, description="end after so many, in place of the budget")
    sized: SizedSettings | None = Field(None, description="for large models; unset trains whole networks in fp32")

    def spent(self, iteration: int, passes: float) -> float:
        """Share of the training that is done, 1 at its end or beyond."""
        return iteration / self.iterations if self.iterations else passes / self.budget
