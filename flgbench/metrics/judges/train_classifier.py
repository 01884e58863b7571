"""Train the factor classifier on procedural clips, and accept it only at 99 % on fresh ones."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torchvision.transforms.functional import gaussian_blur

from flgbench.checkpoint import load_checkpoint, save_checkpoint
from flgbench.data import shapes
from flgbench.errors import StageFailure
from flgbench.metrics.judges.classifier import CLASSES, WEIGHTS, FactorNet, examine, to_input
from flgbench.shipped import ship
from flgbench.training_log import TrainingLog

ACCEPTED = 0.99
FRESH = 4096  # validation clips of the gate
FIRST = 2_000_000  # index of the first training clip: the teachers' are below


@dataclass(frozen=True)
class Recipe:
    """Blur in pixels, noise in grey levels, brightness as a factor; each at most, and each of half of the clips."""

    steps: int = 5_000
    batch: int = 32
    lr: float = 3e-3
    weight_decay: float = 0.02
    narrow_weight: float = 0.3
    blur: float = 1.2
    noise: float = 10.0
    brightness: float = 0.15
    seed: int = 0


def augment(clips: torch.Tensor, recipe: Recipe, generator: torch.Generator) -> torch.Tensor:
    """Blurred, noisy and brighter or darker clips (N, 3, T, H, W) in [0, 1]: what models do to them."""
    n = len(clips)
    draw = torch.rand(n, 6, generator=generator)
    done = []
    for clip, (a, b, c, d, e, f) in zip(clips, draw.tolist(), strict=True):
        if a < 0.5:
            sigma = max(0.05, b * recipe.blur)
            clip = gaussian_blur(clip.transpose(0, 1), [5, 5], [sigma, sigma]).transpose(0, 1)
        if c < 0.5:
            clip = clip + (d * recipe.noise / 255) * torch.randn(clip.shape, generator=generator)
        if e < 0.5:
            clip = clip * (1 + recipe.brightness * (2 * f - 1))
        done.append(clip)
    return torch.stack(done).clamp(0, 1)


def train(work: Path, recipe: Recipe = Recipe(), report_every: int = 50) -> FactorNet:
    """Train to the end, resuming from `work/checkpoint.safetensors`; appends to `work/log.jsonl`."""
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    net = FactorNet().to(memory_format=torch.channels_last_3d)
    optimizer = torch.optim.AdamW(net.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    checkpoint, first = work / "checkpoint.safetensors", 0
    if checkpoint.exists():
        first = int(load_checkpoint(checkpoint, {"net": net}, {"adam": optimizer})[1]["step"])
    log = TrainingLog(work / "log.jsonl", "classifier", recipe.steps)
    for step in range(first, recipe.steps):
        progress = step / recipe.steps
        optimizer.param_groups[0]["lr"] = recipe.lr * min(1, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * progress))
        factors = shapes.draw_factors("train", FIRST + step * recipe.batch + np.arange(recipe.batch))
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        clips = augment(to_input(shapes.render(factors)), recipe, generator)
        hidden = net.trunk(clips.contiguous(memory_format=torch.channels_last_3d))
        narrow = net.bottleneck(hidden)
        loss = torch.zeros(())
        for name in CLASSES:
            target = torch.from_numpy(getattr(factors, name))
            loss = loss + F.cross_entropy(net.heads[name](hidden), target)
            loss = loss + recipe.narrow_weight * F.cross_entropy(net.narrow_heads[name](narrow), target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        if (step + 1) % report_every == 0:
            log.report(step + 1, loss=round(loss.item(), 4))
        if (step + 1) % 250 == 0 or step + 1 == recipe.steps:
            save_checkpoint(checkpoint, {"net": net}, {"adam": optimizer}, {}, {"step": step + 1})
    log.close()
    return net.requires_grad_(False).eval()


def accuracies(net: FactorNet, clips: int = FRESH) -> tuple[dict[str, float], np.ndarray]:
    """Share of fresh validation clips that the network is right about, for each factor and for all; their features."""
    right: dict[str, list[np.ndarray]] = {name: [] for name in CLASSES}
    features = []
    for start in range(0, clips, 256):
        factors = shapes.draw_factors("validation", 10_000_000 + np.arange(start, min(start + 256, clips)))
        named, part = examine(shapes.render(factors), net)
        features.append(part)
        for name in CLASSES:
            right[name].append(named[name] == getattr(factors, name))
    hits = {name: np.concatenate(parts) for name, parts in right.items()}
    shares = {name: float(hit.mean()) for name, hit in hits.items()}
    return shares | {"all": float(np.stack(list(hits.values())).all(0).mean())}, np.concatenate(features)


def make(work: Path, folder: Path = WEIGHTS, recipe: Recipe = Recipe()) -> dict[str, float]:
    """Train, measure the gate and write the folder that ships. Raises StageFailure below the gate, and writes nothing."""
    net = train(work, recipe)
    net.load_state_dict({k: v.half().to(v.dtype) for k, v in net.state_dict().items()})  # as it will be stored
    found, features = accuracies(net)
    below = {name: share for name, share in found.items() if share < ACCEPTED and name != "all"}
    if below:
        raise StageFailure("below the gate", f"{below}, where {ACCEPTED} is wanted: train it longer")
    state = {k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()}
    ship(
        folder,
        {"model": state, "real_features": {"features": torch.from_numpy(features).half()}},
        {
            "gate": {"clips": FRESH, "wanted": ACCEPTED, "accuracy": found},
            "recipe": asdict(recipe) | {"command": "flgbench pretrain --judge classifier"},
        },
        work / "log.jsonl",
    )
    return found
