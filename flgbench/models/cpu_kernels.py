"""Parts of small denoisers on a CPU: the same functions, to rounding, from faster or fewer kernels.

A pass of a tiny network is about a thousand kernels of some microseconds each, and torch's own tanh-GELU takes half as long
again as the vectorised tanh and the products that it consists of. On other devices all here is torch's own.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.activations import GELU
from torch import nn

_SLOPE = math.sqrt(2 / math.pi)
_CUBIC = 0.044715
_CACHED = 2**17  # numbers at a time: what a kernel leaves is still in the cache for the next


class _TanhGelu(torch.autograd.Function):
    """Forward from vectorised kernels, backward by torch's own."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        result, slope = torch.empty_like(x, memory_format=torch.contiguous_format), x.new_tensor(_SLOPE)
        for part, out in zip(x.reshape(-1).split(_CACHED), result.view(-1).split(_CACHED), strict=True):
            torch.addcmul(slope, part, part, value=_SLOPE * _CUBIC, out=out)
            out.mul_(part).tanh_().add_(1).mul_(part).mul_(0.5)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return torch.ops.aten.gelu_backward(gradients[0], x, approximate="tanh")


def tanh_gelu(x: torch.Tensor) -> torch.Tensor:
    """x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), as `F.gelu(x, approximate="tanh")`."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return F.gelu(x, approximate="tanh")
    return _TanhGelu.apply(x)


class TanhGelu(nn.GELU):
    """torch's `nn.GELU("tanh")`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return tanh_gelu(x)


class ProjectedTanhGelu(GELU):
    """diffusers' `GELU("tanh")`, which has a linear layer before it."""

    def gelu(self, gate: torch.Tensor) -> torch.Tensor:
        return tanh_gelu(gate)


def with_fast_gelu(network: nn.Module) -> nn.Module:
    """Switch every tanh-GELU of `network` to the faster form, in place. Weights and their names stay."""
    faster: dict[type, type] = {nn.GELU: TanhGelu, GELU: ProjectedTanhGelu}
    for module in network.modules():
        if type(module) in faster and module.approximate == "tanh":
            module.__class__ = faster[type(module)]
    return network


def turns_of(rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Unit complex numbers (..., D/2) of cosines and sines (..., D), which have every angle twice."""
    cos, sin = (part[..., ::2].float().contiguous() for part in rotary)
    return torch.complex(cos, sin)


def rotate(x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of x (B, N, heads, D): neighbouring channels (2i, 2i + 1) are one complex number that turns."""
    turned = torch.view_as_complex(x.float().unflatten(-1, (-1, 2))) * turns
    return torch.view_as_real(turned).flatten(-2).type_as(x)


def normalise(x: torch.Tensor, layer: Any) -> torch.Tensor:
    """`layer`(x) of an RMS norm of torch or diffusers, which take more and slower kernels for it."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return layer(x)
    scale = ((x * x).sum(-1, keepdim=True) * (1 / x.shape[-1]) + layer.eps).rsqrt()
    return x * scale * layer.weight
