"""LCM: latent consistency distillation for video (arXiv 2310.04378, 2312.09109)."""

from __future__ import annotations

from flgbench.contracts import FamilyPreset, Method, StageSpec
from flgbench.models.base import StudentShape
from flgbench.sampling import SamplerSettings
from methods.parts.consistency import ConsistencyDistillation, ConsistencySettings
from methods.parts.guidance import with_teacher_guidance
from methods.parts.pruned_start import PrunedStartSettings, dense_or_pruned_start, pruned_shape


class LCMSettings(PrunedStartSettings):
    """Settings of the distillation and, where `keep` is below 1, of the pruned start before it."""

    distill: ConsistencySettings = ConsistencySettings()


class LCM(Method):
    """Consistency along the teacher's guided trajectory: its 50 guided steps become 4 passes, and motion is mostly lost."""

    label = "LCM"
    family = "step"
    papers = ("2310.04378", "2312.09109")
    changes = "steps: 50 x CFG to 4 passes"
    Settings = LCMSettings

    def __init__(self, settings: LCMSettings, preset: FamilyPreset) -> None:
        distill = with_teacher_guidance(settings.distill, "guidance_scale", preset)
        super().__init__(settings.model_copy(update={"distill": distill}), preset)

    def stages(self, budget: float) -> list[StageSpec]:
        start = dense_or_pruned_start(self.settings, budget, self.preset.blocks, "lcm")
        distill = StageSpec("distill", ConsistencyDistillation, self.settings.distill, start.inputs, start.budget)
        return [*start.stages, distill]

    def sampler(self) -> SamplerSettings:
        distill = self.settings.distill
        return SamplerSettings(kind="renoise", num_inference_steps=distill.steps, shift=distill.shift)

    def keeps_network(self) -> bool:
        return self.settings.keep == 1

    def shape(self) -> StudentShape:
        return pruned_shape(self.settings.keep, self.preset)
