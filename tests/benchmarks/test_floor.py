"""How close we are to the floor: network passes x time per pass.

Run with `pytest tests/benchmarks --benchmark-enable`; each measures the floor itself, interleaved with the work, and
prints both and their ratio as extra_info. Nothing here asserts a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import numpy as np
import pytest
import torch

from flgbench import environment
from flgbench.data import shapes
from flgbench.data.captions import captions_of
from flgbench.models.base import VideoModel
from flgbench.models.families import WanXFamily
from flgbench.sampling import SamplerSettings, generate
from flgbench.stage import Batch, Roles, TrainingData
from methods.parts.distribution_matching import DistributionMatching, MatchSettings

BATCH = 16


@pytest.fixture(scope="module")
def teacher() -> VideoModel:
    torch.set_num_threads(environment.cores())
    return WanXFamily().load("tiny")


@pytest.fixture(scope="module")
def data(teacher: VideoModel) -> TrainingData:
    factors = shapes.draw_factors("train", np.arange(BATCH))
    video = shapes.render(factors)
    return TrainingData(teacher.encode_video(video), teacher.condition(video[:, 0], captions_of(factors)))


def seconds(action: Callable[[], object], runs: int) -> float:
    action()
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return median(times)


def report(benchmark, floor: float, measured: float) -> None:
    benchmark.extra_info["floor_ms"] = round(1000 * floor, 2)
    benchmark.extra_info["measured_ms"] = round(1000 * measured, 2)
    benchmark.extra_info["ratio"] = round(measured / floor, 4)


def test_sampler_over_bare_passes(benchmark, teacher: VideoModel, data: TrainingData) -> None:
    """Euler 8 x CFG at batch 1 against 16 bare passes of the transformer."""
    one = data.condition.select(slice(0, 1))
    sampler = SamplerSettings(num_inference_steps=8, guidance_scale=3.0)
    x, t = torch.randn(1, *teacher.latent_shape), torch.full((1,), 0.5)
    inputs = torch.cat([x, one.image], dim=1)

    @torch.inference_mode()
    def bare() -> None:
        for _ in range(sampler.nfe):
            teacher.transformer(inputs, timestep=t * 1000, encoder_hidden_states=one.text, return_dict=False)

    def sample() -> int:
        return generate(teacher, one, [(0, 0)], sampler)[1]

    assert benchmark.pedantic(sample, rounds=3, warmup_rounds=1) == sampler.nfe
    if benchmark.disabled:
        return
    rounds = [(seconds(bare, 1), seconds(sample, 1)) for _ in range(15)]
    # The least of many: what other work on the machine adds is no overhead of the sampler.
    report(benchmark, min(r[0] for r in rounds), min(r[1] for r in rounds))


def test_dmd2_iteration_over_bare_passes(benchmark, teacher: VideoModel, data: TrainingData) -> None:
    """One round of critic and student updates against the same passes (and backwards) without anything around them."""
    settings = MatchSettings()
    stage = DistributionMatching(settings, Roles(teacher, data, {}))
    every = settings.fake_updates
    moved: dict[str, list[int]] = {}

    def round_of_updates() -> None:
        for iteration in range(every):
            batch = data.batch(BATCH, torch.Generator().manual_seed(iteration))
            stage.train_step(batch, iteration)["loss"].backward()
            for optimizer in stage.optimizers(iteration):
                optimizer.step()
                optimizer.zero_grad()
            moved.setdefault("iterations", []).append(iteration)

    # The random exit step decides how many passes a round takes: the same seeds give the same count.
    exits = []
    for iteration in range(every):
        generator = torch.Generator().manual_seed(iteration)
        batch: Batch = data.batch(BATCH, generator)
        exits.append(int(torch.randint(settings.steps, (1,), generator=batch.generator)))

    def bare() -> None:
        t = torch.full((BATCH,), 0.5)
        for iteration, simulated in enumerate(exits):
            moving = stage.moves_student(iteration)
            with torch.no_grad():
                # simulated steps; the sample itself if nothing flows through it; guided teacher (2) and critic (1)
                for _ in range(simulated + (3 if moving else 1)):
                    teacher.velocity(data.latents, t, data.condition)
            for model in (stage.fake, stage.generator) if moving else (stage.fake,):
                model.velocity(data.latents, t, data.condition).pow(2).mean().backward()
            for optimizer in stage.optimizers(iteration):
                optimizer.zero_grad()

    benchmark.pedantic(round_of_updates, rounds=1)
    assert moved["iterations"]
    if benchmark.disabled:
        return
    rounds = [(seconds(bare, 1), seconds(round_of_updates, 1)) for _ in range(2)]
    report(benchmark, median(r[0] for r in rounds), median(r[1] for r in rounds))


def test_clips_per_second(benchmark) -> None:
    """Rendering procedural clips in batches of 256."""
    factors = shapes.draw_factors("train", np.arange(256))
    video = benchmark(shapes.render, factors)
    assert video.shape == (256, shapes.FRAMES, shapes.SIZE, shapes.SIZE, 3)
    if not benchmark.disabled:
        benchmark.extra_info["clips_per_second"] = round(256 / seconds(lambda: shapes.render(factors), 3))


def test_decode_over_denoise(benchmark, teacher: VideoModel, data: TrainingData) -> None:
    """Decoding one clip, as a share of denoising it with Euler 50 x CFG (measured on 5 x CFG, times ten)."""
    one = data.condition.select(slice(0, 1))
    sampler = SamplerSettings(num_inference_steps=5, guidance_scale=3.0)
    video = benchmark.pedantic(teacher.decode, args=(data.latents[:1],), rounds=3, warmup_rounds=1)
    assert video.shape[0] == 1
    if benchmark.disabled:
        return
    denoise = 10 * seconds(lambda: generate(teacher, one, [(0, 0)], sampler), 3)
    decode = seconds(lambda: teacher.decode(data.latents[:1]), 3)
    benchmark.extra_info["share_of_denoise"] = round(decode / denoise, 4)
