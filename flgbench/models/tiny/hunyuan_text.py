"""Train the tiny hunyuan text encoders on captions and first frames, before and apart from the denoiser, as the large ones.

`LlavaForConditionalGeneration` learns to continue a caption, shown the clip's first frame: its third-last hidden state is
what the stock pipeline hands to the denoiser, so its last two layers only serve this training. `CLIPTextModel` learns to
tell from its pooled state which words a caption has. Both take a minute.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
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

from flgbench.data import shapes
from flgbench.data.captions import captions_of, vocabulary
from flgbench.models.hunyuan_reader import TextReader
from flgbench.models.tiny.wanx import TEXT_LENGTH
from flgbench.models.tiny.wanx import build_tokenizer as build_caption_tokenizer
from flgbench.training_log import TrainingLog

STEPS, BATCH, LR, SEED = 400, 32, 2e-3, 0
PATCHES = 16  # image tokens
WEIGHTS = "text.safetensors"
SPECIAL = ("<pad>", "</s>", "<unk>", "<image>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "assistant")
# The stock pipeline finds the caption's end by the last <|end_header_id|> and cuts the four tokens up to it out. A single
# prompt that has only two of them it takes for one whose end was lost: there are three.
TEMPLATE: dict[str, Any] = {
    "template": "<image> <|end_header_id|> <|end_header_id|> {} <|eot_id|> <|start_header_id|> assistant <|end_header_id|>",
    "crop_start": 3,
    "image_emb_start": 0,
    "image_emb_end": PATCHES,
    "image_emb_len": PATCHES,
}
LANGUAGE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": shapes.SIZE,
    "patch_size": 16,
    "projection_dim": 32,
}
POOLED = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,  # the stock pipeline pads to this
    "projection_dim": 64,
}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word of the caption grammar and of the template."""
    words = [*SPECIAL, *vocabulary()]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", padding_side="right"
    )


def build() -> TextReader:
    """Freshly initialised encoders (seed 0)."""
    torch.manual_seed(SEED)
    tokenizer, caption_tokenizer = build_tokenizer(), build_caption_tokenizer()
    caption_tokenizer.model_max_length = POOLED["max_position_embeddings"]
    ids = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    llava = LlavaForConditionalGeneration(
        LlavaConfig(
            text_config=LlamaConfig(**LANGUAGE, vocab_size=len(tokenizer), max_position_embeddings=256, **ids),
            vision_config=CLIPVisionConfig(**VISION),
            image_token_index=SPECIAL.index("<image>"),
            image_seq_length=PATCHES,
            vision_feature_layer=-1,
            pad_token_id=0,
        )
    )
    clip = CLIPTextModel(CLIPTextConfig(**POOLED, vocab_size=len(caption_tokenizer), **ids))
    side = {"height": shapes.SIZE, "width": shapes.SIZE}
    processor = CLIPImageProcessor(do_resize=True, size=side, do_center_crop=False)
    for module in (llava, clip):
        module.requires_grad_(False).eval()
    return TextReader(llava, tokenizer, clip, caption_tokenizer, processor, TEMPLATE, TEXT_LENGTH)


def _continuation_loss(reader: TextReader, images: torch.Tensor, captions: list[str]) -> torch.Tensor:
    """Cross-entropy of each next word of the captions, given the image and the words before."""
    lines = [TEMPLATE["template"].format(c).replace("<image>", " ".join(["<image>"] * PATCHES)) for c in captions]
    tokens = reader.tokenizer(lines, padding=True, return_tensors="pt")
    pixels = reader.parts["image_processor"](list(images.permute(0, 3, 1, 2)), return_tensors="pt").pixel_values
    logits = reader.text_encoder(tokens.input_ids, pixels, attention_mask=tokens.attention_mask).logits[:, PATCHES:-1]
    expected = tokens.input_ids[:, PATCHES + 1 :]
    return F.cross_entropy(logits.flatten(0, 1), expected.flatten(), ignore_index=0)


def _words_loss(reader: TextReader, head: nn.Linear, captions: list[str]) -> torch.Tensor:
    """Cross-entropy of which words of the vocabulary are in the captions, told from the pooled state."""
    tokens = reader.parts["tokenizer_2"](captions, padding=True, return_tensors="pt")
    there = torch.zeros(len(captions), head.out_features).scatter_(1, tokens.input_ids, 1.0)
    pooled = reader.parts["text_encoder_2"](tokens.input_ids).pooler_output
    return F.binary_cross_entropy_with_logits(head(pooled), there)


def _encoders(reader: TextReader) -> dict[str, nn.Module]:
    return {"text_encoder": reader.text_encoder, "text_encoder_2": reader.parts["text_encoder_2"]}


def train(folder: Path, steps: int = STEPS, report_every: int = 25) -> TextReader:
    """Train both; the weights are kept in `folder/text.safetensors`, and read from there when it exists."""
    reader, path = build(), folder / WEIGHTS
    modules = _encoders(reader)
    if path.exists():
        saved = load_file(path)
        for name, module in modules.items():
            module.load_state_dict({k[len(name) + 1 :]: v for k, v in saved.items() if k.startswith(name + ".")})
        return reader
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED + 1)
    head = nn.Linear(POOLED["hidden_size"], len(reader.parts["tokenizer_2"]))
    for module in modules.values():
        module.requires_grad_(True).train()
    weights = [p for m in (*modules.values(), head) for p in m.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=LR, betas=(0.9, 0.99), weight_decay=0.01)
    log = TrainingLog(folder / "text-log.jsonl", "text encoders", steps)
    for step in range(steps):
        factors = shapes.draw_factors("train", np.random.default_rng([SEED, step]).integers(0, 10**9, BATCH))
        captions = captions_of(factors)
        continuation = _continuation_loss(reader, shapes.render(factors)[:, 0], captions)
        words = _words_loss(reader, head, captions)
        optimizer.zero_grad()
        (continuation + words).backward()
        optimizer.param_groups[0]["lr"] = LR * min(1.0, (step + 1) / 50, (steps - step) / (0.5 * steps))
        optimizer.step()
        if (step + 1) % report_every == 0:
            log.report(step + 1, loss=round(continuation.item(), 4), words=round(words.item(), 4))
    log.close()
    for module in modules.values():
        module.requires_grad_(False).eval()
    save(reader, folder)
    return reader


def save(reader: TextReader, folder: Path) -> None:
    """Keep the weights of both encoders where `train` looks for them."""
    path, modules = folder / WEIGHTS, _encoders(reader)
    tensors = {f"{name}.{k}": v.clone() for name, module in modules.items() for k, v in module.state_dict().items()}
    save_file(tensors, path.with_suffix(".partial"))
    path.with_suffix(".partial").replace(path)
