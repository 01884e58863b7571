"""The teacher itself, sampled by Euler: the reference of every speed-up, and the same solver with too few steps."""

from __future__ import annotations

from typing import ClassVar

from flgbench.contracts import Baseline, Kind
from flgbench.sampling import SamplerSettings


class Euler(Baseline):
    """The teacher with 50 Euler steps and classifier-free guidance: the reference of every speed-up."""

    label = "Euler 50 × CFG (teacher)"
    kind: ClassVar[Kind] = "reference"
    changes = "nothing"

    def row_label(self) -> str:
        return self.label.replace(" × CFG", ", embedded guidance") if self.preset.guidance_is_embedded else self.label

    def sampler(self) -> SamplerSettings:
        return self.preset.teacher_sampler()


class Euler4(Euler):
    """The teacher with only 4 Euler steps and classifier-free guidance."""

    label = "Euler 4 × CFG"
    kind = "baseline"
    changes = "steps: 50 to 4, untrained"

    def sampler(self) -> SamplerSettings:
        return super().sampler().model_copy(update={"num_inference_steps": 4})


class Euler2(Euler):
    """The teacher with 2 Euler steps and classifier-free guidance: as many passes as a 4-step student takes."""

    label = "Euler 2 × CFG"
    kind = "baseline"
    changes = "steps: 50 to 2, untrained"

    def sampler(self) -> SamplerSettings:
        return super().sampler().model_copy(update={"num_inference_steps": 2})


class Euler4NoGuidance(Euler4):
    """The teacher with 4 Euler steps and no guidance: the cost of a 4-pass student without its training."""

    label = "Euler 4, no CFG"
    changes = "steps: 50 to 4, guidance off, untrained"

    def sampler(self) -> SamplerSettings:
        return super().sampler().model_copy(update={"guidance_scale": 1.0, "embedded_guidance": None})
