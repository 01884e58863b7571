"""Controls of pruning: blocks deleted from the middle, at random or by rank, untrained or recovered, sampled as the teacher.

They part FastLightGen's gains: recovered and ranked, with 50 steps and CFG, is the corner of {full, pruned} x {50 steps
and CFG, 4 passes} that shows what size alone costs; middle and random show what the ranking is worth (methods.md 8).
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from flgbench.contracts import Method, StageSpec
from flgbench.models.base import StudentShape
from flgbench.sampling import SamplerSettings
from flgbench.settings import Settings
from methods.parts.pruned_start import PrunedStartSettings, pruned_shape, pruned_start
from methods.parts.recovery import RecoverySettings
from methods.parts.selection import (
    Deletion,
    DeletionSettings,
    MiddleBlocks,
    MiddleSettings,
    RandomBlocks,
    RandomSettings,
    Selection,
)


class SampledAsTeacher(Method):
    """A student with fewer blocks that is sampled as its teacher is."""

    kind = "control"

    def sampler(self) -> SamplerSettings:
        return self.preset.teacher_sampler()

    def shape(self) -> StudentShape:
        return pruned_shape(self.settings.keep, self.preset)


class _Selected(SampledAsTeacher):
    """The redundant blocks are selected without looking at the model."""

    selection: ClassVar[type[Selection]]

    def select(self) -> StageSpec:
        """The selection with its own part of the settings only, so that methods with equal selections share the step."""
        cls = self.selection.Settings
        return StageSpec("select", self.selection, cls(**{k: getattr(self.settings, k) for k in cls.model_fields}))


class _Untrained(_Selected):
    """Deleted from the teacher as it is."""

    family = "training-free"

    def stages(self, budget: float) -> list[StageSpec]:
        return [self.select(), StageSpec("delete", Deletion, DeletionSettings(), {"importance": "select"})]


class _Recovered(_Selected):
    """Deleted after FastLightGen's stage II."""

    family = "size"

    def stages(self, budget: float) -> list[StageSpec]:
        s = self.settings
        ranked = PrunedStartSettings(keep=s.keep, recovery_share=s.recovery_share, recover=s.recover)
        # Trained as long as after a ranking, whose passes a control does not spend: only the blocks differ.
        start = pruned_start(ranked, budget, self.preset.blocks, "recovery of selected blocks")
        recover = replace(start.stages[-1], inputs={"importance": "select"})
        inputs = {"importance": "select", "recovered": recover.name}
        return [self.select(), recover, StageSpec("delete", Deletion, DeletionSettings(), inputs)]


class DeleteMiddle(_Untrained):
    """30 % of the blocks deleted from the middle, untrained."""

    label = "middle blocks deleted"
    changes = "size: 30 % of the blocks deleted from the middle, untrained"
    Settings = MiddleSettings
    selection = MiddleBlocks


class DeleteRandom(_Untrained):
    """30 % of the blocks deleted at random, untrained."""

    label = "random blocks deleted"
    changes = "size: 30 % of the blocks deleted at random, untrained"
    Settings = RandomSettings
    selection = RandomBlocks


class _RecoveryPart(Settings):
    """What FastLightGen's stage II needs."""

    recovery_share: float = Field(
        0.35, gt=0, lt=1, description="INFERRED: share of the training budget, as that of FastLightGen's stage II"
    )
    recover: RecoverySettings = RecoverySettings()


class RecoverMiddleSettings(MiddleSettings, _RecoveryPart):
    """Selection and FastLightGen's stage II."""


class RecoverRandomSettings(RandomSettings, _RecoveryPart):
    """Selection by lot and FastLightGen's stage II."""


class RecoverMiddle(_Recovered):
    """30 % of the blocks deleted from the middle after FastLightGen's recovery."""

    label = "middle blocks recovered"
    changes = "size: 30 % of the blocks deleted from the middle, recovered"
    Settings = RecoverMiddleSettings
    selection = MiddleBlocks


class RecoverRandom(_Recovered):
    """30 % of the blocks deleted at random after FastLightGen's recovery."""

    label = "random blocks recovered"
    changes = "size: 30 % of the blocks deleted at random, recovered"
    Settings = RecoverRandomSettings
    selection = RandomBlocks


class RecoverRankedSettings(PrunedStartSettings):
    """FastLightGen's stages I and II."""

    keep: float = Field(0.7, gt=0, le=1, description="abstract of 2603.01685: 30 % parameter pruning")


class RecoverRanked(SampledAsTeacher):
    """FastLightGen without its stage III: ranked, recovered, deleted, and sampled with 50 steps and guidance."""

    label = "ranked blocks recovered"
    family = "size"
    changes = "size: 30 % of the blocks deleted by rank, recovered"
    Settings = RecoverRankedSettings

    def stages(self, budget: float) -> list[StageSpec]:
        start = pruned_start(self.settings, budget, self.preset.blocks, "recover_ranked")
        return [*start.stages, StageSpec("delete", Deletion, DeletionSettings(), start.inputs)]
