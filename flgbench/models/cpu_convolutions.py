"""Causal 3-D convolutions by 2-D ones: the same weights and, to rounding, the same result.

On a CPU torch's 3-D convolution is several times slower than its 2-D one, most of all at batch 1. A causal convolution
with k_t taps in time equals a 2-D convolution over k_t frames stacked as channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

HALF = 8  # output channels up to which vector registers stay half empty


def convolve_folded(conv: nn.Conv3d, x: torch.Tensor, padding: tuple[int, int] = (0, 0)) -> torch.Tensor:
    """`conv` applied to x (B, C, T, H, W) that has its padding in time already; `padding` is that of height and width."""
    taps, stride = conv.kernel_size[0], conv.stride[0]
    steps = (x.shape[2] - taps) // stride + 1
    x = x.permute(0, 2, 3, 4, 1)
    weight = conv.weight.permute(0, 3, 4, 2, 1)  # (O, h, w, taps, C)
    halved = taps > 1 and conv.stride == (1, 1, 1) and conv.out_channels <= HALF
    if halved and x.device.type == "cpu" and not torch.is_grad_enabled():  # two frames at once
        weight = torch.stack([F.pad(weight, (0, 0, 0, 1)), F.pad(weight, (0, 0, 1, 0))]).flatten(0, 1)
        bias = None if conv.bias is None else conv.bias.repeat(2)
        y = _convolve(_windows_of_two(x, taps, steps), weight, bias, (1, 1), padding)
        y = y.unflatten(-1, (2, -1)).permute(0, 1, 4, 2, 3, 5).flatten(1, 2)[:, :steps]
    else:
        seen = [x[:, k : k + stride * (steps - 1) + 1 : stride] for k in range(taps)]
        y = _convolve(torch.cat(seen, dim=-1) if taps > 1 else seen[0], weight, conv.bias, conv.stride[1:], padding)
    return y.permute(0, 4, 1, 2, 3)


def _windows_of_two(x: torch.Tensor, taps: int, steps: int) -> torch.Tensor:
    """What two neighbouring frames of the result see of x (B, T, H, W, C) together: (B, steps / 2, H, W, (taps + 1) C).

    An odd number of steps is rounded up; the frame that no step sees is the last one again.
    """
    batch, frames, height, width, channels = x.shape
    out = x.new_empty(batch, (steps + 1) // 2, height, width, (taps + 1) * channels)
    for clip, windows in zip(x, out, strict=True):
        for first, window in enumerate(windows):  # frame by frame: cat is several times slower with strides between them
            torch.cat([clip[min(2 * first + k, frames - 1)] for k in range(taps + 1)], dim=-1, out=window)
    return out


def _convolve(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: tuple[int, ...], padding: tuple[int, int]
) -> torch.Tensor:
    """Frames (B, T, H, W, C) by a weight (O, h, w, ...), whose dimensions from the fourth on make C; both channels last."""
    weight = weight.flatten(3).permute(0, 3, 1, 2)
    y = F.conv2d(x.flatten(0, 1).permute(0, 3, 1, 2), weight, bias, stride=stride, padding=padding)
    return y.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])


# Nearest upsampling repeats a sample, so that two of the three taps see the same one. Which taps (columns) meet which of two
# neighbours (rows), for the earlier and the later output of each sample:
_EARLIER, _LATER = ((1, 0, 0), (0, 1, 1)), ((1, 1, 0), (0, 0, 1))


def upsample_and_convolve(conv: nn.Conv3d, x: torch.Tensor) -> torch.Tensor:
    """`conv`, 3x3x3 with replicated edges and causal in time, after nearest upsampling of x (B, C, T, H, W) by two in space
    and of all frames but the first by two in time: (B, O, 2T - 1, 2H, 2W).

    The repeated samples are never made: each of the eight outputs of a sample is a 2x2x2 convolution of the samples
    themselves (sub-pixel convolution, Shi et al. 2016), whose weights are sums of `conv`'s. That is 64 products for 216.
    """
    batch, channels, frames, height, width = x.shape
    in_time = conv.weight.new_tensor((_LATER, _EARLIER))  # of two equal frames the first sees more of the frame before
    in_space = conv.weight.new_tensor((_EARLIER, _LATER))
    kernels = torch.einsum("ocdhw,ptd,qyh,rxw->pqroytcx", conv.weight, in_time, in_space, in_space)
    kernels = kernels.permute(0, 1, 2, 3, 5, 6, 4, 7).reshape(8 * conv.out_channels, 2 * channels, 2, 2)
    x = F.pad(x, (1, 1, 1, 1, 1, 0), mode="replicate").permute(0, 2, 3, 4, 1)
    x = torch.cat([x[:, :-1], x[:, 1:]], dim=-1).flatten(0, 1).permute(0, 3, 1, 2)
    y = F.conv2d(x, kernels.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1)
    y = y.reshape(batch, frames, height + 1, width + 1, 2, 2, 2, conv.out_channels)
    out = y.new_empty(batch, frames, 2, height, 2, width, 2, conv.out_channels)
    for q in range(2):
        for r in range(2):
            out[:, :, :, :, q, :, r] = y[:, :, q : q + height, r : r + width, :, q, r].permute(0, 1, 4, 2, 3, 5)
    out = out.view(batch, 2 * frames, 2 * height, 2 * width, -1)[:, 1:]
    return (out if conv.bias is None else out + conv.bias).permute(0, 4, 1, 2, 3)
