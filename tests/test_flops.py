"""FLOPs by formula against torch's counter and the published figures."""

from __future__ import annotations

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flgbench.models.base import SelfAttention
from flgbench.models.flops import PassFlops, wan_pass_flops
from flgbench.models.wan_attention import with_kind
from flgbench.models.wan_presets import CHECKPOINTS

SIZES = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "ffn_dim": 40,
    "num_layers": 3,
    "text_dim": 20,
    "patch_size": (1, 2, 2),
}
WAN_21 = SIZES | {"in_channels": 36, "out_channels": 16, "image_dim": 28, "added_kv_proj_dim": 24}
WAN_22 = SIZES | {"in_channels": 48, "out_channels": 48}
LATENT, TEXT = (3, 8, 6), 512  # diffusers takes the first 512 of caption and image tokens for the caption


def counted(config: dict, kinds: tuple[SelfAttention, ...], image_tokens: int, per_token_times: bool) -> int:
    """One pass of the real class on the meta device, as torch counts it."""
    tokens = LATENT[0] * (LATENT[1] // 2) * (LATENT[2] // 2)
    with torch.device("meta"):
        model = WanTransformer3DModel(**config)
        model.blocks = torch.nn.ModuleList(with_kind(b, k, LATENT[0]) for b, k in zip(model.blocks, kinds, strict=False))
        image = torch.zeros(1, image_tokens, config["image_dim"]) if image_tokens else None
        time = torch.zeros(1, tokens) if per_token_times else torch.zeros(1)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            model(torch.zeros(1, config["in_channels"], *LATENT), time, torch.zeros(1, TEXT, config["text_dim"]), image)
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("config", "kinds", "image_tokens", "per_token_times"),
    [
        (WAN_21, ("full",) * 3, 257, False),
        (WAN_21, ("full",) * 2, 257, False),
        (WAN_21, ("full", "frame", "none"), 257, False),
        (WAN_21, ("frame", "frame"), 257, False),
        (WAN_22, ("full",) * 3, 0, True),
        (WAN_22, ("full", "frame"), 0, True),
        (SIZES | {"in_channels": 36, "out_channels": 16}, ("full", "none"), 0, False),
    ],
)
def test_formula_counts_what_torch_counts(config, kinds, image_tokens, per_token_times) -> None:
    found = wan_pass_flops(config, kinds, LATENT, TEXT, image_tokens, per_token_times)
    assert found.total == counted(config, kinds, image_tokens, per_token_times)


def published(scale: str, clip: tuple[int, int, int] | None = None, blocks: int | None = None) -> PassFlops:
    checkpoint = CHECKPOINTS[scale]
    frames, height, width = clip or checkpoint.clip
    space = checkpoint.vae.get("scale_factor_spatial", 8)
    return wan_pass_flops(
        checkpoint.transformer,
        ("full",) * (blocks or checkpoint.transformer["num_layers"]),
        ((frames - 1) // 4 + 1, height // space, width // space),
        checkpoint.text_length,
        257 if checkpoint.image_encoder else 0,
        checkpoint.per_token_times,
    )


def test_published_figures() -> None:
    # Issue and evaluation protocol: 1.69 PFLOP a pass at 480p x 81 frames, 6.54 at 720p.
    assert published("14b").total / 1e15 == pytest.approx(1.69, abs=0.005)
    assert published("14b-720p").total / 1e15 == pytest.approx(6.54, abs=0.005)
    # At 480p attention on 32,760 tokens is more than half, as in no parameter count.
    parts = published("14b")
    assert parts.self_attention == 40 * 4 * 32_760**2 * 5120
    assert 0.5 < parts.self_attention / parts.total < 0.54
    assert parts.rest < 0.001 * parts.total


def test_thirty_percent_of_the_blocks_are_thirty_percent_of_the_work() -> None:
    assert published("14b", blocks=28).total / published("14b").total == pytest.approx(0.7, abs=0.001)


def test_per_token_times_are_counted_for_every_token() -> None:
    with_times, checkpoint = published("5b"), CHECKPOINTS["5b"]
    tokens = 31 * 22 * 40
    width = checkpoint.transformer["num_attention_heads"] * 128
    alone = wan_pass_flops(checkpoint.transformer, ("full",) * 30, (31, 44, 80), 512)
    assert with_times.total - alone.total == 2 * (tokens - 1) * (256 * width + 7 * width**2)
