"""A stage: one trained or computed part of a method, run by the one loop in `flgbench.training`."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from flgbench.models.base import Condition, VideoModel
from flgbench.settings import Settings


@dataclass(frozen=True)
class Batch:
    """Training clips: latents (B, C, T, H, W) and their condition; `generator` is the iteration's only randomness.

    In a training over several processes this is one process's share of the clips. What is drawn for clips is drawn for all
    of them and then shared out, so the generators stay in step and the draws are those of a single process; what is drawn
    once a batch may be drawn from `generator` itself. Draws are made on the CPU, so they do not depend on the device, and
    come where the latents are.
    """

    latents: torch.Tensor
    condition: Condition
    generator: torch.Generator
    share: int = 0
    shares: int = 1

    def to(self, device: torch.device) -> Batch:
        return replace(self, latents=self.latents.to(device), condition=self.condition.to(device))

    def _mine(self, everyones: torch.Tensor) -> torch.Tensor:
        return everyones.chunk(self.shares)[self.share].to(self.latents.device)

    def noise(self) -> torch.Tensor:
        """Standard normal noise of the latents' shape."""
        shape = (len(self.latents) * self.shares, *self.latents.shape[1:])
        return self._mine(torch.randn(shape, generator=self.generator))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        """(B,) uniforms in [low, high)."""
        return low + (high - low) * self._mine(torch.rand(len(self.latents) * self.shares, generator=self.generator))

    def integers(self, high: int) -> torch.Tensor:
        """(B,) integers in [0, high)."""
        return self._mine(torch.randint(high, (len(self.latents) * self.shares,), generator=self.generator))


class Latents(Protocol):
    """N encoded clips (N, C, T, H, W): a tensor, or something that reads the rows one asks for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice | torch.Tensor, /) -> torch.Tensor: ...


class Conditions(Protocol):
    """The conditions of N clips: a `Condition`, or something that reads those one selects."""

    def __len__(self) -> int: ...

    def select(self, indices: torch.Tensor | slice, /) -> Condition: ...


@dataclass(frozen=True)
class TrainingData:
    """Encoded real clips, in memory or read when they are drawn (`flgbench.data.encoded`)."""

    latents: Latents
    condition: Conditions

    def __len__(self) -> int:
        return len(self.latents)

    def batch(self, size: int, generator: torch.Generator, share: int = 0, shares: int = 1) -> Batch:
        """`size` clips drawn with replacement; of these the part `share` of `shares`, which must divide `size`."""
        index = torch.randint(len(self), (size,), generator=generator).chunk(shares)[share]
        return Batch(self.latents[index], self.condition.select(index), generator, share, shares)


@dataclass(frozen=True)
class Roles:
    """What a stage may use: the frozen teacher, the data, and the artifacts of earlier stages by role."""

    teacher: VideoModel
    data: TrainingData
    artifacts: Mapping[str, Path]

    def model(self, role: str) -> VideoModel:
        """A fresh model holding the denoiser of an earlier stage."""
        return self.teacher.with_transformer(self.artifacts[role] / "transformer")

    def json(self, role: str, file: str) -> Any:
        return json.loads((self.artifacts[role] / file).read_text())


@dataclass(frozen=True)
class Footprint:
    """What a trained stage needs, told from its settings alone: a plan says it before anything runs.

    forwards, backwards: of one clip in one iteration on average, in network passes as the budget counts them (a backward of
    trained weights is 2); frozen, trained, student: denoisers it holds, trains and leaves, in whole teachers; graphs: the
    same of those whose activations wait for a backward at the same time; adapter_rank: of a LoRA trained besides (0:
    none); ema: whether an average of the student is kept.
    """

    forwards: float
    backwards: float
    frozen: float
    trained: float
    student: float
    graphs: float
    adapter_rank: int = 0
    ema: bool = False

    @property
    def passes(self) -> float:
        return self.forwards + self.backwards


class Stage(ABC):
    """Base of all stages. `Settings` holds what changes its result; its artifact is `student()` or what `compute` wrote."""

    Settings: ClassVar[type[Settings]]
    version: ClassVar[int] = 1

    def __init__(self, settings: Any, roles: Roles) -> None:
        self.settings, self.roles = settings, roles


class ComputedStage(Stage):
    """A training-free stage."""

    @classmethod
    def passes(cls, settings: Any, blocks: int) -> float | None:
        """Network passes that `compute` takes for a teacher of `blocks` blocks; None is not known."""
        return None

    @abstractmethod
    def compute(self, out: Path) -> None:
        """Write the result into the folder `out`."""


class TrainedStage(Stage):
    """A stage that the training loop runs."""

    ema_decay: float | None = None  # of the student's weights; None keeps none

    @abstractmethod
    def student(self) -> VideoModel:
        """The model that is trained and saved."""

    @abstractmethod
    def modules(self) -> dict[str, nn.Module]:
        """Everything with trained weights, by name, for checkpoints. The student's denoiser is 'student'."""

    @abstractmethod
    def train_step(self, batch: Batch, iteration: int) -> dict[str, torch.Tensor]:
        """Named losses. 'loss' is differentiated; an optional 'clean' (B, C, T, H, W) is watched for collapse."""

    @abstractmethod
    def optimizers(self, iteration: int) -> list[torch.optim.Optimizer]:
        """The optimisers that step in this iteration: alternating critics need nothing more."""

    def frozen(self) -> dict[str, nn.Module]:
        """The denoisers that are used but not trained, by name: they are placed, and at size sharded, like the others."""
        return {"teacher": self.roles.teacher.transformer}

    @classmethod
    def footprint(cls, settings: Any, kept: float) -> Footprint | None:
        """What a training with `settings` needs where the share `kept` of the blocks remains; None is not known."""
        return None

    def all_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Every optimiser by name, for checkpoints."""
        raise TypeError(f"{type(self).__name__} must name its optimisers")

    def moves_student(self, iteration: int) -> bool:
        """Whether this iteration changed the student (the EMA moves only then)."""
        return True

    def after_step(self, iteration: int, losses: dict[str, torch.Tensor]) -> None:
        """Called after the optimisers stepped, for example to move a target network. May raise StageFailure."""
