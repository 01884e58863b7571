"""Floating-point operations of one network pass, attention included: neither parameters nor time tell them.

Twice: counted by running a pass (any family), and by formula from an architecture's sizes, which needs no pass, no memory
and says where they go. A multiply-add counts two; norms, modulation and softmax, far below 1 %, are left out of both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flgbench.models.base import Condition, SelfAttention, VideoModel


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


@dataclass(frozen=True)
class PassFlops:
    """FLOPs of one forward for one clip, by where they go.

    self_projections: query, key, value and output of self-attention; self_attention: its scores and their weighted sum;
    cross_attention: all of attention on caption and image tokens; feed_forward; rest: what is outside the blocks.
    """

    self_projections: int
    self_attention: int
    cross_attention: int
    feed_forward: int
    rest: int

    @property
    def total(self) -> int:
        return self.self_projections + self.self_attention + self.cross_attention + self.feed_forward + self.rest


def wan_pass_flops(
    config: Mapping[str, Any],
    self_attention: Sequence[SelfAttention],
    latent_size: tuple[int, int, int],
    text_tokens: int,
    image_tokens: int = 0,
    per_token_times: bool = False,
) -> PassFlops:
    """FLOPs of one pass of a `WanTransformer3DModel` with the arguments `config`.

    self_attention: the kind of each block that is there, so a pruned network has a shorter list. latent_size: frames,
    height and width of the latents. image_tokens: of the image encoder, 0 without one. per_token_times: every token has
    its own time (Wan 2.2), so the time embedding is computed for each.
    """
    width = config["num_attention_heads"] * config["attention_head_dim"]
    patch = config.get("patch_size", (1, 2, 2))
    frames, *plane = (size // p for size, p in zip(latent_size, patch, strict=True))
    frame_tokens = math.prod(plane)
    tokens = frames * frame_tokens
    # Query-key pairs. 'frame': the first frame sees itself, every other one itself and the first.
    pairs = {"full": tokens**2, "frame": frame_tokens**2 * (1 + 2 * (frames - 1)), "none": 0}
    blocks, seeing = len(self_attention), sum(kind != "none" for kind in self_attention)

    told = text_tokens + image_tokens
    cross = 4 * tokens * width**2 + 4 * told * width**2 + 4 * tokens * told * width
    times = tokens if per_token_times else 1
    image_dim = config.get("image_dim") or 0
    embedders = (
        times * (config.get("freq_dim", 256) * width + 7 * width**2)  # two layers, then the projection to six modulations
        + text_tokens * (config["text_dim"] * width + width**2)
        + image_tokens * (image_dim**2 + image_dim * width)
    )
    ends = tokens * width * math.prod(patch) * (config["in_channels"] + config["out_channels"])
    return PassFlops(
        self_projections=seeing * 8 * tokens * width**2,
        self_attention=sum(4 * pairs[kind] * width for kind in self_attention),
        cross_attention=blocks * cross,
        feed_forward=blocks * 4 * tokens * width * config["ffn_dim"],
        rest=2 * (embedders + ends),
    )


@dataclass(frozen=True)
class JointPassFlops:
    """FLOPs of one forward for one clip of a network whose video and text attend to each other, by where they go.

    projections: query, key, value and output of both; joint_attention: its scores and their weighted sum; feed_forward;
    rest: modulations and what is outside the blocks.
    """

    projections: int
    joint_attention: int
    feed_forward: int
    rest: int

    @property
    def total(self) -> int:
        return self.projections + self.joint_attention + self.feed_forward + self.rest


def hunyuan_pass_flops(
    config: Mapping[str, Any],
    kinds: Sequence[str],
    self_attention: Sequence[SelfAttention],
    latent_size: tuple[int, int, int],
    text_tokens: int,
) -> JointPassFlops:
    """FLOPs of one pass of a `HunyuanVideoTransformer3DModel` with the arguments `config`, of the form token_replace.

    kinds ('double' or 'single') and self_attention: of each block that is there, so a pruned network has shorter lists.
    latent_size: frames, height and width of the latents. text_tokens: the image's and the caption's.
    """
    width = config["num_attention_heads"] * config["attention_head_dim"]
    inner = int(width * config.get("mlp_ratio", 4.0))
    space, time = config.get("patch_size", 2), config.get("patch_size_t", 1)
    frames, frame = latent_size[0] // time, latent_size[1] // space * (latent_size[2] // space)
    video = frames * frame
    tokens, blocks = video + text_tokens, len(kinds)
    doubles = sum(kind == "double" for kind in kinds)
    # Query-key pairs. 'frame': the first frame sees itself and the text, the others the first one too; the text sees all.
    restricted = frame * (frame + text_tokens) + (video - frame) * (2 * frame + text_tokens) + text_tokens * tokens
    pairs = sum(tokens**2 if kind == "full" else restricted for kind in self_attention)
    # Single blocks put attention and feed-forward through one output layer, the same multiply-adds. A modulation is of a
    # clip, not of tokens; the given frame has one of its own.
    modulations = doubles * (6 + 6 + 6) + (blocks - doubles) * (3 + 3)
    embedding = 256 * width + width**2  # of a time or of a guidance scale
    text = config.get("text_embed_dim", 4096)
    refiner = text_tokens * 12 * width**2 + 2 * text_tokens**2 * width + 2 * width**2
    around = (
        (3 + bool(config.get("guidance_embeds", True))) * embedding  # the clip's time, the given frame's, the refiner's
        + (config.get("pooled_projection_dim", 768) + text) * width
        + 2 * width**2
        + text_tokens * text * width
        + config.get("num_refiner_layers", 2) * refiner
        + 2 * width**2  # the last modulation
        + video * width * space**2 * time * (config["in_channels"] + config["out_channels"])
    )
    return JointPassFlops(
        projections=blocks * 8 * tokens * width**2,
        joint_attention=4 * pairs * width,
        feed_forward=blocks * 4 * tokens * width * inner,
        rest=2 * (modulations * width**2 + around),
    )
