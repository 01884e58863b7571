"""Train the tiny hunyuan teacher to hear: adapters on top of the network without sound, which stays as it is.

On noised real clips with a sound, in tiny wanx's latent space, the velocity regresses

    eps - x0 + (P_g(c) - P_1(c)),

P the plain network, g its embedded guidance scale (1 for most clips): guidance is about the caption, so what it adds is
what it adds without a sound. Some clips are silent, their object keeps its size, and there the target is P_g(c) itself.
Where the latents of a clip differ from those of its silent twin the error counts more: the sound shows nowhere else.

Only adapters are trained, with AdamW; the learning rate falls to zero over the last half of the steps. The EMA is kept.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from flgbench import flow
from flgbench.checkpoint import load_checkpoint, save_checkpoint
from flgbench.data import shapes, sound
from flgbench.data.captions import captions_of
from flgbench.models.base import Condition
from flgbench.models.hunyuan import Hunyuan
from flgbench.models.hunyuan_audio import HearingHunyuan
from flgbench.models.tiny.hunyuan import CAPTION_DROPOUT, GUIDANCE, GUIDED, SHIFT, emphasis
from flgbench.models.wanx import WanX
from flgbench.training_log import TrainingLog

CLIPS = 1024
BATCH, STEPS, LR, EMA_DECAY, SEED = 24, 1000, 2e-3, 0.98, 0
WARMUP, DECAY = 30, 0.5  # steps of rising, and share of the steps of falling learning rate
SILENT = 0.15  # share of the clips that are heard and seen without their sound
EMPHASIS = 4.0  # weight of the error where a clip's latents differ most from its silent twin's, over that elsewhere
CHECKPOINT_EVERY = 50
TOLD = ("text", "text_mask", "pooled")


def build(plain: Hunyuan) -> HearingHunyuan:
    """`plain` with untrained adapters (seed 0)."""
    torch.manual_seed(SEED)
    return HearingHunyuan.around(plain)


@torch.no_grad()
def encode_clips(plain: Hunyuan, guide: WanX, count: int, path: Path, batch: int = 16) -> dict[str, torch.Tensor]:
    """What the training reads of the first `count` training clips, encoded once and kept in `path`.

    `video` and `silent`, the guide's latents with and without the sound's effect, (N, 16, 5, 8, 8) fp16; `sound`
    (N, 34000) fp16; and what `plain` reads of captions beside first frames: `text`, `text_mask`, `pooled`.
    """
    if path.exists():
        return load_file(path)
    parts: dict[str, list[torch.Tensor]] = {}
    for start in range(0, count, batch):
        index = np.arange(start, min(start + batch, count))
        factors = sound.draw_factors("train", index)
        video = shapes.render(factors)
        read = plain.reader.read(video[:, 0], captions_of(factors))
        silent = shapes.render(shapes.draw_factors("train", index))
        made = {
            "video": guide.encode_video(video).half(),
            "silent": guide.encode_video(silent).half(),
            "sound": torch.from_numpy(sound.waveforms(factors)).half(),
            **dict(zip(TOLD, read, strict=True)),
        }
        for name, value in made.items():
            parts.setdefault(name, []).append(value)
    data = {name: torch.cat(values).contiguous() for name, values in parts.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(data, path.with_suffix(".partial"))
    path.with_suffix(".partial").replace(path)
    return data


@torch.no_grad()
def target(
    plain: Hunyuan,
    x_t: torch.Tensor,
    t: torch.Tensor,
    condition: Condition,
    due: torch.Tensor,
    silent: torch.Tensor,
) -> torch.Tensor:
    """What the velocity regresses: `due` eps - x0 and what guidance adds; of `silent` (B,) clips all of it is `plain`'s.

    The plain network is run for those clips only that need it.
    """
    asked = condition.extras["guidance"]
    found, guided = due.clone(), ~silent & (asked != 1)
    needed = silent | guided
    if needed.any():
        found[needed] = plain.velocity(x_t[needed], t[needed], condition.select(needed))
    if guided.any():
        found[guided] += due[guided] - plain.velocity(x_t[guided], t[guided], condition.select(guided).guided(1.0))
    return found


def train(
    plain: Hunyuan, data: dict[str, torch.Tensor], folder: Path, steps: int = STEPS, report_every: int = 25
) -> HearingHunyuan:
    """Train to `steps`, resuming from `folder/audio-checkpoint.safetensors`; returns the EMA model.

    `data` is what `encode_clips` gives. Appends to `folder/audio-log.jsonl`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = build(plain)
    negative = dict(zip(TOLD, plain._read_beside_black([plain.negative_caption]), strict=True))
    parameters = model.transformer.adapter_parameters()
    adapters = nn.ParameterList(parameters)
    model.transformer.train()
    adapters.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=LR, betas=(0.9, 0.99), weight_decay=0.01)
    shadow = {k: v.clone() for k, v in adapters.state_dict().items()}
    checkpoint, first = folder / "audio-checkpoint.safetensors", 0
    if checkpoint.exists():
        shadow, scalars = load_checkpoint(checkpoint, {"adapters": adapters}, {"adam": optimizer})
        first = int(scalars["step"])
    log = TrainingLog(folder / "audio-log.jsonl", "adapters", steps)
    for step in range(first, steps):
        generator = torch.Generator().manual_seed(SEED * 1_000_003 + step)  # each step its own: resuming needs no state
        loss = _loss(model, plain, data, negative, generator)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        factor = min(1.0, (step + 1) / WARMUP, (steps - step) / (DECAY * steps))
        optimizer.param_groups[0]["lr"] = LR * factor
        optimizer.step()
        with torch.no_grad():
            decay = min(EMA_DECAY, (step + 1) / (step + 10))
            torch._foreach_lerp_([shadow[str(i)] for i in range(len(parameters))], list(parameters), 1 - decay)
        if (step + 1) % report_every == 0:
            log.report(step + 1, loss=round(loss.item(), 5), grad_norm=round(float(norm), 4), lr_factor=round(factor, 4))
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == steps:
            save_checkpoint(checkpoint, {"adapters": adapters}, {"adam": optimizer}, shadow, {"step": step + 1})
    log.close()
    return with_adapters(model, shadow)


def _loss(
    model: HearingHunyuan,
    plain: Hunyuan,
    data: dict[str, torch.Tensor],
    negative: dict[str, torch.Tensor],
    generator: torch.Generator,
) -> torch.Tensor:
    """Of one batch, drawn by `generator`."""
    index = torch.randint(len(data["video"]), (BATCH,), generator=generator)
    t = flow.shift(torch.rand(BATCH, generator=generator), SHIFT)
    dropped, silent, guided = (torch.rand(BATCH, generator=generator) < share for share in (CAPTION_DROPOUT, SILENT, GUIDED))
    drawn = GUIDANCE[0] + (GUIDANCE[1] - GUIDANCE[0]) * torch.rand(BATCH, generator=generator)
    video, still = data["video"][index].float(), data["silent"][index].float()
    x0 = torch.where(flow.per_clip(silent, video).bool(), still, video)
    noise = torch.randn(x0.shape, generator=generator)
    x_t = flow.interpolate(x0, noise, t)

    told = {name: data[name][index].clone() for name in TOLD}
    for name in TOLD:
        told[name][dropped] = negative[name]
    extras = {k: told[k] for k in ("text_mask", "pooled")} | {"guidance": torch.where(guided, drawn, torch.ones(BATCH))}
    condition = Condition(told["text"], negative["text"], x0[:, :, :1], extras)
    due = target(plain, x_t, t, condition, flow.velocity_target(x0, noise), silent)

    heard = data["sound"][index].float()
    heard[silent] = 0
    velocity = model.velocity(x_t, t, model.with_inputs(condition, {"sound": heard}))
    error = (velocity - due).pow(2) * emphasis(x0, still, EMPHASIS)
    return error[:, :, 1:].mean()  # the first latent frame is known


def with_adapters(model: HearingHunyuan, weights: dict[str, torch.Tensor]) -> HearingHunyuan:
    """A frozen copy of `model` whose adapters hold `weights`, by their places among `adapter_parameters`."""
    twin = model.copy()
    for i, parameter in enumerate(twin.transformer.adapter_parameters()):
        parameter.data = weights[str(i)].clone()
    twin.transformer.requires_grad_(False).eval()
    return twin
