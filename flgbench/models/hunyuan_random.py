"""The architecture of a HunyuanVideo scale with random weights, made on the device it is timed on: no checkpoint, no copy.

How long a pass takes does not depend on the values of its weights. Captions fill all of the text's length, the longest that
a clip takes; the tokenizers are those of the tiny scale, in a template with as many tokens as the stock pipeline's.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice
from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoImageToVideoPipeline, HunyuanVideoTransformer3DModel
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from flgbench.models.base import Placement
from flgbench.models.flops import JointPassFlops, hunyuan_pass_flops
from flgbench.models.hunyuan import Hunyuan
from flgbench.models.hunyuan_attention import prepared
from flgbench.models.hunyuan_presets import CHECKPOINTS, HunyuanCheckpoint, words_read
from flgbench.models.hunyuan_reader import TextReader
from flgbench.models.hunyuan_vae import fold_convolutions
from flgbench.models.parts import configuration
from flgbench.models.random_weights import check_clip, counted, random_part
from flgbench.models.tiny import hunyuan as tiny
from flgbench.models.tiny import hunyuan_text, hunyuan_vae
from flgbench.models.tiny.wanx import TEXT_LENGTH
from flgbench.models.tiny.wanx import build_tokenizer as build_caption_tokenizer

TINY = HunyuanCheckpoint(
    "",
    (17, 64, 64),
    8,
    tiny.SHIFT,
    2.0,
    tiny.TRANSFORMER,
    hunyuan_vae.CONFIG,
    hunyuan_text.LANGUAGE,
    hunyuan_text.VISION,
    hunyuan_text.POOLED,
    negative_caption="",
    text_length=TEXT_LENGTH,
)
CAPTION_STARTS = 103  # position of the caption's first token in the stock pipeline's template


class FilledReader(TextReader):
    """Every caption is repeated until no padding is left."""

    def read(
        self, images: torch.Tensor, captions: Sequence[str], device: torch.device | str = "cpu"
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        log = logging.getLogger(HunyuanVideoImageToVideoPipeline.__module__)
        level = log.level
        log.setLevel(logging.ERROR)  # it would print what CLIP does not read of such long captions
        try:
            return super().read(images, captions, device)
        finally:
            log.setLevel(level)

    def _cut(self, caption: str) -> str:
        return " ".join(islice(cycle(caption.split() or ["a"]), self.length))


def architecture(scale: str) -> HunyuanCheckpoint:
    """How a scale is built; 'tiny' is the recipe's."""
    return TINY if scale == "tiny" else CHECKPOINTS[scale]


def image_tokens(vision: Mapping[str, Any]) -> int:
    """Of an image, before some of them are left out."""
    return (vision["image_size"] // vision["patch_size"]) ** 2


def text_tokens(model: Hunyuan) -> int:
    """The image's and the caption's, as the denoiser reads them."""
    return words_read(model.reader.template["image_emb_len"], model.text_length)


def build(scale: str, clip: tuple[int, int, int], device: str, dtype: torch.dtype) -> Hunyuan:
    """A model of `scale` for clips of (frames, height, width); see `assemble`."""
    return assemble(architecture(scale), clip, device, dtype)


def assemble(checkpoint: HunyuanCheckpoint, clip: tuple[int, int, int], device: str, dtype: torch.dtype) -> Hunyuan:
    """A model built like `checkpoint` for clips of (frames, height, width), each part made when it is first needed, frozen.

    The denoiser and the text encoders are in `dtype`, the autoencoder in fp32. Raises UsageError for a clip that the
    architecture cannot make.
    """
    space = checkpoint.vae.get("spatial_compression_ratio", 8) * checkpoint.transformer["patch_size"]
    check_clip(clip, checkpoint.vae.get("temporal_compression_ratio", 4), (space, space), example=129)

    def denoiser() -> Any:
        return prepared(HunyuanVideoTransformer3DModel(**checkpoint.transformer))

    def vae() -> Any:
        made = AutoencoderKLHunyuanVideo(**checkpoint.vae)
        return fold_convolutions(made) if checkpoint is TINY else made  # as the shipped one: clips whole, faster on a CPU

    return Hunyuan(
        random_part(denoiser, device, dtype, configuration(HunyuanVideoTransformer3DModel, checkpoint.transformer)),
        random_part(vae, device, torch.float32, configuration(AutoencoderKLHunyuanVideo, checkpoint.vae)),
        _reader(checkpoint, device, dtype),
        clip,
        checkpoint.negative_caption,
        placement=Placement(device, dtype),
    )


def _reader(checkpoint: HunyuanCheckpoint, device: str, dtype: torch.dtype) -> TextReader:
    tokenizer, caption_tokenizer = hunyuan_text.build_tokenizer(), build_caption_tokenizer()
    ids = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    vision = CLIPVisionConfig(**checkpoint.vision)
    patches = image_tokens(checkpoint.vision)
    told = LlavaConfig(
        text_config=LlamaConfig(**{"vocab_size": len(tokenizer)} | dict(checkpoint.text_encoder), **ids),
        vision_config=vision,
        image_token_index=hunyuan_text.SPECIAL.index("<image>"),
        image_seq_length=patches,
        vision_feature_layer=-2,
        pad_token_id=0,
    )
    pooled = CLIPTextConfig(**{"vocab_size": len(caption_tokenizer)} | dict(checkpoint.text_encoder_2), **ids)
    llava = random_part(lambda: LlavaForConditionalGeneration(told), device, dtype)
    clip = random_part(lambda: CLIPTextModel(pooled), device, dtype)
    side = {"height": vision.image_size, "width": vision.image_size}
    processor = CLIPImageProcessor(size=side, do_center_crop=False)
    own, starts = hunyuan_text.TEMPLATE, CAPTION_STARTS
    if checkpoint is TINY:
        starts = own["crop_start"]
    # TEMPLATE starts with the image and two words; more of them bring the caption to its place.
    filled = " ".join(["<|end_header_id|>"] * (starts - own["crop_start"]))
    template = {**own, "template": own["template"].replace("<image>", f"<image> {filled}"), "crop_start": starts}
    template |= {"image_emb_end": patches, "image_emb_len": patches}
    return FilledReader(llava, tokenizer, clip, caption_tokenizer, processor, template, checkpoint.text_length)


def pass_flops(model: Any) -> JointPassFlops:
    """FLOPs of one pass of `model`, a `Hunyuan`, as it is, pruned or not, by formula, with a text of full length."""
    config, size = model.transformer.config, model.latent_shape[1:]
    return hunyuan_pass_flops(config, model.block_kinds, model.self_attention, size, text_tokens(model))


def around_flops(model: Any) -> int:
    """FLOPs of a clip outside its denoiser: two captions beside an image, first frame, decoding; `model` is on 'meta'.

    Counted, of the autoencoder's tiles one for all.
    """
    meta, reader = torch.device("meta"), model.reader
    llava, width = reader.text_encoder.model, reader.text_encoder.config.text_config.hidden_size
    length = reader.template["crop_start"] + reader.length + reader.template["image_emb_len"]
    side = reader.text_encoder.config.vision_config.image_size
    hidden = torch.zeros(1, length, width, device=meta, dtype=model.dtype)
    picture = torch.zeros(1, 3, side, side, device=meta, dtype=model.dtype)
    ids = torch.zeros(1, reader.text_encoder_2.config.max_position_embeddings, device=meta, dtype=torch.long)

    def read() -> None:
        llava.language_model(inputs_embeds=hidden)
        llava.get_image_features(picture)
        reader.text_encoder_2(ids)

    vae, (channels, *size) = model.vae, model.latent_shape
    every, space = model.stride
    tile = (vae.tile_sample_min_num_frames // every + 1, *[vae.tile_sample_min_height // space] * 2)
    step = (vae.tile_sample_stride_num_frames // every, *[vae.tile_sample_stride_height // space] * 2)

    def decoded(frames: int, height: int, width: int) -> int:
        return counted(lambda: vae.decoder(torch.zeros(1, channels, frames, height, width, device=meta)))

    def encoded(frames: int, height: int, width: int) -> int:
        return counted(lambda: vae.encoder(torch.zeros(1, 3, frames, height * space, width * space, device=meta)))

    first = _in_tiles(encoded, (1, *size[1:]), tile, step)
    return 2 * counted(read) + first + _in_tiles(decoded, (size[0], *size[1:]), tile, step)


def _in_tiles(work: Callable[..., int], size: Sequence[int], tile: Sequence[int], step: Sequence[int]) -> int:
    """FLOPs of `work` on overlapping tiles that cover `size`: of a whole tile, smaller ones at the ends by their share."""
    whole = [min(n, t) for n, t in zip(size, tile, strict=True)]
    axes = zip(size, tile, step, strict=True)
    shares = (sum(min(t, n - i) for i in range(0, n, s)) / t if n > t else 1.0 for n, t, s in axes)
    return round(work(*whole) * math.prod(shares))


def activation_bytes(model: Any) -> int:
    """About how much a clip needs beyond weights: the larger of a block's temporaries and the decoder's.

    A single block holds some four states in fp32 (norm, rotation), six in its own dtype and three times the inside of the
    feed-forward; the decoder some six maps of its last stage for a tile, and the clip's pixels three times.
    """
    config, itemsize = model.transformer.config, model.dtype.itemsize
    patch = (config.patch_size_t, config.patch_size, config.patch_size)
    tokens = text_tokens(model) + math.prod(n // p for n, p in zip(model.latent_shape[1:], patch, strict=True))
    block = tokens * model.width * (4 * 4 + 6 * itemsize + 3 * int(config.mlp_ratio) * itemsize)
    frames, height, width = model.clip_shape
    vae = model.vae
    tile = min(height, vae.tile_sample_min_height) * min(width, vae.tile_sample_min_width)
    decoder = 6 * vae.config.block_out_channels[1] * min(frames, vae.tile_sample_min_num_frames + 1) * tile * 4
    return max(block, decoder + 3 * frames * height * width * 4 * 3)
