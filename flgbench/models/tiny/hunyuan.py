"""Train the tiny hunyuan denoiser: `HunyuanVideoTransformer3DModel`, guidance-distilled from the tiny wanx teacher.

HunyuanVideo is guidance-distilled, so its network imitates a guided teacher and is told the scale. Ours imitates tiny
wanx in the latent space that both share: on noised real clips its velocity regresses

    v(c0) + g (v(c) - v(c0)) of wanx, g embedded,   and v(c0) itself where the caption is dropped,

with g = 1 for half of the clips and uniform for the rest. One training so gives the embedded scale, the plain conditional
velocity (g = 1) and an unconditional branch. A teacher's velocity has none of the noise of a flow-matching target: this
takes far fewer steps than pretraining on clips alone. Errors count more where wanx expects something else than the first
frame shows: the objects are few of the latents, and the background is right soon.

A teacher that is trained on meets its own mistakes too: two thirds of a batch then are states of its own sampling, where the
guide tells it the way back (as DAgger, Ross et al. 2011). Noised real clips never show it an object that came out faint.

Hidden matrices are trained with Muon, everything else with AdamW; the learning rate is constant and falls to zero over
the last half of the steps. The shipped weights are the EMA.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import HunyuanVideoTransformer3DModel
from torch import nn

from flgbench import flow
from flgbench.checkpoint import load_checkpoint, save_checkpoint
from flgbench.data import shapes
from flgbench.data.captions import captions_of
from flgbench.models.base import Condition
from flgbench.models.hunyuan import Hunyuan
from flgbench.models.hunyuan_presets import TINY_TRANSFORMER as TRANSFORMER
from flgbench.models.hunyuan_reader import TextReader
from flgbench.models.tiny.muon import Muon
from flgbench.models.tiny.stochastic_depth import StochasticDepth
from flgbench.models.wanx import WanX
from flgbench.sampling import euler
from flgbench.training_log import TrainingLog

SHIFT, CAPTION_DROPOUT = 3.0, 0.1
GUIDED, GUIDANCE = 0.5, (1.0, 3.0)  # share of the clips with g above 1, and the range of g
EMPHASIS = 6.0  # weight of the error where the expected clip differs most from its first frame, over that elsewhere
BLOCK_DROP = 0.1  # probability that an inner block is bypassed, for each clip
BATCH, STEPS, MUON_LR, ADAM_LR, EMA_DECAY, SEED = 24, 5000, 2e-3, 1e-3, 0.99, 0
# Of a network that is trained on: steps, share of the learning rates, share of own states, steps of their sampling.
CONTINUED_STEPS, CONTINUED_LR, OWN_SHARE, OWN_STEPS = 3200, 0.4, 2 / 3, 16
DECAY = 0.5  # share of the steps over which the learning rate falls to zero
CHECKPOINT_EVERY = 50

# Conditions of the clips `index` with captions `dropped`, told a guidance scale, all (N,).
Tell = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Condition]


def build(vae, reader: TextReader) -> Hunyuan:
    """A freshly initialised denoiser (seed 0) around trained encoders."""
    torch.manual_seed(SEED)
    transformer = HunyuanVideoTransformer3DModel(**TRANSFORMER)
    return Hunyuan(transformer, vae, reader, (shapes.FRAMES, shapes.SIZE, shapes.SIZE))


@torch.no_grad()
def read_captions(model: Hunyuan, guide: WanX, count: int, batch: int = 64) -> dict[str, torch.Tensor]:
    """What both models read of the first `count` training clips' captions; names with `negative` are of the empty one."""
    parts: dict[str, list[torch.Tensor]] = {"text": [], "mask": [], "pooled": [], "guide": []}
    for start in range(0, count, batch):
        factors = shapes.draw_factors("train", np.arange(start, min(start + batch, count)))
        captions = captions_of(factors)
        read = model.reader.read(shapes.render(factors)[:, 0], captions)
        for name, value in zip(parts, (*read, guide.encode_text(captions)), strict=True):
            parts[name].append(value)
    negative = dict(zip(("text", "mask", "pooled"), model._read_beside_black([model.negative_caption]), strict=True))
    negative["guide"] = guide.encode_text([guide.negative_caption])
    return {k: torch.cat(v) for k, v in parts.items()} | {f"negative_{k}": v for k, v in negative.items()}


def guided_target(
    guide: WanX, x: torch.Tensor, t: torch.Tensor, condition: Condition, dropped: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """The guide's velocity at scale (B,), computed with only the passes that each clip needs."""
    conditional, unconditional = ~dropped, dropped | (scale != 1)
    v, v0 = torch.zeros_like(x), torch.zeros_like(x)
    for where, out, told in ((conditional, v, condition), (unconditional, v0, condition.unconditional())):
        if where.any():
            out[where] = guide.velocity(x[where], t[where], told.select(where))
    v = torch.where(flow.per_clip(dropped, x).bool(), v0, v)
    return torch.where(flow.per_clip(scale != 1, x).bool(), flow.guide(v, v0, scale), v)


def emphasis(video: torch.Tensor, still: torch.Tensor, most: float) -> torch.Tensor:
    """Weights (B, 1, T, H, W) of mean 1: where the latents (B, C, T, H, W) are most apart `most` times those where equal."""
    apart = (video - still).pow(2).mean(1, keepdim=True)
    share = apart / apart.amax((2, 3, 4), keepdim=True).clamp(min=1e-6)
    weights = 1 + (most - 1) * share
    return weights / weights.mean((1, 2, 3, 4), keepdim=True)


@dataclass
class Batch:
    """Of one training step: indices of clips, noised latents (B, C, T, H, W), times, captions dropped, guidance scales."""

    index: torch.Tensor
    x_t: torch.Tensor
    t: torch.Tensor
    dropped: torch.Tensor
    scale: torch.Tensor

    @staticmethod
    def draw(video: torch.Tensor, generator: torch.Generator) -> Batch:
        """Noised real clips."""
        index = torch.randint(len(video), (BATCH,), generator=generator)
        x0 = video[index].float()
        noise = torch.randn(x0.shape, generator=generator)
        t = flow.shift(torch.rand(BATCH, generator=generator), SHIFT)
        dropped = torch.rand(BATCH, generator=generator) < CAPTION_DROPOUT
        return Batch(index, flow.interpolate(x0, noise, t), t, dropped, draw_scales(BATCH, generator))


@dataclass(frozen=True)
class OwnStates:
    """N clips that the network itself sampled: indices and guidance scales (N,), times (K,), states (K, N, C, T, H, W)."""

    index: torch.Tensor
    scale: torch.Tensor
    times: torch.Tensor
    states: torch.Tensor

    @staticmethod
    @torch.no_grad()
    def sample(model: Hunyuan, tell: Tell, count: int, clips: int, generator: torch.Generator) -> OwnStates:
        """Of `clips` training clips of `count`, by Euler steps at random times in falling order; `tell` makes conditions."""
        index, scale = torch.randint(count, (clips,), generator=generator), draw_scales(clips, generator)
        condition = tell(index, torch.zeros(clips, dtype=torch.bool), scale)
        places = 1 - (torch.arange(OWN_STEPS) + torch.rand(OWN_STEPS, generator=generator)) / OWN_STEPS
        times = flow.shift(torch.cat([torch.ones(1), places[1:]]), SHIFT)
        states: list[torch.Tensor] = []

        def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            states.append(x)
            return model.velocity(x, t.expand(clips), condition)

        states.append(euler(velocity, torch.randn(clips, *model.latent_shape, generator=generator), times))
        return OwnStates(index, scale, times, torch.stack(states))

    def put_into(self, batch: Batch, generator: torch.Generator) -> None:
        """Replace its first N clips by one state of each of these."""
        clips = len(self.index)
        moment = torch.randint(len(self.times), (clips,), generator=generator)
        batch.index[:clips], batch.scale[:clips], batch.dropped[:clips] = self.index, self.scale, False
        batch.x_t[:clips], batch.t[:clips] = self.states[moment, torch.arange(clips)], self.times[moment]


def draw_scales(clips: int, generator: torch.Generator) -> torch.Tensor:
    """Guidance scales (clips,): the share `GUIDED` uniform in `GUIDANCE`, the others 1."""
    drawn = GUIDANCE[0] + (GUIDANCE[1] - GUIDANCE[0]) * torch.rand(clips, generator=generator)
    return torch.where(torch.rand(clips, generator=generator) < GUIDED, drawn, torch.ones(clips))


def _optimizers(model: Hunyuan) -> dict[str, torch.optim.Optimizer]:
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.transformer.parameters() if id(p) not in chosen]
    return {
        "muon": Muon(matrices, lr=MUON_LR),
        "adam": torch.optim.AdamW(rest, lr=ADAM_LR, betas=(0.9, 0.99), weight_decay=0.01),
    }


def train(
    model: Hunyuan,
    guide: WanX,
    data: dict[str, torch.Tensor],
    folder: Path,
    steps: int = STEPS,
    report_every: int = 25,
    *,
    continued: bool = False,
    seed: int = SEED,
) -> Hunyuan:
    """Train to `steps`, resuming from `folder/dit-checkpoint.safetensors`; returns the EMA model.

    `data` holds the guide's latents of the first N training clips, `video` and `image`, both (N, 16, 5, 8, 8). A network
    whose training is `continued` learns at a lower rate, from own states too; `seed` draws clips, noise and times.
    Appends to `folder/dit-log.jsonl`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = len(data["video"])
    read = read_captions(model, guide, count)
    given = torch.zeros(1, 4, *data["video"].shape[2:])  # the guide's mask: which frame it is given
    given[:, :, 0] = 1
    model.requires_grad_(True).transformer.train()
    optimizers = _optimizers(model)
    shadow = {k: v.clone() for k, v in model.transformer.state_dict().items()}
    depth, mine = StochasticDepth(model.blocks, BATCH, BLOCK_DROP), None
    peak = CONTINUED_LR if continued else 1.0

    def tell(index: torch.Tensor, dropped: torch.Tensor, scale: torch.Tensor) -> Condition:
        text, mask, pooled = (
            torch.where(_like(dropped, read[k]), read[f"negative_{k}"], read[k][index]) for k in ("text", "mask", "pooled")
        )
        extras = {"text_mask": mask, "pooled": pooled, "guidance": scale}
        return Condition(text, read["negative_text"], data["video"][index][:, :, :1].float(), extras)

    checkpoint, first = folder / "dit-checkpoint.safetensors", 0
    modules = {"transformer": model.transformer}
    if checkpoint.exists():
        shadow, scalars = load_checkpoint(checkpoint, modules, optimizers)
        first = int(scalars["step"])
    log = TrainingLog(folder / "dit-log.jsonl", "denoiser", steps)
    for step in range(first, steps):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)  # each step its own: resuming needs no state
        batch = Batch.draw(data["video"], generator)
        if continued:
            if mine is None or step % OWN_STEPS == 0:
                depth.rest()
                mine = OwnStates.sample(model, tell, count, round(OWN_SHARE * BATCH), generator)
            mine.put_into(batch, generator)

        image = torch.cat([given.expand(BATCH, -1, -1, -1, -1), data["image"][batch.index].float()], dim=1)
        with torch.no_grad():
            shown = Condition(read["guide"][batch.index], read["negative_guide"], image)
            target = guided_target(guide, batch.x_t, batch.t, shown, batch.dropped, batch.scale)
            expected = flow.clean_estimate(batch.x_t, batch.t, target)
            first_frame = data["video"][batch.index][:, :, :1].float()
            weights = emphasis(expected[:, :, 1:], first_frame, EMPHASIS)
        depth.draw(generator)
        velocity = model.velocity(batch.x_t, batch.t, tell(batch.index, batch.dropped, batch.scale))
        loss = ((velocity - target)[:, :, 1:].pow(2) * weights).mean()  # the first latent frame is known

        for optimizer in optimizers.values():
            optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.transformer.parameters(), 1.0)
        factor = peak * min(1.0, (step + 1) / 100, (steps - step) / (DECAY * steps))
        for optimizer, lr in zip(optimizers.values(), (MUON_LR, ADAM_LR), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = lr * factor
            optimizer.step()
        with torch.no_grad():
            weights = model.transformer.state_dict()
            decay = min(EMA_DECAY, (step + 1) / (step + 10))
            torch._foreach_lerp_(list(shadow.values()), [weights[k] for k in shadow], 1 - decay)
        if (step + 1) % report_every == 0:
            log.report(step + 1, loss=round(loss.item(), 5), grad_norm=round(float(norm), 4), lr_factor=round(factor, 4))
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == steps:
            save_checkpoint(checkpoint, modules, optimizers, shadow, {"step": step + 1})
    log.close()
    depth.remove()
    return with_weights(model, shadow)


def _like(dropped: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return dropped.view(-1, *[1] * (value.ndim - 1))


def with_weights(model: Hunyuan, weights: dict[str, torch.Tensor]) -> Hunyuan:
    """A frozen copy of `model` whose denoiser holds `weights`."""
    twin = model.copy()
    twin.transformer.load_state_dict(weights)
    twin.transformer.requires_grad_(False).eval()
    return twin
