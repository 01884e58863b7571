"""The published Wan checkpoints in diffusers layout: what they are called, how they are built, how they are sampled.

Facts of the repositories' own `config.json` files and of Wan's generation settings. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from flgbench.models.published import PublishedCheckpoint

# Wan 2.1's VAE is the default of diffusers' class.
WAN_21_VAE: Mapping[str, Any] = {"base_dim": 96, "z_dim": 16}
WAN_22_VAE: Mapping[str, Any] = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "scale_factor_temporal": 4,
    "latents_mean": [0.0] * 48,  # a checkpoint brings its own; zeros and ones leave random weights' latents as they are
    "latents_std": [1.0] * 48,
}
# What Wan's own generation scripts extrapolate away from (`sample_neg_prompt`); those of 2.1's I2V put camera shake first.
NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，"
    "丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，"
    "杂乱的背景，三条腿，背景人很多，倒着走"
)
UMT5_XXL: Mapping[str, Any] = {
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "vocab_size": 256384,
}
CLIP_VIT_H: Mapping[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 224,
    "projection_dim": 1024,
    "hidden_act": "gelu",
}


def _denoiser(heads: int, ffn: int, layers: int, channels: tuple[int, int], **more: Any) -> dict[str, Any]:
    """Arguments of `WanTransformer3DModel` that tell Wan's sizes apart; the others are the class's defaults."""
    inside, outside = channels
    return {
        "num_attention_heads": heads,
        "attention_head_dim": 128,
        "ffn_dim": ffn,
        "num_layers": layers,
        "in_channels": inside,
        "out_channels": outside,
        "text_dim": 4096,
        "patch_size": (1, 2, 2),
    } | more


@dataclass(frozen=True)
class DenoiserSize:
    """Parameters of a `WanTransformer3DModel`: all of them, one block's, and those of a block's self-attention."""

    total: int
    block: int
    self_attention: int


def denoiser_size(config: Mapping[str, Any]) -> DenoiserSize:
    """Parameters by the shapes that the arguments of `WanTransformer3DModel` give, without building it.

    Self-attention counts its three rows of the block's modulation table, which go with it when it is deleted.
    """
    width = config["num_attention_heads"] * config["attention_head_dim"]
    ffn, text, frequencies = config["ffn_dim"], config.get("text_dim", 4096), config.get("freq_dim", 256)
    image, added = config.get("image_dim"), config.get("added_kv_proj_dim")
    patch = prod(config.get("patch_size", (1, 2, 2)))

    def linear(inside: int, outside: int) -> int:
        return inside * outside + outside

    attention = 4 * linear(width, width) + 2 * width  # and the norms of query and key
    image_attention = 2 * linear(added, width) + width if added else 0
    block = (
        2 * attention
        + image_attention
        + 2 * width * config.get("cross_attn_norm", True)
        + linear(width, ffn)
        + linear(ffn, width)
        + 6 * width
    )
    times = linear(frequencies, width) + linear(width, width) + linear(width, 6 * width)
    captions = linear(text, width) + linear(width, width)
    images = 2 * image + linear(image, image) + linear(image, width) + 2 * width if image else 0
    around = linear(config["in_channels"] * patch, width) + linear(width, config["out_channels"] * patch) + 2 * width
    total = config["num_layers"] * block + times + captions + images + around
    return DenoiserSize(total, block, attention + 3 * width)


@dataclass(frozen=True)
class WanCheckpoint(PublishedCheckpoint):
    """One published checkpoint.

    `transformer`, `vae`, `text_encoder` and `image_encoder` are arguments of diffusers' and transformers' own classes;
    `image_encoder` is None where the first frame reaches the denoiser through its latents alone (Wan 2.2).
    `per_token_times`: the first latent frame is given clean, at time 0, and every token has its own time (Wan 2.2 TI2V,
    diffusers' `expand_timesteps`); otherwise it is concatenated with a mask.
    """

    image_encoder: Mapping[str, Any] | None
    per_token_times: bool
    text_length: int = field(default=512, kw_only=True)


_I2V_14B = _denoiser(40, 13824, 40, (36, 16), image_dim=1280, added_kv_proj_dim=5120)

_I2V_480P = WanCheckpoint(
    "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
    (81, 480, 832),
    16,
    3.0,
    5.0,
    _I2V_14B,
    WAN_21_VAE,
    UMT5_XXL,
    CLIP_VIT_H,
    per_token_times=False,
    negative_caption="镜头晃动，" + NEGATIVE,
)
_I2V_720P = replace(_I2V_480P, repository="Wan-AI/Wan2.1-I2V-14B-720P-Diffusers", clip=(81, 720, 1280), shift=5.0)

CHECKPOINTS: Mapping[str, WanCheckpoint] = {
    "14b": _I2V_480P,
    "14b-720p": _I2V_720P,
    "5b": WanCheckpoint(
        "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
        (121, 704, 1280),
        24,
        5.0,
        5.0,
        _denoiser(24, 14336, 30, (48, 48)),
        WAN_22_VAE,
        UMT5_XXL,
        None,
        per_token_times=True,
        negative_caption=NEGATIVE,
    ),
}
