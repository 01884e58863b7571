"""Train tiny wanx: UMT5 text encoder and `WanTransformer3DModel` together, on latents of the tiny autoencoder.

Hidden matrices are trained with Muon, everything else with AdamW; the learning rate is constant and falls to zero over
the last half of the steps, so a longer training can go on from any checkpoint of the constant part. The shipped
weights are the EMA.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from flgbench import flow
from flgbench.checkpoint import load_checkpoint, save_checkpoint
from flgbench.data import shapes
from flgbench.data.captions import NEGATIVE_CAPTION, captions_of, vocabulary
from flgbench.models.base import Condition
from flgbench.models.tiny import parallel
from flgbench.models.tiny.muon import Muon
from flgbench.models.tiny.stochastic_depth import StochasticDepth
from flgbench.models.wanx import WanX
from flgbench.training_log import TrainingLog

TEXT_LENGTH, SHIFT, CAPTION_DROPOUT = 20, 3.0, 0.1
TRANSFORMER = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "in_channels": 36,
    "out_channels": 16,
    "text_dim": 64,
    "freq_dim": 64,
    "ffn_dim": 512,
    "num_layers": 10,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 64,
}
TEXT = {"d_model": 64, "d_kv": 16, "num_heads": 4, "d_ff": 128, "num_layers": 2, "dropout_rate": 0.0}
BATCH, MUON_LR, ADAM_LR, EMA_DECAY, SEED = 24, 2e-3, 1e-3, 0.999, 0
DECAY = 0.5  # share of the steps over which the learning rate falls to zero
BLOCK_DROP = 0.15  # probability that an inner block (any but the first and the last) is bypassed, for each clip


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word of the caption grammar; an end token closes every caption."""
    words = ["<pad>", "</s>", "<unk>", *vocabulary()]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=TEXT_LENGTH
    )


def build(vae) -> WanX:
    """Freshly initialised text encoder and transformer (seed 0) around a trained autoencoder."""
    torch.manual_seed(SEED)
    tokenizer = build_tokenizer()
    text_encoder = UMT5EncoderModel(
        UMT5Config(**TEXT, vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=1, decoder_start_token_id=0)
    )
    transformer = WanTransformer3DModel(**TRANSFORMER)
    return WanX(transformer, vae, text_encoder, tokenizer, (shapes.FRAMES, shapes.SIZE, shapes.SIZE), TEXT_LENGTH)


@torch.no_grad()
def encode_clips(model: WanX, split: str, first: int, count: int, batch: int = 8) -> dict[str, torch.Tensor]:
    """Latents of `count` clips from `first` on: `video` and `image`, both (count, 16, 5, 8, 8) fp16."""
    video, image = [], []
    for start in range(first, first + count, batch):
        clips = shapes.render(shapes.draw_factors(split, np.arange(start, min(start + batch, first + count))))
        video.append(model.encode_video(clips).half())
        image.append(model.encode_image(clips[:, 0])[:, 4:].half())
    return {"video": torch.cat(video).contiguous(), "image": torch.cat(image).contiguous()}


def _optimizers(model: WanX) -> list[torch.optim.Optimizer]:
    matrices = [p for p in model.transformer.blocks.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    everything = [*model.transformer.parameters(), *model.text_encoder.parameters()]
    rest = [p for p in everything if id(p) not in chosen]
    return [
        Muon(matrices, lr=MUON_LR),
        torch.optim.AdamW(rest, lr=ADAM_LR, betas=(0.9, 0.99), weight_decay=0.01),
    ]


def weights_of(model: WanX) -> dict[str, torch.Tensor]:
    """Denoiser and text encoder, the parts that are trained together: keys `transformer.*` and `text_encoder.*`."""
    pairs = [("transformer", model.transformer), ("text_encoder", model.text_encoder)]
    return {f"{name}.{k}": v for name, module in pairs for k, v in module.state_dict().items()}


def _embed(model: WanX, tokens: dict[str, torch.Tensor], index: torch.Tensor, dropped: torch.Tensor) -> torch.Tensor:
    ids, mask = tokens["ids"][index].clone(), tokens["mask"][index].clone()
    ids[dropped], mask[dropped] = tokens["empty_ids"], tokens["empty_mask"]
    return model.text_encoder(ids, mask).last_hidden_state * mask[..., None]


def tokenize(model: WanX, split: str, count: int) -> dict[str, torch.Tensor]:
    lines = [*captions_of(shapes.draw_factors(split, np.arange(count))), NEGATIVE_CAPTION]
    out = model.tokenizer(lines, padding="max_length", max_length=TEXT_LENGTH, return_tensors="pt")
    ids, mask = out.input_ids, out.attention_mask
    return {"ids": ids[:-1], "mask": mask[:-1], "empty_ids": ids[-1], "empty_mask": mask[-1]}


def train(model: WanX, data: dict[str, torch.Tensor], folder: Path, steps: int, report_every: int = 50) -> WanX:
    """Train to `steps`, resuming from `folder/dit-checkpoint.safetensors`; returns the EMA model.

    `data` holds `video` and `image` latents (N, 16, 5, 8, 8), normalised. Appends to `folder/dit-log.jsonl`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = len(data["video"])
    tokens = tokenize(model, "train", count)
    mask_channels = torch.zeros(1, 4, *data["video"].shape[2:])
    mask_channels[:, :, 0] = 1
    model.requires_grad_(True).transformer.train()
    model.text_encoder.requires_grad_(True).train()
    optimizers = _optimizers(model)
    shadow = {k: v.clone() for k, v in weights_of(model).items()}
    checkpoint, first = folder / "dit-checkpoint.safetensors", 0
    depth = StochasticDepth(model.transformer.blocks, BATCH // parallel.processes(), BLOCK_DROP)
    modules = {"transformer": model.transformer, "text_encoder": model.text_encoder}
    named = dict(zip(("muon", "adam"), optimizers, strict=True))
    if checkpoint.exists():
        shadow, scalars = load_checkpoint(checkpoint, modules, named)
        first = int(scalars["step"])
    log = TrainingLog(folder / "dit-log.jsonl", "denoiser", steps, active=parallel.rank() == 0)
    for step in range(first, steps):
        # Every step has its own generator: resuming needs no random state.
        generator = torch.Generator().manual_seed((SEED * 1_000_003 + step) * parallel.processes() + parallel.rank())
        batch = BATCH // parallel.processes()
        index = torch.randint(count, (batch,), generator=generator)
        x0 = data["video"][index].float()
        image = torch.cat([mask_channels.expand(batch, -1, -1, -1, -1), data["image"][index].float()], dim=1)
        noise = torch.randn(x0.shape, generator=generator)
        t = flow.shift(torch.rand(batch, generator=generator), SHIFT)
        text = _embed(model, tokens, index, torch.rand(batch, generator=generator) < CAPTION_DROPOUT)
        depth.draw(generator)
        velocity = model.velocity(flow.interpolate(x0, noise, t), t, Condition(text, text[:1], image))
        loss = (velocity - flow.velocity_target(x0, noise)).pow(2).mean()
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        parameters = [*model.transformer.parameters(), *model.text_encoder.parameters()]
        parallel.average_gradients(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        factor = min(1.0, (step + 1) / 200, (steps - step) / (DECAY * steps))
        for optimizer, lr in zip(optimizers, (MUON_LR, ADAM_LR), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = lr * factor
            optimizer.step()
        with torch.no_grad():
            decay = min(EMA_DECAY, (step + 1) / (step + 10))
            weights = weights_of(model)
            torch._foreach_lerp_(list(shadow.values()), [weights[k] for k in shadow], 1 - decay)
        if (step + 1) % report_every == 0:
            log.report(step + 1, loss=round(loss.item(), 5), grad_norm=round(float(norm), 4), lr_factor=round(factor, 4))
        if ((step + 1) % 250 == 0 or step + 1 == steps) and parallel.rank() == 0:
            save_checkpoint(checkpoint, modules, named, shadow, {"step": step + 1})
    log.close()
    depth.remove()
    return with_weights(model, shadow)


def with_weights(model: WanX, weights: dict[str, torch.Tensor]) -> WanX:
    """A frozen copy of `model` holding `weights` (keys `transformer.*` and `text_encoder.*`)."""
    twin = model.copy()
    twin.text_encoder = copy.deepcopy(model.text_encoder)
    for name, module in (("transformer", twin.transformer), ("text_encoder", twin.text_encoder)):
        module.load_state_dict({k.split(".", 1)[1]: v for k, v in weights.items() if k.startswith(name + ".")})
        module.requires_grad_(False).eval()
    return twin
