"""Inner blocks are dropped at random in training (stochastic depth, Huang et al. 2016).

A network of about ten blocks has none to spare, a large one has: this gives a tiny teacher the redundancy that pruning is
about.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


class StochasticDepth:
    """Bypasses inner blocks (any but the first and the last), each for a random part of the batch, until `remove`.

    A block takes and returns tokens (B, N, width), or a tuple that begins with such streams; `drop` is the probability with
    which a clip goes around a block.
    """

    def __init__(self, blocks: Iterable[nn.Module], batch: int, drop: float):
        self.drop, inner = drop, list(blocks)[1:-1]
        self.kept = torch.ones(len(inner), batch, dtype=torch.bool)
        self.hooks = [block.register_forward_hook(self._bypass(kept)) for block, kept in zip(inner, self.kept, strict=True)]

    @staticmethod
    def _bypass(kept: torch.Tensor):
        def hook(block: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
            if kept.all():
                return None
            streams = output if isinstance(output, tuple) else (output,)
            # A block's inputs begin with its streams, the rest of them is what it is told.
            chosen = tuple(torch.where(kept[:, None, None], y, x) for x, y in zip(inputs, streams, strict=False))
            return chosen if isinstance(output, tuple) else chosen[0]

        return hook

    def draw(self, generator: torch.Generator) -> None:
        self.kept.copy_(torch.rand(self.kept.shape, generator=generator) >= self.drop)

    def rest(self) -> None:
        """Bypass nothing until the next `draw`: clips may then come in batches of any size."""
        self.kept.fill_(True)

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()
