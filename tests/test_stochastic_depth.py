"""Blocks dropped in training: a clip goes around a block whole, with all its streams, or through it."""

from __future__ import annotations

import numpy as np
import torch
import toy_hunyuan

from flgbench.data import shapes
from flgbench.data.captions import captions_of
from flgbench.models.base import VideoModel
from flgbench.models.tiny.stochastic_depth import StochasticDepth
from flgbench.models.wanx import WanX
from flgbench.stage import TrainingData

TIMES = torch.tensor([0.2, 0.9])


def velocity(model: VideoModel, data: TrainingData) -> torch.Tensor:
    with torch.inference_mode():
        return model.velocity(data.latents[:2], TIMES, data.condition.select(slice(0, 2)))


def around(model: VideoModel, data: TrainingData, kept: torch.Tensor) -> torch.Tensor:
    """The velocity where clip i goes around the inner blocks with kept[:, i] false, by skipping for each clip alone."""
    parts = []
    for clip in range(2):
        skipped = [block + 1 for block, there in enumerate(kept[:, clip].tolist()) if not there]
        alone = data.condition.select(slice(clip, clip + 1))
        with torch.inference_mode():
            parts.append(model.velocity(data.latents[clip : clip + 1], TIMES[clip : clip + 1], alone, skip=skipped))
    return torch.cat(parts)


def check(model: VideoModel, data: TrainingData) -> None:
    whole, dropped = velocity(model, data), []
    depth = StochasticDepth(model.blocks, batch=2, drop=0.5)
    generator = torch.Generator().manual_seed(1)
    try:
        torch.testing.assert_close(velocity(model, data), whole)  # nothing is dropped before the first draw
        for _ in range(3):
            depth.draw(generator)
            dropped.append((depth.kept.clone(), velocity(model, data)))
    finally:
        depth.remove()
    torch.testing.assert_close(velocity(model, data), whole)
    for kept, found in dropped:
        assert kept.any() and not kept.all()
        torch.testing.assert_close(found, around(model, data, kept), rtol=1e-4, atol=1e-5)


def test_a_clip_of_wanx_goes_around_a_block(tiny_model: WanX, tiny_data: TrainingData) -> None:
    check(tiny_model, tiny_data)


def test_a_clip_of_hunyuan_goes_around_a_block_of_either_kind_with_both_streams() -> None:
    model = toy_hunyuan.build()
    factors = shapes.draw_factors("train", np.arange(2))
    condition = model.condition(shapes.render(factors)[:, 0], captions_of(factors))
    latents = torch.randn((2, *model.latent_shape), generator=torch.Generator().manual_seed(2))
    check(model, TrainingData(latents, condition))
