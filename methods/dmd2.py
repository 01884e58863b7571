"""DMD2: improved distribution matching distillation (arXiv 2405.14867)."""

from __future__ import annotations

from flgbench.contracts import FamilyPreset, Method, StageSpec
from flgbench.sampling import SamplerSettings
from methods.parts.distribution_matching import DistributionMatching, MatchSettings
from methods.parts.guidance import with_teacher_guidance


class DMD2(Method):
    """Distribution matching with two time scales: the teacher's 50 guided steps become 4 passes of a dense student."""

    label = "DMD2"
    family = "step"
    papers = ("2405.14867",)
    changes = "steps: 50 x CFG to 4 passes"
    Settings = MatchSettings

    def __init__(self, settings: MatchSettings, preset: FamilyPreset) -> None:
        super().__init__(with_teacher_guidance(settings, "beta1", preset), preset)

    def stages(self, budget: float) -> list[StageSpec]:
        return [StageSpec("match", DistributionMatching, self.settings, budget=budget)]

    def sampler(self) -> SamplerSettings:
        return SamplerSettings(kind="renoise", num_inference_steps=self.settings.steps, shift=self.settings.shift)

    def keeps_network(self) -> bool:
        return True
