"""MagicDistillation: weak-to-strong video distillation, W2SVD (arXiv 2503.13319)."""

from __future__ import annotations

from flgbench.contracts import Method, StageSpec
from flgbench.sampling import SamplerSettings
from methods.parts.guidance import with_teacher_guidance
from methods.parts.pruned_start import PrunedStartSettings, dense_or_pruned_start
from methods.parts.weak_to_strong import WeakToStrong, WeakToStrongSettings


class MagicDistillationSettings(PrunedStartSettings):
    """Settings of the distillation and, where `keep` is below 1, of the pruned start before it."""

    match: WeakToStrongSettings = WeakToStrongSettings()


class MagicDistillation(Method):
    """Distribution matching whose real score leans toward the student by a weak LoRA: a dense student of 4 passes."""

    label = "MagicDistillation"
    family = "step"
    changes = "steps: 50 x CFG to 4 passes"
    Settings = MagicDistillationSettings

    def stages(self, budget: float) -> list[StageSpec]:
        start = dense_or_pruned_start(self.settings, budget, self.preset.blocks, "magic_distillation")
        match = with_teacher_guidance(self.settings.match, "guidance_scale", self.preset)
        return [*start.stages, StageSpec("match", WeakToStrong, match, start.inputs, start.budget)]

    def sampler(self) -> SamplerSettings:
        match = self.settings.match
        return SamplerSettings(kind="renoise", num_inference_steps=match.steps, shift=match.shift)
