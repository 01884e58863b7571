"""FirstBlockCache: leave out a pass's other blocks while the first block's residual hardly changes (training-free).

Per guidance branch (methods.md 9; diffusers `hooks/first_block_cache.py`, after ParaAttention): with r_i the residual of
block 1 in pass i, the blocks 2 ... n of pass i are replaced by their last computed joint residual when
mean|r_i - r| / mean|r| <= threshold, r being that of the last pass that was computed.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from diffusers.hooks import FirstBlockCacheConfig, HookRegistry, ModelHook, apply_first_block_cache

from flgbench.models.base import VideoModel


class BlockCounter(ModelHook):
    """Counts how often a block is really computed: applied before the cache, it lies inside the cache's own hook."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = 0

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self.runs += 1
        return args, kwargs


class FirstBlockCache:
    """`model`: a copy of a model with diffusers' hooks on its blocks; the original is left as it is.

    Of a batch diffusers decides by the mean over all clips, so that only clips computed alone are independent of others.
    """

    def __init__(self, model: VideoModel, threshold: float) -> None:
        self.model = model.copy()
        self.counters = [BlockCounter() for _ in self.model.blocks]
        for block, counter in zip(self.model.blocks, self.counters, strict=True):
            HookRegistry.check_if_exists_or_initialize(block).register_hook(counter, "flgbench_block_counter")
        apply_first_block_cache(self.model.transformer, FirstBlockCacheConfig(threshold))

    def branch(self, name: str) -> AbstractContextManager[None]:
        """Around a pass: which cache it uses. The guidance branches 'cond' and 'uncond' differ too much to share one."""
        return self.model.transformer.cache_context(name)

    def reset(self) -> None:
        """Forget all residuals. The next pass is computed whole."""
        for block in self.model.blocks:
            HookRegistry.check_if_exists_or_initialize(block).reset_stateful_hooks(recurse=False)

    @property
    def computed_share(self) -> float:
        """Block computations really done over those of the same passes without a cache (the first is always done)."""
        return sum(c.runs for c in self.counters) / (self.counters[0].runs * len(self.counters))
