"""The teacher with few steps of a better solver: what a higher-order sampler gains without any training."""

from __future__ import annotations

from baselines.euler import Euler
from flgbench.sampling import SamplerSettings


class UniPC8(Euler):
    """The teacher with 8 UniPC steps and classifier-free guidance."""

    label = "UniPC 8 × CFG"
    kind = "baseline"
    changes = "steps: 50 to 8, second-order solver, untrained"
    steps = 8

    def sampler(self) -> SamplerSettings:
        return super().sampler().model_copy(update={"kind": "unipc", "num_inference_steps": self.steps})


class UniPC4(UniPC8):
    """The teacher with 4 UniPC steps and classifier-free guidance."""

    label = "UniPC 4 × CFG"
    changes = "steps: 50 to 4, second-order solver, untrained"
    steps = 4


class UniPC20(UniPC8):
    """The teacher with 20 UniPC steps and classifier-free guidance."""

    label = "UniPC 20 × CFG"
    changes = "steps: 50 to 20, second-order solver, untrained"
    steps = 20
