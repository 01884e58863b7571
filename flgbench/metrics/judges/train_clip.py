"""Train the tiny CLIP: frames and captions of procedural clips, contrastively."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from flgbench.checkpoint import load_checkpoint, save_checkpoint
from flgbench.data import shapes
from flgbench.data.captions import captions_of
from flgbench.errors import StageFailure
from flgbench.metrics.judges.clip_alignment import CONTEXT, WEIGHTS, all_rows, package, used_rows
from flgbench.shipped import ship
from flgbench.training_log import TrainingLog

SEEN = ("shape", "colour", "size", "background")  # what a single frame shows of a caption
ACCEPTED = 0.95  # share of fresh frames nearest to the caption of their own looks, among all 288 looks
FRESH = 2048
FIRST = 3_000_000  # index of the first training clip
MEAN, SPREAD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of OpenAI's preprocessing


@dataclass(frozen=True)
class Recipe:
    steps: int = 4_000
    clips: int = 64
    frames: int = 3  # of each clip in a batch: rendering clips takes longest
    lr: float = 1e-3
    weight_decay: float = 0.05
    warm_up: int = 200
    seed: int = 0


def build(seed: int = 0) -> Any:
    """The package's CLIP class, small: patches of 8 pixels, width 64, one head (the package makes one for each 64)."""
    torch.manual_seed(seed)
    vocabulary = len(package().clip._tokenizer.encoder)
    from clip.model import CLIP

    return CLIP(
        embed_dim=64,
        image_resolution=shapes.SIZE,
        vision_layers=4,
        vision_width=64,
        vision_patch_size=8,
        context_length=CONTEXT,
        vocab_size=vocabulary,
        transformer_width=64,
        transformer_heads=1,
        transformer_layers=2,
    )


def looks(factors: shapes.Factors) -> torch.Tensor:
    """(N,) number of what a frame shows of the caption: two clips with the same number are no negatives of each other."""
    sizes = {"shape": 4, "colour": 8, "size": 3, "background": 3}
    number = np.zeros(len(factors), np.int64)
    for name in SEEN:
        number = number * sizes[name] + getattr(factors, name)
    return torch.from_numpy(number)


def batch(
    indices: np.ndarray, rng: np.random.Generator, split: str = "train", times: int = 1
) -> tuple[torch.Tensor, list[str], torch.Tensor]:
    """Frames (N * times, 3, 64, 64) of every clip at random times, normalised; the N captions; the N looks."""
    factors = shapes.draw_factors(split, indices)
    at = torch.from_numpy(rng.integers(0, shapes.FRAMES, (len(indices), times)))
    frames = shapes.render(factors)[torch.arange(len(indices))[:, None], at].flatten(0, 1)
    mean, spread = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, SPREAD))
    return (frames.permute(0, 3, 1, 2).float() / 255 - mean) / spread, captions_of(factors), looks(factors)


def contrastive_loss(image: torch.Tensor, text: torch.Tensor, alike: torch.Tensor) -> torch.Tensor:
    """CLIP's symmetric cross-entropy of logits `image` (I, T) and `text` (T, I); `alike` (I, T) pairs share the target."""
    target = alike.float()
    rows, columns = target / target.sum(1, keepdim=True), target.T / target.sum(0)[:, None]
    return 0.5 * (F.cross_entropy(image, rows) + F.cross_entropy(text, columns))


def train(work: Path, recipe: Recipe = Recipe(), report_every: int = 50) -> Any:
    """Train to the end, resuming from `work/checkpoint.safetensors`; appends to `work/log.jsonl`."""
    work.mkdir(parents=True, exist_ok=True)
    model = build(recipe.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    checkpoint, first = work / "checkpoint.safetensors", 0
    if checkpoint.exists():
        first = int(load_checkpoint(checkpoint, {"clip": model}, {"adam": optimizer})[1]["step"])
    log = TrainingLog(work / "log.jsonl", "clip", recipe.steps)
    for step in range(first, recipe.steps):
        warm = min(1, (step + 1) / recipe.warm_up)
        optimizer.param_groups[0]["lr"] = recipe.lr * warm * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
        indices = FIRST + step * recipe.clips + np.arange(recipe.clips)
        frames, captions, number = batch(indices, np.random.default_rng([recipe.seed, step]), times=recipe.frames)
        tokens = package().tokenize(captions, context_length=CONTEXT)
        image, text = model(frames, tokens)
        loss = contrastive_loss(image, text, number.repeat_interleave(recipe.frames)[:, None] == number[None])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))  # as CLIP's paper does
        if (step + 1) % report_every == 0:
            log.report(step + 1, loss=round(loss.item(), 4))
        if (step + 1) % 500 == 0 or step + 1 == recipe.steps:
            save_checkpoint(checkpoint, {"clip": model}, {"adam": optimizer}, {}, {"step": step + 1})
    log.close()
    return model.requires_grad_(False).eval()


@torch.inference_mode()
def retrieval(model: Any, clips: int = FRESH) -> float:
    """Share of fresh validation frames whose nearest caption, one for each of the 288 looks, is of their own looks."""
    factors = shapes.draw_factors("validation", 20_000_000 + np.arange(8 * 288))
    number = looks(factors)
    _, first = np.unique(number.numpy(), return_index=True)
    captions = captions_of(factors)
    text = F.normalize(model.encode_text(package().tokenize([captions[i] for i in first], context_length=CONTEXT)), dim=-1)
    hits = 0
    for start in range(0, clips, 256):
        indices = 30_000_000 + np.arange(start, min(start + 256, clips))
        frames, _, own = batch(indices, np.random.default_rng(start), "validation")
        nearest = (F.normalize(model.encode_image(frames), dim=-1) @ text.T).argmax(1)
        hits += int((number[first][nearest] == own).sum())
    return hits / clips


def make(work: Path, folder: Path = WEIGHTS, recipe: Recipe = Recipe()) -> dict[str, float]:
    """Train, measure the gate and write the folder that ships. Raises StageFailure below the gate, and writes nothing."""
    model = train(work, recipe)
    vocabulary = package().tokenize(captions_of(shapes.draw_factors("train", np.arange(20_000))), context_length=CONTEXT)
    rows = used_rows(model.state_dict(), vocabulary.unique().tolist())
    state = {k: v.half() if v.is_floating_point() else v for k, v in rows.items()}
    model.load_state_dict({k: v.float() for k, v in all_rows(state).items()})  # as it will be loaded
    share = retrieval(model)
    if share < ACCEPTED:
        raise StageFailure("below the gate", f"{share} of frames find their caption, {ACCEPTED} are wanted: train it longer")
    ship(
        folder,
        {"model": state},
        {
            "gate": {"frames": FRESH, "wanted": ACCEPTED, "accuracy": {"retrieval": share}},
            "recipe": asdict(recipe) | {"command": "flgbench pretrain --judge clip"},
        },
        work / "log.jsonl",
    )
    return {"retrieval": share}
