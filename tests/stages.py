"""What the tests of methods share: a preset, and ways to run stages on the tiny model."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL
from diffusers import WanTransformer3DModel

from flgbench.contracts import FamilyPreset, Method
from flgbench.loop_settings import LoopSettings
from flgbench.models.base import VideoModel
from flgbench.models.wanx import WanX
from flgbench.stage import ComputedStage, Roles, TrainedStage, TrainingData
from flgbench.training import train

PRESET = FamilyPreset(
    shift=3.0, guidance_scale=3.0, num_inference_steps=50, clip=(17, 64, 64), fps=8, blocks=10, self_attention_share=0.236
)
BUDGET = 1e6  # never reached

Lines = list[dict[str, float]]


class Stopped(Exception):
    """Our own way to end a training after some iterations."""


def train_for(stage: TrainedStage, data: TrainingData, teacher: WanX, work: Path, iterations: int) -> Lines:
    """Lines of the first iterations of a training with batches of two."""
    lines: Lines = []

    def log(**line: float) -> None:
        lines.append(line)
        if len(lines) == iterations:
            raise Stopped

    work.mkdir(parents=True, exist_ok=True)
    try:
        train(stage, data, LoopSettings(budget=BUDGET, batch=2, checkpoint_seconds=1e9), teacher.tally, work, log)
    except Stopped:
        return lines
    raise AssertionError("the training ended before it was stopped")


def run_stages(method: Method, teacher: WanX, data: TrainingData, folder: Path, iterations: int) -> dict[str, Lines]:
    """All stages of a method in order, with their artifacts in `folder`; the lines of the trained ones."""
    curves = {}
    for spec in method.stages(BUDGET):
        out = folder / spec.name
        out.mkdir(parents=True)
        stage: Any = spec.stage(spec.settings, Roles(teacher, data, {r: folder / name for r, name in spec.inputs.items()}))
        if isinstance(stage, ComputedStage):
            stage.compute(out)
            continue
        curves[spec.name] = train_for(stage, data, teacher, out / "work", iterations)
        stage.student().save(out / "transformer")
    return curves


def preset(teacher: WanX) -> FamilyPreset:
    return FamilyPreset(
        shift=3.0,
        guidance_scale=2.0,
        num_inference_steps=50,
        clip=teacher.clip_shape,
        fps=8,
        blocks=len(teacher.blocks),
        self_attention_share=0.2,
    )


def ten_blocks(model: WanX) -> WanX:
    """The tiny model with a denoiser of ten blocks, of which 70 % is a whole number."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        transformer = WanTransformer3DModel(**{**SMALL, "num_layers": 10}).requires_grad_(False).eval()
    return WanX(transformer, model.vae, model.text_encoder, model.tokenizer, model.clip_shape, model.text_length)


def weights(model: VideoModel) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.transformer.parameters()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def run(stage: TrainedStage, teacher: WanX, data: TrainingData, work: Path, budget: float) -> list[dict[str, float]]:
    """Train; returns the logged lines, the last of them with the number of iterations."""
    lines: list[dict[str, float]] = []
    work.mkdir(exist_ok=True)
    facts = train(stage, data, LoopSettings(budget=budget, batch=2), teacher.tally, work, lambda **line: lines.append(line))
    assert facts["iterations"] >= 6 and lines
    assert all(math.isfinite(value) for line in lines for value in line.values())
    return lines


def assert_resumes(make: Callable[[], TrainedStage], data: TrainingData, teacher: WanX, folder: Path, budget: float) -> None:
    """A training stopped in iteration 4 and started again ends with the weights of one that nothing stopped."""
    loop = LoopSettings(budget=budget, batch=2, checkpoint_seconds=1e-9)

    def train_in(work: Path, stop_at: int = 0) -> TrainedStage:
        def log(**line: float) -> None:
            if line["iteration"] == stop_at:
                raise Stopped

        work.mkdir(exist_ok=True)
        stage = make()
        train(stage, data, loop, teacher.tally, work, log)
        return stage

    whole = train_in(folder / "whole")
    with pytest.raises(Stopped):
        train_in(folder / "parts", stop_at=4)
    resumed = train_in(folder / "parts").modules()
    for name, module in whole.modules().items():
        for key, expected in module.state_dict().items():
            torch.testing.assert_close(resumed[name].state_dict()[key], expected, rtol=0, atol=1e-6, msg=key)
