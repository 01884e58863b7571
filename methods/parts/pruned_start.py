"""FastLightGen's stages I and II as a start for any method: blocks ranked, the dense weights trained to do without some."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from pydantic import Field, model_validator

from flgbench.contracts import FamilyPreset, StageSpec
from flgbench.errors import UsageError
from flgbench.models.base import StudentShape
from flgbench.settings import Settings
from methods.parts.importance import Importance, ImportanceSettings, leading
from methods.parts.recovery import Recovery, RecoverySettings


class PrunedStartSettings(Settings):
    """How many blocks remain, and how they are chosen and recovered."""

    keep: float = Field(1.0, gt=0, le=1, description="share of blocks that remain; 1 starts from the teacher as it is")
    recovery_share: float = Field(
        0.35, gt=0, lt=1, description="INFERRED at this scale: budget share of stage II; the paper: 64 of 80 GPU-days"
    )
    importance: ImportanceSettings = ImportanceSettings()
    recover: RecoverySettings = RecoverySettings()

    @model_validator(mode="after")
    def _one_keep(self) -> Self:
        if "keep" in self.importance.model_fields_set and self.importance.keep != self.keep:
            raise ValueError(f"keep {self.keep} and importance.keep {self.importance.keep} differ: set one of them")
        return self


@dataclass(frozen=True)
class Start:
    """The stages before a distillation, what that one reads of them, and the network passes left for it."""

    stages: list[StageSpec]
    inputs: Mapping[str, str] = field(default_factory=dict)
    budget: float = 0.0


def pruned_start(settings: PrunedStartSettings, budget: float, blocks: int, method: str) -> Start:
    """Stages I and II (methods.md 2.1, 2.2) for a teacher of `blocks` blocks, out of `budget` network passes.

    The next stage finds the redundant blocks in the role 'importance' and the recovered dense weights in 'recovered'.
    Raises UsageError, naming `method`, when nothing would be left for training.
    """
    # Stage I has no training, but its passes are paid from the same budget.
    rest = budget - settings.importance.clips * settings.importance.times * blocks
    if rest <= 0:
        raise UsageError(
            f"{method}: ranking blocks takes {budget - rest:.0f} network passes, the budget is {budget:.0f}: "
            f"raise --budget or lower importance.clips"
        )
    importance = settings.importance.model_copy(update={"keep": settings.keep})
    return Start(
        [
            StageSpec("importance", Importance, importance),
            StageSpec("recover", Recovery, settings.recover, {"importance": "importance"}, rest * settings.recovery_share),
        ],
        {"importance": "importance", "recovered": "recover"},
        rest * (1 - settings.recovery_share),
    )


def pruned_shape(keep: float, preset: FamilyPreset) -> StudentShape:
    """A teacher's blocks without as many as leave the share `keep` of their parameters.

    The ranking says which go; here those that the preset takes to go first. Of blocks that are alike any will do; where
    there are several kinds, their number and so the time of a pass depends on it.
    """
    return StudentShape.without(preset.blocks, leading(preset.unranked, keep, preset.block_sizes))


def dense_or_pruned_start(settings: PrunedStartSettings, budget: float, blocks: int, method: str) -> Start:
    """Nothing before the distillation when all blocks are kept, otherwise `pruned_start`."""
    return Start([], {}, budget) if settings.keep == 1 else pruned_start(settings, budget, blocks, method)
