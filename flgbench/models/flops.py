"""Floating-point operations of one network pass, attention included: neither parameters nor time tell them."""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flgbench.models.base import Condition, VideoModel


@torch.no_grad()
def pass_flops(model: VideoModel, condition: Condition) -> int:
    """FLOPs of one forward for one clip: matrix products, convolutions and attention; a multiply-add counts two.

    `condition` is of one clip; only its shapes matter. The pass is not added to the model's tally.
    """
    passes = model.tally.passes
    # The fused CPU attention has no formula in torch's counter; as two matrix products it is counted.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.velocity(torch.zeros(1, *model.latent_shape), torch.full((1,), 0.5), condition)
    model.tally.passes = passes
    return counter.get_total_flops()
