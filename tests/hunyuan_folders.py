"""A random checkpoint of a few thousand weights in the layout of HunyuanVideo-I2V, written by diffusers.

Its tokenizer takes words and punctuation apart as the published one does, so that the stock pipeline's template has its
length: the caption's first token is the 103rd, and the image's 576 tokens stand where they should.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoImageToVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video_image2video import DEFAULT_PROMPT_TEMPLATE
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from flgbench.data.captions import vocabulary
from flgbench.models.tiny import hunyuan_text, hunyuan_vae
from flgbench.models.tiny.hunyuan import TRANSFORMER
from flgbench.models.tiny.wanx import build_tokenizer as build_caption_tokenizer

SCALE = "13b"
CLIP = (17, 64, 64)
DOUBLES, SINGLES = 2, 3
DENOISER = {**TRANSFORMER, "num_attention_heads": 1, "num_layers": DOUBLES, "num_single_layers": SINGLES}
# As the published one, with attention in the middle; its scale gives random latents a spread near 1.
VAE = {**hunyuan_vae.CONFIG, "scaling_factor": 5.0, "mid_block_add_attention": True}
LANGUAGE = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
VISION = {**hunyuan_text.VISION, "hidden_size": 16, "intermediate_size": 16, "image_size": 48, "patch_size": 2}
BOS, PAD, UNKNOWN = "<|begin_of_text|>", "<pad>", "<unk>"
SPECIAL = (PAD, BOS, UNKNOWN, "<image>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
WORDS = pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\n+|\s"), "isolated")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word of the template and of the caption grammar, with a token at the beginning, as Llama's."""
    plain = re.sub("|".join(map(re.escape, SPECIAL)), "\0", DEFAULT_PROMPT_TEMPLATE["template"].replace("{}", "\0"))
    texts = [*plain.split("\0"), *vocabulary(), *(f" {word}" for word in vocabulary())]
    known = dict.fromkeys([*SPECIAL, *(token for text in texts for token, _ in WORDS.pre_tokenize_str(text))])
    ids = {token: i for i, token in enumerate(known)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = WORDS
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(f"{BOS} $A", special_tokens=[(BOS, ids[BOS])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, unk_token=UNKNOWN, padding_side="right"
    )


def build_folder(folder: Path) -> Path:
    """Write the checkpoint in several shards, with the clip shape of the procedural clips in its flgbench.json."""
    tokenizer, caption_tokenizer = build_tokenizer(), build_caption_tokenizer()
    caption_tokenizer.model_max_length = 77
    ids = {"pad_token_id": SPECIAL.index(PAD), "bos_token_id": SPECIAL.index(BOS), "eos_token_id": None}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        llava = LlavaForConditionalGeneration(
            LlavaConfig(
                text_config=LlamaConfig(**LANGUAGE, vocab_size=len(tokenizer), max_position_embeddings=2048, **ids),
                vision_config=CLIPVisionConfig(**VISION),
                image_token_index=SPECIAL.index("<image>"),
                image_seq_length=576,
                vision_feature_layer=-2,
                pad_token_id=SPECIAL.index(PAD),
            )
        )
        pooled = {
            **hunyuan_text.POOLED,
            "vocab_size": len(caption_tokenizer),
            "pad_token_id": 0,
            "bos_token_id": None,
            "eos_token_id": 1,
        }
        side = VISION["image_size"]
        pipeline = HunyuanVideoImageToVideoPipeline(
            text_encoder=llava,
            tokenizer=tokenizer,
            transformer=HunyuanVideoTransformer3DModel(**DENOISER),
            vae=AutoencoderKLHunyuanVideo(**VAE),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
            text_encoder_2=CLIPTextModel(CLIPTextConfig(**pooled)),
            tokenizer_2=caption_tokenizer,
            image_processor=CLIPImageProcessor(
                size={"shortest_edge": side}, crop_size={"height": side, "width": side}, do_center_crop=True
            ),
        )
    pipeline.save_pretrained(folder, max_shard_size="150KB")
    (folder / "flgbench.json").write_text(json.dumps({"clip_shape": CLIP, "fps": 8}))
    return folder
