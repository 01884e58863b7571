"""ICMD, the distillation of VDMini (arXiv 2411.18375), on a DiT: our adaptation."""

from __future__ import annotations

from flgbench.contracts import Method, StageSpec
from flgbench.errors import UsageError
from flgbench.models.base import StudentShape
from flgbench.sampling import SamplerSettings
from methods.parts.content import ContentDistillation, ContentSettings, shallow_blocks


class ICMD(Method):
    """Shallow blocks deleted; the rest learns from the teacher's states and a multi-frame discriminator. Steps stay."""

    label = "ICMD (our adaptation)"
    family = "size"
    papers = ("2411.18375",)
    changes = "size: 30 % of the blocks deleted, the shallow ones; 50 steps x CFG stay"
    Settings = ContentSettings

    def stages(self, budget: float) -> list[StageSpec]:
        keep, blocks = self.settings.keep, self.preset.blocks
        if not self._dropped():
            raise UsageError(
                f"icmd.keep must be below 1: ICMD deletes blocks, and {keep} of {blocks} blocks deletes none; "
                f"choose at most {(blocks - 1) / blocks:g}"
            )
        return [StageSpec("content", ContentDistillation, self.settings, budget=budget)]

    def sampler(self) -> SamplerSettings:
        return self.preset.teacher_sampler()

    def shape(self) -> StudentShape:
        return StudentShape.without(self.preset.blocks, self._dropped())

    def _dropped(self) -> list[int]:
        return shallow_blocks(self.settings.keep, self.preset.block_sizes)
