"""On a GPU: a distillation step at the size of Wan2.1-T2V-1.3B, a timed pass, and torch.compile's parity."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import Flgbench

from flgbench.models import attention_backend, wan_random
from flgbench.models.wan_presets import CHECKPOINTS
from flgbench.models.wanx import WanX
from flgbench.peaks import peak
from flgbench.stage import Roles, TrainingData
from flgbench.timing import DeviceMemory, now
from methods.parts.distribution_matching import DistributionMatching, MatchSettings

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

CLIP = (33, 480, 832)
# Wan2.1-T2V-1.3B, with the channels of image-to-video; a small text encoder, because no caption is encoded here.
SIZES = {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30, "image_dim": None, "added_kv_proj_dim": None}
TEXT = {"d_model": 4096, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 1}


@pytest.fixture(scope="module")
def model() -> Iterator[WanX]:
    wan = CHECKPOINTS["14b"]
    small = replace(wan, transformer={**wan.transformer, **SIZES}, text_encoder=TEXT, image_encoder=None)
    made = wan_random.assemble(small, CLIP, "cuda", torch.bfloat16)
    assert 1.4e9 < made.n_parameters < 1.45e9
    yield made
    torch.cuda.empty_cache()


@pytest.fixture(scope="module")
def data(model: WanX) -> TrainingData:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, *model.latent_shape, generator=generator).cuda()
    image = torch.randint(256, (1, *CLIP[1:], 3), generator=generator, dtype=torch.uint8)
    return TrainingData(latents, model.condition(image, ["a red circle"]))


def report(**numbers: float) -> None:
    """What a test measured, for the log (`pytest -s`)."""
    print(json.dumps({"gpu": torch.cuda.get_device_name(), "torch": torch.__version__} | numbers))


def seconds_of(work: Callable[[], Any], runs: int) -> float:
    work()
    began = now()
    for _ in range(runs):
        work()
    return (now() - began) / runs


def mfu(flops: float, seconds: float) -> float:
    flops_per_second, _ = peak(torch.cuda.get_device_name(), "bf16")
    return flops / seconds / flops_per_second if flops_per_second else float("nan")


def test_a_pass_in_bf16(model: WanX, data: TrainingData) -> None:
    order = attention_backend.resolve("auto", model.device, model.dtype)
    t = torch.full((1,), 0.5)
    with attention_backend.preferring(order):
        with torch.no_grad(), attention_backend.observed() as seen:
            velocity = model.velocity(data.latents, t, data.condition)
        assert velocity.isfinite().all() and velocity.shape == data.latents.shape and "math" not in seen
        with torch.inference_mode():
            seconds = seconds_of(lambda: model.velocity(data.latents, t, data.condition), 5)
    report(pass_s=seconds, mfu=mfu(wan_random.pass_flops(model).total, seconds))


def test_a_distribution_matching_iteration_in_bf16(model: WanX, data: TrainingData) -> None:
    settings = MatchSettings()
    stage = DistributionMatching(settings, Roles(model, data, {}))
    for module in stage.modules().values():
        module.enable_gradient_checkpointing()
    last = settings.fake_updates - 1  # the iteration that moves the student as well as the critic

    def iterate() -> None:
        batch = data.batch(1, torch.Generator().manual_seed(0))
        stage.train_step(batch, last)["loss"].backward()
        for optimizer in stage.optimizers(last):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    before = [p.detach().clone() for p in stage.student().transformer.blocks[0].parameters()]
    with DeviceMemory() as memory:
        iterate()
        model.tally.passes = 0.0
        seconds = seconds_of(iterate, 2)
    passes = model.tally.passes / 3  # a first one and two that were timed
    moved = stage.student().transformer.blocks[0].parameters()
    assert any(not torch.equal(a, b) for a, b in zip(before, moved, strict=True))
    assert memory.growth is not None
    flops = passes * wan_random.pass_flops(model).total
    report(iteration_s=seconds, passes=passes, mfu=mfu(flops, seconds), memory_gib=memory.growth / 2**30)


def test_compiled_blocks_give_the_same_velocity(model: WanX, data: TrainingData) -> None:
    teacher = copy.copy(model)
    teacher.shares_weights = True
    compiled = teacher.copy()
    for block in compiled.blocks:
        block.compile()
    t = torch.full((1,), 0.5)
    with torch.inference_mode():
        plain, fused = (m.velocity(data.latents, t, data.condition) for m in (model, compiled))
    # bf16 keeps 8 bits; thirty blocks of random weights add up their roundings.
    assert (fused - plain).norm() < 0.02 * plain.norm()


def test_the_verb_times_compiled_networks_on_the_gpu(flgbench: Flgbench) -> None:
    size = ("--frames", "5", "--height", "64", "--width", "64")
    arguments = ("--weights", "random", "--methods", "euler,fastlightgen", "--pairs", "2", "--compile", "--allow-fallback")
    code, out, err = flgbench("latency", *arguments, *size, "--json")
    assert code == 0, err
    rows = {row["row"]: row["values"] for row in json.loads(out)["rows"]}
    assert list(rows) == ["euler", "fastlightgen", "euler+compile", "fastlightgen+compile"]
    assert all(values["peak_memory_gib"]["value"] > 0 for values in rows.values())
