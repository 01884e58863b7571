"""What a HunyuanVideo denoiser computes and weighs, for the estimates of `flgbench.costs`; without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flgbench.costs import BF16, FP32, Calibration, Network, Saved
from flgbench.models.hunyuan_presets import IMAGE_TOKENS, HunyuanCheckpoint, block_kinds, denoiser_size, words_read

# What `costs.SAVED` is of Wan's blocks, of HunyuanVideo's: a mean over 20 double and 40 single ones (40.5 and 36.4 in bf16).
SAVED_JOINT: Saved = {BF16: (37.8, 4.0), FP32: (59.2, 8.0)}


def sizes(
    config: Mapping[str, Any],
    clip: tuple[int, int, int],
    stride: tuple[int, int],
    words: int,
    calibration: Calibration | None = None,
) -> Network:
    """Sizes of a `HunyuanVideoTransformer3DModel` with arguments `config` for clips of (frames, height, width) pixels.

    stride: of the autoencoder in time and in space; words: tokens that it reads, those of the image among them. Its blocks
    compute on video and text tokens alike.
    """
    from flgbench.models.flops import hunyuan_pass_flops  # imports torch

    frames, height, width_px = clip
    kinds = block_kinds(config)
    size, blocks = denoiser_size(config), sum(kind.count for kind in kinds)
    latent = ((frames - 1) // stride[0] + 1, height // stride[1], width_px // stride[1])
    patch = config.get("patch_size", 2)
    tokens = latent[0] // config.get("patch_size_t", 1) * (latent[1] // patch) * (latent[2] // patch) + words
    width = config["num_attention_heads"] * config["attention_head_dim"]
    names = [kind.name for kind in kinds for _ in range(kind.count)]
    frame = config["in_channels"] * latent[1] * latent[2]
    told = words * (config.get("text_embed_dim", 4096) + 1) + config.get("pooled_projection_dim", 768)
    return Network(
        parameters=size.total,
        block_parameters=round(sum(kind.count * kind.parameters for kind in kinds) / blocks),
        blocks=blocks,
        width=width,
        ffn=int(width * config.get("mlp_ratio", 4.0)),
        tokens=tokens,
        flops=hunyuan_pass_flops(config, names, ["full"] * blocks, latent, words).total,
        clip_bytes=FP32 * (latent[0] * frame + frame + told),
        pixels=3 * frames * height * width_px,
        adapted=sum(kind.count * each for kind, each in zip(kinds, (size.adapted_double, size.adapted_single), strict=True)),
        largest_block=size.double,
        saved=SAVED_JOINT,
        calibration=calibration,
    )


def published(facts: HunyuanCheckpoint) -> Network:
    """Sizes of a published checkpoint at its own clip."""
    stride = facts.vae["temporal_compression_ratio"], facts.vae["spatial_compression_ratio"]
    return sizes(facts.transformer, facts.clip, stride, words_read(IMAGE_TOKENS, facts.text_length))
