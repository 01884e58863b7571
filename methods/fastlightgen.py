"""FastLightGen: joint distillation of steps and size in three stages (arXiv 2603.01685)."""

from __future__ import annotations

from pydantic import Field, model_validator

from flgbench.contracts import Method, StageSpec
from flgbench.errors import UsageError
from flgbench.sampling import SamplerSettings
from flgbench.settings import Settings
from methods.parts.distribution_matching import DistributionMatching, MatchSettings
from methods.parts.importance import Importance, ImportanceSettings
from methods.parts.recovery import Recovery, RecoverySettings


class WellGuidedMatchSettings(MatchSettings):
    """Stage III: the paper's optimum for WanX is beta1 = 3.5, beta2 = 0.25; coefficients are drawn from a uniform law."""

    beta1_spread: float = Field(1.0, ge=0, description="INFERRED: range of the uniform law; the paper's was not found")
    beta2: float = Field(0.25, ge=0, description="guidance of the dense over the pruned teacher; paper Table 5: 0.25")
    beta2_spread: float = Field(0.25, ge=0, description="INFERRED: range of the uniform law; the paper's was not found")


class FastLightGenSettings(Settings):
    """Settings of the three stages. `keep` is the share of blocks that remain."""

    keep: float = Field(0.7, gt=0, le=1, description="abstract of 2603.01685: 30 % parameter pruning")
    recovery_share: float = Field(
        0.4, gt=0, lt=1, description="INFERRED: share of the training budget for stage II; the paper: 64 of 80 GPU-days"
    )
    importance: ImportanceSettings = ImportanceSettings()
    recover: RecoverySettings = RecoverySettings()
    match: WellGuidedMatchSettings = WellGuidedMatchSettings()

    @model_validator(mode="after")
    def _one_keep(self) -> FastLightGenSettings:
        if "keep" in self.importance.model_fields_set and self.importance.keep != self.keep:
            raise ValueError(f"keep {self.keep} and importance.keep {self.importance.keep} differ: set one of them")
        return self


class FastLightGen(Method):
    """Blocks ranked by deletion damage, recovered at random depths, matched to a well-guided teacher: 70 % and 4 passes."""

    label = "FastLightGen"
    family = "joint"
    changes = "steps: 50 x CFG to 4 passes; size: 30 % of the blocks deleted"
    Settings = FastLightGenSettings

    def stages(self, budget: float) -> list[StageSpec]:
        s = self.settings
        # Stage I has no training, but its passes are paid from the same budget.
        rest = budget - s.importance.clips * s.importance.times * self.preset.blocks
        if rest <= 0:
            raise UsageError(
                f"fastlightgen: ranking blocks takes {budget - rest:.0f} network passes, the budget is {budget:.0f}: "
                f"raise --budget or lower importance.clips"
            )
        importance = s.importance.model_copy(update={"keep": s.keep})
        recovered = {"importance": "importance"}
        return [
            StageSpec("importance", Importance, importance),
            StageSpec("recover", Recovery, s.recover, recovered, rest * s.recovery_share),
            StageSpec(
                "match",
                DistributionMatching,
                s.match,
                {"importance": "importance", "recovered": "recover"},
                rest * (1 - s.recovery_share),
            ),
        ]

    def sampler(self) -> SamplerSettings:
        match = self.settings.match
        return SamplerSettings(kind="renoise", num_inference_steps=match.steps, shift=match.shift)
