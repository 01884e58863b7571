"""The published HunyuanVideo image-to-video checkpoint in diffusers layout: how it is built and how it is sampled.

Facts of the repository's own `config.json` files and of the model card; what they leave open is marked INFERRED. Nothing
here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from flgbench.models.published import BlockKind, PublishedCheckpoint

TEMPLATE_TAIL = 4  # tokens behind the caption that the stock pipeline cuts out again
IMAGE_INTERLEAVE = 4  # of the image's tokens every fourth is read: the stock pipeline's choice for `token_replace`
IMAGE_TOKENS = 576  # of a 336-pixel image in patches of 14, and what the stock pipeline's template makes room for

TRANSFORMER: Mapping[str, Any] = {
    "in_channels": 16,
    "out_channels": 16,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "num_layers": 20,
    "num_single_layers": 40,
    "num_refiner_layers": 2,
    "mlp_ratio": 4.0,
    "patch_size": 2,
    "patch_size_t": 1,
    "guidance_embeds": True,
    "text_embed_dim": 4096,
    "pooled_projection_dim": 768,
    "rope_theta": 256.0,
    "rope_axes_dim": (16, 56, 56),
    "image_condition_type": "token_replace",
}
TINY_TRANSFORMER: Mapping[str, Any] = {
    "in_channels": 16,
    "out_channels": 16,
    "num_attention_heads": 3,
    "attention_head_dim": 32,
    "num_layers": 4,
    "num_single_layers": 8,
    "num_refiner_layers": 1,
    "mlp_ratio": 4.0,
    "patch_size": 2,
    "patch_size_t": 1,
    "guidance_embeds": True,
    "text_embed_dim": 64,
    "pooled_projection_dim": 64,
    "rope_theta": 256.0,
    "rope_axes_dim": (8, 12, 12),
    "image_condition_type": "token_replace",
}
# The autoencoder is the default of diffusers' class; its strides stand here for those who build nothing.
VAE: Mapping[str, Any] = {"latent_channels": 16, "spatial_compression_ratio": 8, "temporal_compression_ratio": 4}
LLAMA_3_8B: Mapping[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128320,
    "max_position_embeddings": 8192,
}
CLIP_VIT_L_336: Mapping[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
CLIP_TEXT_L: Mapping[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "projection_dim": 768,
}


@dataclass(frozen=True)
class HunyuanCheckpoint(PublishedCheckpoint):
    """`text_encoder` and `vision` are the two halves of a Llava; `text_encoder_2` is CLIP's text model."""

    vision: Mapping[str, Any]
    text_encoder_2: Mapping[str, Any]


CHECKPOINTS: Mapping[str, HunyuanCheckpoint] = {
    "13b": HunyuanCheckpoint(
        "hunyuanvideo-community/HunyuanVideo-I2V",
        (129, 720, 1280),  # "720p, up to 129 frames"; the stock pipeline's defaults
        24,  # INFERRED: of the model's own scripts, as the negative caption; the card says 129 frames are 5 seconds
        7.0,  # the card's for stable videos, and the folder's scheduler; 17 moves more
        6.0,  # embedded, the card's
        TRANSFORMER,
        VAE,
        LLAMA_3_8B,
        CLIP_VIT_L_336,
        CLIP_TEXT_L,
        negative_caption="deformation, a poor composition and deformed video, bad teeth, bad eyes, bad limbs",
        text_length=256 - TEMPLATE_TAIL,  # of the stock pipeline's 256
    )
}


def words_read(image_tokens: int, text_length: int) -> int:
    """Tokens that the denoiser reads: of an image of `image_tokens`, and of a caption."""
    return -(-image_tokens // IMAGE_INTERLEAVE) + text_length


@dataclass(frozen=True)
class JointSize:
    """Parameters of a `HunyuanVideoTransformer3DModel`: all of them, a double block's and a single block's; and those of
    a LoRA of rank 1 on all linear layers of either."""

    total: int
    double: int
    single: int
    adapted_double: int
    adapted_single: int


def denoiser_size(config: Mapping[str, Any]) -> JointSize:
    """Parameters by the shapes that the arguments of `HunyuanVideoTransformer3DModel` give, without building it."""
    head = config["attention_head_dim"]
    width = config["num_attention_heads"] * head
    inner = int(width * config.get("mlp_ratio", 4.0))
    text, pooled = config.get("text_embed_dim", 4096), config.get("pooled_projection_dim", 768)
    patch = prod((config.get("patch_size_t", 1), config.get("patch_size", 2), config.get("patch_size", 2)))

    def linear(inside: int, outside: int) -> int:
        return inside * outside + outside

    four, norms = 4 * linear(width, width), 2 * head  # query, key, value, output; norms of query and key
    stream = linear(width, 6 * width) + four + norms + linear(width, inner) + linear(inner, width)
    single = linear(width, 3 * width) + 3 * linear(width, width) + norms
    single += linear(width, inner) + linear(width + inner, width)
    refiner = 4 * width + four + linear(width, 4 * width) + linear(4 * width, width) + linear(width, 2 * width)
    embedding = linear(256, width) + linear(width, width)  # of a time or a guidance scale
    around = (
        linear(config["in_channels"] * patch, width)
        + linear(width, config["out_channels"] * patch)
        + linear(width, 2 * width)
        + (2 + bool(config.get("guidance_embeds", True))) * embedding
        + linear(text, width)
        + linear(width, width)
        + linear(pooled, width)
        + linear(width, width)
        + linear(text, width)
        + config.get("num_refiner_layers", 2) * refiner
    )
    blocks = config["num_layers"] * 2 * stream + config["num_single_layers"] * single
    return JointSize(
        total=blocks + around,
        double=2 * stream,
        single=single,
        adapted_double=2 * (7 * width + 8 * width + 2 * (width + inner)),
        adapted_single=4 * width + 6 * width + (width + inner) + (2 * width + inner),
    )


def block_kinds(config: Mapping[str, Any]) -> tuple[BlockKind, ...]:
    """The blocks of a denoiser with the arguments `config`, in the order in which they run."""
    size = denoiser_size(config)
    return (
        BlockKind("double", config["num_layers"], size.double),
        BlockKind("single", config["num_single_layers"], size.single),
    )
