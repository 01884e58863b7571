"""FastLightGen: joint distillation of steps and size in three stages (arXiv 2603.01685)."""

from __future__ import annotations

from pydantic import Field

from flgbench.contracts import FamilyPreset, Method, StageSpec
from flgbench.models.base import StudentShape
from flgbench.sampling import SamplerSettings
from methods.parts.distribution_matching import DistributionMatching, MatchSettings
from methods.parts.guidance import unless_set, with_teacher_guidance
from methods.parts.pruned_start import PrunedStartSettings, pruned_shape, pruned_start


class WellGuidedMatchSettings(MatchSettings):
    """Stage III: the paper's optimum for WanX is beta1 = 3.5, beta2 = 0.25; coefficients are drawn from a uniform law.

    3.5 is 0.7 of Wan's own guidance scale, 5. INFERRED: at another scale it is 0.7 of the teacher's there.
    """

    beta1: float = Field(
        3.5,
        ge=0,
        description="guidance over the negative caption; paper Table 5: 3.5; INFERRED: unset, the family's, by default "
        "0.7 times the teacher's",
    )
    beta1_spread: float = Field(
        1.0, ge=0, description="INFERRED: range of the uniform law, not found in the paper; unset, 0.2 of the teacher's"
    )
    beta2: float = Field(
        0.25, ge=0, description="guidance of the dense over the pruned teacher; unset, the family's; Table 5: 0.25"
    )
    beta2_spread: float = Field(0.25, ge=0, description="INFERRED: range of the uniform law; the paper's was not found")


class FastLightGenSettings(PrunedStartSettings):
    """Settings of the three stages."""

    keep: float = Field(0.7, gt=0, le=1, description="abstract of 2603.01685: 30 % parameter pruning")
    match: WellGuidedMatchSettings = WellGuidedMatchSettings()


class FastLightGen(Method):
    """Blocks ranked by deletion damage, recovered at random depths, matched to a well-guided teacher: 70 % and 4 passes."""

    label = "FastLightGen"
    family = "joint"
    papers = ("2603.01685",)
    changes = "steps: 50 x CFG to 4 passes; size: 30 % of the blocks deleted"
    Settings = FastLightGenSettings

    def __init__(self, settings: FastLightGenSettings, preset: FamilyPreset) -> None:
        match = settings.match
        if preset.beta1 is not None:
            match = unless_set(match, "beta1", preset.beta1)
        match = with_teacher_guidance(match, "beta1", preset, share=0.7)
        match = with_teacher_guidance(match, "beta1_spread", preset, share=0.2)
        match = unless_set(match, "beta2", preset.beta2)
        super().__init__(settings.model_copy(update={"match": match}), preset)

    def stages(self, budget: float) -> list[StageSpec]:
        start = pruned_start(self.settings, budget, self.preset.blocks, "fastlightgen")
        match = StageSpec("match", DistributionMatching, self.settings.match, start.inputs, start.budget)
        return [*start.stages, match]

    def sampler(self) -> SamplerSettings:
        match = self.settings.match
        return SamplerSettings(kind="renoise", num_inference_steps=match.steps, shift=match.shift)

    def shape(self) -> StudentShape:
        return pruned_shape(self.settings.keep, self.preset)
