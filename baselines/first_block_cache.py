"""The teacher with all its steps, many of them cut short by a cache: the best-known training-free way to skip blocks."""

from __future__ import annotations

from baselines.euler import Euler
from flgbench.sampling import SamplerSettings


class FirstBlockCache(Euler):
    """The teacher with 50 Euler steps and guidance; passes whose first block hardly changes reuse the other blocks."""

    label = "FirstBlockCache 50 × CFG"
    kind = "baseline"
    changes = "about half of the passes end after the first block, untrained"
    inferred = {
        "cache_threshold": "INFERRED: diffusers' default 0.05 is for large models; 0.035 cuts half of the passes of the "
        "shipped teacher short (51 % of 9,000, 90 test clips)"
    }

    def sampler(self) -> SamplerSettings:
        return super().sampler().model_copy(update={"cache_threshold": 0.035})
