"""F3-Pruning (arXiv 2312.03459) on full 3-D attention in two forms: our adaptation."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from flgbench.contracts import Method, StageSpec
from flgbench.errors import NotDefined
from flgbench.models.base import StudentShape
from flgbench.sampling import SamplerSettings
from methods.parts.temporal_attention import KINDS, TemporalPruning, TemporalPruningSettings, layers_for_keep


class F3Settings(TemporalPruningSettings):
    """Settings of the row F3-a."""

    variant: Literal["a"] = Field("a", description="f3_pruning_b is the other")


class F3BSettings(TemporalPruningSettings):
    """Settings of the row F3-b."""

    variant: Literal["b"] = Field("b", description="f3_pruning is the other")


class F3Pruning(Method):
    """Layers with the least attention between frames look at their own and the first latent frame only. No training."""

    label = "F3-a (our adaptation)"
    family = "training-free"
    papers = ("2312.03459",)
    changes = "attention: half of the layers within frames; parameters and 50 steps x CFG stay"
    Settings: ClassVar[type[TemporalPruningSettings]] = F3Settings

    def stages(self, budget: float) -> list[StageSpec]:
        self.shape()  # a share out of reach is refused before any work; the stage itself counts the layers
        return [StageSpec("temporal_pruning", TemporalPruning, self.settings)]

    def sampler(self) -> SamplerSettings:
        return self.preset.teacher_sampler()

    def shape(self) -> StudentShape:
        """The masses say which layers change; here the first ones do."""
        s, blocks = self.settings, self.preset.blocks
        count = round(s.ratio * blocks)
        if s.keep is not None:
            count = layers_for_keep(s.keep, 1, 1 - self.preset.self_attention_share, blocks)
        return StudentShape(tuple(range(blocks)), (KINDS[s.variant],) * count + ("full",) * (blocks - count))


class F3PruningB(F3Pruning):
    """The same layers lose their self-attention, parameters included; cross-attention and feed-forward stay."""

    label = "F3-b (our adaptation)"
    changes = "size: self-attention of half of the layers removed; 50 steps x CFG stay"
    Settings = F3BSettings

    def stages(self, budget: float) -> list[StageSpec]:
        if self.preset.self_attention_share == 0:
            raise NotDefined(
                "f3_pruning_b removes self-attention, which text and video share in this family: no caption would reach "
                "the video; f3_pruning restricts it instead"
            )
        return super().stages(budget)
