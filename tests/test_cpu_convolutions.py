"""Convolutions of tiny autoencoders on a CPU: the numbers and the gradients of torch's and diffusers' own.

Drawn cases are computed in float64: in float32 a weight's gradient sums thousands of terms, diffusers' own is off by 4e-4.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLHunyuanVideo
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import HunyuanVideoUpsampleCausal3D
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flgbench.models.cpu_convolutions import HALF, convolve_folded, upsample_and_convolve
from flgbench.models.hunyuan_vae import FoldedHunyuanConv3d, SubPixelUpsample, fold_convolutions
from flgbench.models.tiny import hunyuan_vae

sides = st.integers(1, 6)


def gradients(y: torch.Tensor, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Of a sum in which every output counts differently."""
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    return torch.autograd.grad((weights * y).sum(), inputs)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 2),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(1, 6),
    sides,
    sides,
    st.integers(0, 9),
    st.booleans(),
)
def test_upsampling_equals_diffusers_own(batch, channels, out, frames, height, width, seed, bias) -> None:
    torch.manual_seed(seed)
    stock = HunyuanVideoUpsampleCausal3D(channels, out, bias=bias, upsample_factor=(2, 2, 2)).double()
    x = torch.randn(batch, channels, frames, height, width, dtype=torch.float64, requires_grad=True)
    expected, found = stock(x), upsample_and_convolve(stock.conv.conv, x)
    assert found.shape == expected.shape == (batch, out, 2 * frames - 1, 2 * height, 2 * width)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    leaves = [x, *stock.parameters()]
    for mine, own in zip(gradients(found, leaves), gradients(expected, leaves), strict=True):
        torch.testing.assert_close(mine, own, rtol=1e-9, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([1, 2, 3]),
    st.sampled_from([(1, 1, 1), (1, 2, 2), (2, 1, 1), (2, 2, 2)]),
    st.integers(1, 5),
    st.sampled_from([1, HALF, HALF + 1]),
    st.integers(1, 6),
    sides,
    sides,
    st.booleans(),
)
def test_a_folded_convolution_equals_torchs(taps, stride, channels, out, steps, height, width, bias) -> None:
    """With its gradient, and without one, where few output channels are computed for two frames at once."""
    torch.manual_seed(taps + channels + steps)
    conv = nn.Conv3d(channels, out, (taps, 3, 3), stride=stride, bias=bias).double()
    x = torch.randn(2, channels, stride[0] * (steps - 1) + taps, height, width, dtype=torch.float64, requires_grad=True)
    expected, found = conv(F.pad(x, (1, 1, 1, 1, 0, 0))), convolve_folded(conv, x, (1, 1))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(convolve_folded(conv, x, (1, 1)), expected, rtol=1e-9, atol=1e-9)
    leaves = [x, *conv.parameters()]
    for mine, own in zip(gradients(found, leaves), gradients(expected, leaves), strict=True):
        torch.testing.assert_close(mine, own, rtol=1e-9, atol=1e-9)


def test_the_tiny_autoencoder_equals_diffusers_own() -> None:
    """With both forms in it, and with the weights under diffusers' names."""
    torch.manual_seed(0)
    stock = AutoencoderKLHunyuanVideo(**hunyuan_vae.CONFIG).eval()
    with torch.no_grad():
        for parameter in stock.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    fast = hunyuan_vae.build().eval()
    fast.load_state_dict(stock.state_dict())
    kinds = [type(module) for module in fast.modules()]
    assert kinds.count(SubPixelUpsample) == 2 and FoldedHunyuanConv3d in kinds
    latents, pixels = torch.randn(1, 16, 5, 8, 8), torch.rand(1, 3, 17, 64, 64) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(fast.decoder(latents), stock.decoder(latents), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(fast.encoder(pixels), stock.encoder(pixels), rtol=1e-3, atol=1e-4)


def test_upsampling_in_space_alone_stays_diffusers_own() -> None:
    vae = fold_convolutions(AutoencoderKLHunyuanVideo(**hunyuan_vae.CONFIG))
    factors = {tuple(m.upsample_factor): type(m) for m in vae.modules() if isinstance(m, HunyuanVideoUpsampleCausal3D)}
    assert factors == {(1, 2, 2): HunyuanVideoUpsampleCausal3D, (2, 2, 2): SubPixelUpsample}
