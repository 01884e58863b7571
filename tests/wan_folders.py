"""Random checkpoints of a few thousand weights in the layouts of Wan 2.1 I2V and Wan 2.2 TI2V, written by diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from conftest import SMALL
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanImageToVideoPipeline,
    WanTransformer3DModel,
)
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    UMT5Config,
    UMT5EncoderModel,
)

from flgbench.models.families import WanXFamily
from flgbench.models.tiny.wanx import TEXT
from flgbench.models.wan_presets import WAN_22_VAE

WAN_21, WAN_22 = "Wan 2.1", "Wan 2.2"
SCALE = {WAN_21: "14b", WAN_22: "5b"}
CLIP = (17, 64, 64)
CAPTIONS = ("a small red star moves down", "the blue square")
NEGATIVE = "a star"
TEXT_LENGTH = {WAN_21: 512, WAN_22: 20}  # beside image tokens diffusers reckons with 512
SIDE, SEEN = 28, 32  # of the image encoder: pixels, width


def _statistics(channels: int) -> dict[str, list[float]]:
    """Far from (0, 1): a forgotten normalisation must show."""
    return {
        "latents_mean": [0.05 * c - 0.7 for c in range(channels)],
        "latents_std": [0.6 + 0.02 * c for c in range(channels)],
    }


def _denoiser(layout: str) -> dict[str, Any]:
    width = SMALL["num_attention_heads"] * SMALL["attention_head_dim"]
    if layout == WAN_21:
        return {**SMALL, "in_channels": 36, "out_channels": 16, "image_dim": SEEN, "added_kv_proj_dim": width}
    return {**SMALL, "in_channels": 48, "out_channels": 48}


def _autoencoder(layout: str) -> dict[str, Any]:
    if layout == WAN_21:
        return {"base_dim": 8, "z_dim": 16, "num_res_blocks": 1, **_statistics(16)}
    return {**WAN_22_VAE, "base_dim": 8, "decoder_base_dim": 8, "num_res_blocks": 1, **_statistics(48)}


def build_folder(folder: Path, layout: str) -> Path:
    """Write the checkpoint in several shards, with the clip shape of the procedural clips in its flgbench.json."""
    tokenizer = AutoTokenizer.from_pretrained(WanXFamily().folder("tiny") / "tokenizer")
    seen: dict[str, Any] = {"image_encoder": None, "image_processor": None}
    with torch.random.fork_rng():
        torch.manual_seed(4)
        text = UMT5Config(**TEXT, vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=1, decoder_start_token_id=0)
        if layout == WAN_21:
            sizes = {"hidden_size": SEEN, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
            vision = CLIPVisionConfig(**sizes, image_size=SIDE, patch_size=14)
            size = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
            seen = {"image_encoder": CLIPVisionModel(vision), "image_processor": CLIPImageProcessor(**size)}
        pipeline = WanImageToVideoPipeline(
            tokenizer=tokenizer,
            text_encoder=UMT5EncoderModel(text),
            vae=AutoencoderKLWan(**_autoencoder(layout)),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            transformer=WanTransformer3DModel(**_denoiser(layout)),
            expand_timesteps=layout == WAN_22,
            **seen,
        )
    pipeline.save_pretrained(folder, max_shard_size="150KB")
    own = {"clip_shape": CLIP, "text_length": TEXT_LENGTH[layout], "negative_caption": NEGATIVE, "fps": 8}
    (folder / "flgbench.json").write_text(json.dumps(own))
    return folder
