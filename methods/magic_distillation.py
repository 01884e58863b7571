"""MagicDistillation: weak-to-strong video distillation, W2SVD (arXiv 2503.13319)."""

from __future__ import annotations

from flgbench.contracts import FamilyPreset, Method, StageSpec
from flgbench.models.base import StudentShape
from flgbench.sampling import SamplerSettings
from methods.parts.guidance import with_teacher_guidance
from methods.parts.pruned_start import PrunedStartSettings, dense_or_pruned_start, pruned_shape
from methods.parts.weak_to_strong import WeakToStrong, WeakToStrongSettings


class MagicDistillationSettings(PrunedStartSettings):
    """Settings of the distillation and, where `keep` is below 1, of the pruned start before it."""

    match: WeakToStrongSettings = WeakToStrongSettings()


class MagicDistillation(Method):
    """Distribution matching whose real score leans toward the student by a weak LoRA: a dense student of 4 passes."""

    label = "MagicDistillation"
    family = "step"
    papers = ("2503.13319",)
    changes = "steps: 50 x CFG to 4 passes"
    Settings = MagicDistillationSettings

    def __init__(self, settings: MagicDistillationSettings, preset: FamilyPreset) -> None:
        match = with_teacher_guidance(settings.match, "guidance_scale", preset)
        super().__init__(settings.model_copy(update={"match": match}), preset)

    def stages(self, budget: float) -> list[StageSpec]:
        start = dense_or_pruned_start(self.settings, budget, self.preset.blocks, "magic_distillation")
        match = StageSpec("match", WeakToStrong, self.settings.match, start.inputs, start.budget)
        return [*start.stages, match]

    def sampler(self) -> SamplerSettings:
        match = self.settings.match
        return SamplerSettings(kind="renoise", num_inference_steps=match.steps, shift=match.shift)

    def keeps_network(self) -> bool:
        return self.settings.keep == 1

    def shape(self) -> StudentShape:
        return pruned_shape(self.settings.keep, self.preset)
