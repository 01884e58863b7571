"""The architecture of a Wan scale with random weights, made on the device it is timed on: no checkpoint, no copy.

How long a pass takes does not depend on the values of its weights. The tokenizer is that of the tiny scale: a caption is
padded to the same length by any.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

from flgbench.data.captions import NEGATIVE_CAPTION
from flgbench.models.base import Placement
from flgbench.models.flops import PassFlops, wan_pass_flops
from flgbench.models.folded_conv import fold_convolutions
from flgbench.models.parts import configuration
from flgbench.models.random_weights import check_clip, counted, random_part
from flgbench.models.tiny import wanx as tiny
from flgbench.models.tiny import wanx_vae as tiny_vae
from flgbench.models.wan_presets import CHECKPOINTS, WanCheckpoint
from flgbench.models.wanx import WanX, cast, ready

TINY = WanCheckpoint(
    "",
    (17, 64, 64),
    8,
    tiny.SHIFT,
    2.0,
    tiny.TRANSFORMER,
    tiny_vae.CONFIG,
    tiny.TEXT,
    None,
    per_token_times=False,
    negative_caption=NEGATIVE_CAPTION,
    text_length=tiny.TEXT_LENGTH,
)


def architecture(scale: str) -> WanCheckpoint:
    """How a scale is built; 'tiny' is the shipped one's."""
    return TINY if scale == "tiny" else CHECKPOINTS[scale]


def build(scale: str, clip: tuple[int, int, int], device: str, dtype: torch.dtype) -> WanX:
    """A model of `scale` for clips of (frames, height, width); see `assemble`."""
    return assemble(architecture(scale), clip, device, dtype)


def assemble(checkpoint: WanCheckpoint, clip: tuple[int, int, int], device: str, dtype: torch.dtype) -> WanX:
    """A model built like `checkpoint` for clips of (frames, height, width), each part made when it is first needed, frozen.

    The denoiser and the text encoder are in `dtype`, the autoencoder and the image encoder in fp32, as Wan runs them.
    Raises UsageError for a clip that the architecture cannot make.
    """
    space = checkpoint.vae.get("scale_factor_spatial", 8)
    _, down, across = checkpoint.transformer["patch_size"]
    check_clip(clip, checkpoint.vae.get("scale_factor_temporal", 4), (space * down, space * across))
    ids = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    text = UMT5Config(**ids, **{"vocab_size": len(tiny.build_tokenizer())} | dict(checkpoint.text_encoder))
    folded = checkpoint is TINY and device == "cpu"  # as the shipped one: faster there, and too large for long clips

    def denoiser() -> Any:
        return ready(cast(WanTransformer3DModel(**checkpoint.transformer), dtype))

    def vae() -> Any:
        made = AutoencoderKLWan(**checkpoint.vae)
        return fold_convolutions(made) if folded else made

    around: dict[str, Any] = {}
    if (seen := checkpoint.image_encoder) is not None:
        around["image_encoder"] = random_part(lambda: CLIPVisionModel(CLIPVisionConfig(**seen)), device, torch.float32)
        around["image_processor"] = CLIPImageProcessor()  # whose defaults are CLIP's: 224 pixels, bicubic
    return WanX(
        random_part(denoiser, device, dtype, configuration(WanTransformer3DModel, checkpoint.transformer)),
        random_part(vae, device, torch.float32, configuration(AutoencoderKLWan, checkpoint.vae)),
        random_part(lambda: UMT5EncoderModel(text), device, dtype),
        tiny.build_tokenizer(),
        clip,
        checkpoint.text_length,
        checkpoint.negative_caption,
        per_token_times=checkpoint.per_token_times,
        placement=Placement(device, dtype),
        **around,
    )


def pass_flops(model: Any) -> PassFlops:
    """FLOPs of one pass of `model`, a `WanX`, as it is, pruned or not, by formula."""
    config = model.transformer.config
    images = 0
    if model.image_encoder is not None:
        vision = model.image_encoder.config
        images = (vision.image_size // vision.patch_size) ** 2 + 1
    size = model.latent_shape[1:]
    return wan_pass_flops(config, model.self_attention, size, model.text_length, images, model.per_token_times)


def around_flops(model: Any) -> int:
    """FLOPs of a clip outside its denoiser: two captions, first frame, decoding. `model` is on the meta device.

    Counted, but for the autoencoder's later chunks of frames, which are all alike: one is counted for all.
    """
    height, width = model.clip_shape[1:]
    every, latent_frames = model.stride[0], model.latent_shape[1]
    channels, _, *plane = model.latent_shape
    meta = torch.device("meta")

    def encode(n: int) -> int:
        return counted(lambda: model.vae.encode(torch.zeros(1, 3, 1 + every * (n - 1), height, width, device=meta)))

    def decode(n: int) -> int:
        return counted(lambda: model.vae.decode(torch.zeros(1, channels, n, *plane, device=meta)))

    def of_all(work: Callable[[int], int], n: int) -> int:
        return work(n) if n <= 3 else work(2) + (n - 2) * (work(3) - work(2))

    text = counted(lambda: model.text_encoder(torch.zeros(1, model.text_length, dtype=torch.long, device=meta)))
    given = 1 if model.per_token_times else latent_frames
    return 2 * text + of_all(encode, given) + of_all(decode, latent_frames)


def activation_bytes(model: Any) -> int:
    """About how much a clip needs beyond weights: the larger of a block's temporaries and the decoder's.

    A block holds some three states in fp32 (norm, modulation, rotation), four in its own dtype and twice the inside of
    the feed-forward; the decoder some six maps of its last stage, four frames at a time.
    """
    config, itemsize = model.transformer.config, model.dtype.itemsize
    width = config.num_attention_heads * config.attention_head_dim
    tokens = math.prod(n // p for n, p in zip(model.latent_shape[1:], config.patch_size, strict=True))
    modulation = tokens * 6 * width * (itemsize + 4) if model.per_token_times else 0
    block = tokens * (width * (3 * 4 + 4 * itemsize) + 2 * config.ffn_dim * itemsize) + modulation
    frames, height, width_pixels = model.clip_shape
    channels = (model.vae.config.get("decoder_base_dim") or model.vae.config.base_dim) * 2
    side = model.vae.config.get("patch_size") or 1
    decoder = 6 * channels * min(frames, 4) * (height // side) * (width_pixels // side) * 4
    return max(block, decoder + 3 * frames * height * width_pixels * 4 * 3)
