"""Faster kernels of tiny networks: the functions, gradients and weights of torch's and diffusers' own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import toy_hunyuan
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import nn

from flgbench.data import shapes
from flgbench.models.cpu_kernels import ProjectedTanhGelu, TanhGelu, normalise, tanh_gelu, with_fast_gelu
from flgbench.models.wan_attention import LeanProcessor
from flgbench.models.wanx import WanX
from flgbench.stage import TrainingData

X = torch.cat([torch.linspace(-12, 12, 4801), torch.randn(1000, generator=torch.Generator().manual_seed(0)), torch.zeros(1)])


def test_gelu_is_as_exact_as_torchs() -> None:
    exact = F.gelu(X.double(), approximate="tanh")
    mine, own = ((y - exact).abs().max() for y in (tanh_gelu(X), F.gelu(X, approximate="tanh")))
    assert mine < 1e-6 and mine < 3 * own
    assert torch.isnan(tanh_gelu(torch.tensor([float("nan")]))).all()


def test_gelu_has_its_gradient_and_leaves_its_input() -> None:
    x, own = X.clone().requires_grad_(), X.clone().requires_grad_()
    tanh_gelu(x).sum().backward()
    F.gelu(own, approximate="tanh").sum().backward()
    assert x.grad is not None and own.grad is not None and torch.equal(x.grad, own.grad)
    kept = X.clone()
    tanh_gelu(kept)
    assert torch.equal(kept, X)


def test_only_tanh_gelus_are_switched() -> None:
    network = nn.Sequential(nn.GELU(), nn.GELU("tanh"))
    assert [type(module) for module in with_fast_gelu(network)] == [nn.GELU, TanhGelu]


@pytest.mark.parametrize("shape", [(2, 80, 128), (1, 7, 24)])
def test_normalise_is_rms_norm(shape: tuple[int, ...]) -> None:
    layer = nn.RMSNorm(shape[-1], eps=1e-6)
    nn.init.normal_(layer.weight)
    x = torch.randn(shape)
    torch.testing.assert_close(normalise(x, layer), layer(x), rtol=1e-6, atol=1e-6)
    low = x.bfloat16()
    assert torch.equal(normalise(low, layer.bfloat16()), layer(low))


def test_a_pass_is_diffusers_own(tiny_model: WanX, tiny_data: TrainingData) -> None:
    """Velocity and gradients, with diffusers' processors and GELU beside the lean ones."""
    lean, own = tiny_model.copy().requires_grad_(True), tiny_model.copy().requires_grad_(True)
    assert any(isinstance(m, ProjectedTanhGelu) for m in own.transformer.modules())
    for module in own.transformer.modules():
        if isinstance(module, ProjectedTanhGelu):
            module.__class__ = ProjectedTanhGelu.__base__
    for block in own.blocks:
        assert isinstance(block.attn1.processor, LeanProcessor)
        block.attn1.set_processor(WanAttnProcessor())
        block.attn2.set_processor(WanAttnProcessor())
    x, t, condition = tiny_data.latents[:2], torch.tensor([0.3, 0.8]), tiny_data.condition.select(slice(0, 2))
    with torch.no_grad():
        torch.testing.assert_close(lean.velocity(x, t, condition), own.velocity(x, t, condition), rtol=1e-5, atol=1e-5)
    for model in (lean, own):
        model.velocity(x, t, condition).pow(2).mean().backward()
    pairs = zip(lean.transformer.named_parameters(), own.transformer.parameters(), strict=True)
    for (name, mine), other in pairs:
        assert mine.grad is not None and other.grad is not None
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


def test_both_families_have_them(tiny_model: WanX) -> None:
    for model in (tiny_model, toy_hunyuan.build()):
        kinds = {type(m) for block in model.blocks for m in block.modules()}
        assert kinds & {ProjectedTanhGelu, TanhGelu} and nn.GELU not in kinds


def test_a_joint_pass_is_diffusers_own() -> None:
    """As above, on both kinds of hunyuan's blocks, with captions of two lengths."""
    lean = toy_hunyuan.build().requires_grad_(True)
    own = lean.copy().requires_grad_(True)
    for module in own.transformer.modules():
        if isinstance(module, TanhGelu | ProjectedTanhGelu):
            module.__class__ = type(module).__base__
    for block in own.blocks:
        block.attn.set_processor(HunyuanVideoAttnProcessor2_0())
    clips = shapes.render(shapes.draw_factors("train", np.arange(2)))
    condition = lean.condition(clips[:, 0], ["a red circle", "a small blue star moves to the left"])
    x, t = torch.randn(2, *lean.latent_shape), torch.tensor([0.3, 0.8])
    assert condition.extras["text_mask"].sum(1).unique().numel() == 2
    with torch.no_grad():
        torch.testing.assert_close(lean.velocity(x, t, condition), own.velocity(x, t, condition), rtol=1e-5, atol=1e-5)
    for model in (lean, own):
        model.velocity(x, t, condition).pow(2).mean().backward()
    for mine, other in zip(lean.transformer.parameters(), own.transformer.parameters(), strict=True):
        assert (mine.grad is None) == (other.grad is None)
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6)
