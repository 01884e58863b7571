"""Redundant blocks chosen without looking at the model, and their deletion: what a ranking has to beat (methods.md 8)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import Field

from flgbench.settings import Settings
from flgbench.stage import ComputedStage
from flgbench.store import write_json
from methods.parts.importance import leading


def middle_blocks(n_blocks: int, count: int) -> list[int]:
    """`count` neighbouring positions with as many blocks before as behind, or one less."""
    first = (n_blocks - count) // 2
    return list(range(first, first + count))


def random_order(n_blocks: int, seed: int) -> list[int]:
    """All positions in an order by lot."""
    return torch.randperm(n_blocks, generator=torch.Generator().manual_seed(seed)).tolist()


def random_blocks(n_blocks: int, count: int, seed: int) -> list[int]:
    """`count` positions, every set equally likely."""
    return sorted(random_order(n_blocks, seed)[:count])


class MiddleSettings(Settings):
    """How many blocks remain."""

    keep: float = Field(0.7, gt=0, le=1, description="share of blocks that remain; abstract of 2603.01685: 30 % pruned")


class RandomSettings(MiddleSettings):
    """How many blocks remain, and which draw decides."""

    seed: int = Field(0, ge=0, description="INFERRED: ours; one draw of the redundant blocks")


class Selection(ComputedStage):
    """Writes the set of redundant blocks in the form of `methods.parts.importance`, but without a measured damage."""

    @classmethod
    def passes(cls, settings: Settings, blocks: int) -> float:
        return 0.0

    @abstractmethod
    def select(self, sizes: Sequence[int]) -> list[int]:
        """Positions of the redundant blocks, of which `sizes` are the parameters."""

    def compute(self, out: Path) -> None:
        teacher = self.roles.teacher
        redundant = self.select(teacher.block_parameters)
        write_json(out / "importance.json", {"blocks": list(teacher.kept_blocks), "redundant": redundant})


class MiddleBlocks(Selection):
    """The blocks in the middle."""

    Settings = MiddleSettings

    def select(self, sizes: Sequence[int]) -> list[int]:
        """As many as come nearest to the share that goes; of two as near the even number, as `round` does."""
        n, goes = len(sizes), (1 - self.settings.keep) * sum(sizes)
        choices = [middle_blocks(n, count) for count in range(n)]
        return min(choices, key=lambda blocks: (round(abs(sum(sizes[b] for b in blocks) - goes), 6), len(blocks) % 2))


class RandomBlocks(Selection):
    """Blocks drawn by lot."""

    Settings = RandomSettings

    def select(self, sizes: Sequence[int]) -> list[int]:
        n = len(sizes)
        return sorted(leading(random_order(n, self.settings.seed), self.settings.keep, sizes))


class DeletionSettings(Settings):
    """Nothing to set: the selection says which blocks go."""


class Deletion(ComputedStage):
    """Deletes the redundant blocks (role 'importance') of the recovered model (role 'recovered'), else of the teacher."""

    Settings = DeletionSettings

    @classmethod
    def passes(cls, settings: DeletionSettings, blocks: int) -> float:
        return 0.0

    def compute(self, out: Path) -> None:
        dense = self.roles.model("recovered") if "recovered" in self.roles.artifacts else self.roles.teacher
        redundant = self.roles.json("importance", "importance.json")["redundant"]
        dense.without_blocks(redundant).save(out / "transformer")
