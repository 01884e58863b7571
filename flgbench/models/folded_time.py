"""Causal 3-D convolutions as 2-D ones: the same weights and, to rounding, the same result.

On a CPU torch's 3-D convolution is several times slower than its 2-D one, most of all at batch 1. A causal convolution
with k_t taps in time equals a 2-D convolution over k_t frames stacked as channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def convolve_folded(conv: nn.Conv3d, x: torch.Tensor, padding: tuple[int, int] = (0, 0)) -> torch.Tensor:
    """`conv` applied to x (B, C, T, H, W) that has its padding in time already; `padding` is that of height and width."""
    taps, stride = conv.kernel_size[0], conv.stride[0]
    batch, channels, frames, height, width = x.shape
    steps = (frames - taps) // stride + 1
    x = x.permute(0, 2, 3, 4, 1)
    if taps > 1:
        x = torch.cat([x[:, k : k + stride * (steps - 1) + 1 : stride] for k in range(taps)], dim=-1)
    elif stride > 1:
        x = x[:, ::stride]
    x = x.reshape(batch * steps, height, width, taps * channels).permute(0, 3, 1, 2)
    weight = conv.weight.permute(0, 2, 1, 3, 4).reshape(conv.out_channels, taps * channels, *conv.kernel_size[1:])
    weight = weight.contiguous(memory_format=torch.channels_last)
    y = F.conv2d(x, weight, conv.bias, stride=conv.stride[1:], padding=padding)
    return y.permute(0, 2, 3, 1).reshape(batch, steps, *y.shape[2:], -1).permute(0, 4, 1, 2, 3)
