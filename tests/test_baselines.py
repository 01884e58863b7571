"""Samplers of the teacher that need no training: UniPC against an exact solution, FirstBlockCache against the uncached."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler
from pydantic import ValidationError
from stages import PRESET

from baselines.controls import ShuffledFrames
from baselines.euler import Euler
from baselines.first_block_cache import FirstBlockCache as CachedBaseline
from baselines.unipc import UniPC4, UniPC8, UniPC20
from flgbench import flow
from flgbench.cells import Step
from flgbench.contracts import EvaluationBatch
from flgbench.data import shapes
from flgbench.metrics.truth import measure
from flgbench.models.cache import FirstBlockCache
from flgbench.models.flops import pass_flops
from flgbench.models.wanx import WanX
from flgbench.plan import plan
from flgbench.registry import registry
from flgbench.run_settings import RunSettings
from flgbench.sampling import GuidedVelocity, SamplerSettings, euler, generate, unipc
from flgbench.stage import TrainingData
from flgbench.steps import sample
from flgbench.store import Store
from flgbench.timing import STAGES, time_clip

ALWAYS = 1e9  # a threshold under which every pass after the first is cut short
MEAN, SPREAD = 0.7, 1.0
NAMES = {
    "unipc-4": "baselines.unipc:UniPC4",
    "unipc-8": "baselines.unipc:UniPC8",
    "unipc-20": "baselines.unipc:UniPC20",
    "first-block-cache": "baselines.first_block_cache:FirstBlockCache",
}


def gaussian_velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Exact velocity of x0 ~ N(MEAN, SPREAD^2): linear in x."""
    variance = (1 - t) ** 2 * SPREAD**2 + t**2
    return -MEAN + (t - (1 - t) * SPREAD**2) / variance * (x - (1 - t) * MEAN)


def first(data: TrainingData, count: int) -> tuple:
    return data.condition.select(slice(0, count)), [(c, 0) for c in range(count)]


# UniPC


def test_unipc_is_nearer_to_the_exact_solution_than_euler() -> None:
    """The flow carries N(0, 1) to N(MEAN, SPREAD^2) along quantiles: x at 0 is MEAN + SPREAD times x at 1."""
    x = torch.randn(1, 1000, generator=torch.Generator().manual_seed(0))
    exact = MEAN + SPREAD * x

    def error(solver: Callable, steps: int) -> float:
        return (solver(gaussian_velocity, x, flow.euler_times(steps, 3.0)) - exact).pow(2).mean().sqrt().item()

    assert error(unipc, 8) < 0.5 * error(euler, 8)
    assert error(unipc, 4) < error(euler, 4)
    assert error(euler, 20) > (8 / 20) * error(euler, 8)  # first order
    assert error(unipc, 20) < (8 / 20) ** 2 * error(unipc, 8)  # second


@pytest.mark.parametrize("steps", [1, 4, 8])
def test_unipc_is_the_scheduler_with_its_own_shift(steps: int) -> None:
    """Our shifted times with flow_shift 1 are diffusers' uniform sigmas with flow_shift 3, and end at exactly 0."""
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    times = flow.euler_times(steps, 3.0)
    torch.testing.assert_close(scheduler.sigmas, times, rtol=0, atol=2e-6)  # it starts at 1 - 1e-6
    assert scheduler.sigmas[-1] == 0 == times[-1]
    x = torch.randn(2, 50, generator=torch.Generator().manual_seed(1))
    theirs, seen = x, []
    for sigma, timestep in zip(scheduler.sigmas, scheduler.timesteps, strict=False):
        theirs = scheduler.step(gaussian_velocity(theirs, sigma), timestep, theirs, return_dict=False)[0]

    def watched(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(t.item())
        return gaussian_velocity(x, t)

    ours = unipc(watched, x, times)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert seen == pytest.approx(times[:-1].tolist(), abs=2e-6)  # one evaluation a step, at the unrounded times
    assert torch.equal(unipc(gaussian_velocity, x, times), ours)


def test_unipc_ends_on_the_clean_estimate() -> None:
    """The last step has order 1 and goes to time 0, where x is the estimate of x0: exact when the velocity is."""
    x0, noise = (torch.randn(2, 20, generator=torch.Generator().manual_seed(s)) for s in (2, 3))
    made = unipc(lambda x, t: noise - x0, noise, flow.euler_times(8, 3.0))
    torch.testing.assert_close(made, x0, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("baseline", "passes"), [(UniPC4, 8), (UniPC8, 16), (UniPC20, 40), (CachedBaseline, 100)])
def test_only_the_sampler_changes(baseline: type[Euler], passes: int) -> None:
    settings, teacher = baseline(PRESET).sampler(), Euler(PRESET).sampler()
    assert settings.nfe == passes and baseline.kind == "baseline"
    assert (settings.shift, settings.guidance_scale) == (teacher.shift, teacher.guidance_scale)
    assert SamplerSettings.model_validate(settings.model_dump(mode="json", exclude_none=True)) == settings


def test_unipc_counts_its_passes(tiny_model: WanX, tiny_data: TrainingData) -> None:
    condition, ids = first(tiny_data, 2)
    settings = SamplerSettings(kind="unipc", num_inference_steps=4, guidance_scale=2)
    before = tiny_model.tally.passes
    one, nfe = generate(tiny_model, condition, ids, settings)
    assert nfe == settings.nfe == 8 and tiny_model.tally.passes - before == 2 * 8
    two, _ = generate(tiny_model, condition, ids, settings)
    assert torch.equal(one, two) and one.isfinite().all()


# FirstBlockCache


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_threshold_zero_caches_nothing(guidance: float, tiny_model: WanX, tiny_data: TrainingData) -> None:
    settings = SamplerSettings(num_inference_steps=4, guidance_scale=guidance)
    condition, ids = first(tiny_data, 1)
    plain, nfe = generate(tiny_model, condition, ids, settings)
    with_cache = settings.model_copy(update={"cache_threshold": 0.0})
    cache = FirstBlockCache(tiny_model, 0.0)
    cached, begun = generate(tiny_model, condition, ids, with_cache, cache=cache)
    torch.testing.assert_close(cached, plain, rtol=0, atol=1e-6)
    assert cache.computed_share == 1 and begun == nfe == settings.nfe
    assert not any(hasattr(b, "_diffusers_hook") for b in tiny_model.blocks)  # the model itself has no hooks


@pytest.mark.parametrize("clips", [1, 3])
def test_every_clip_and_branch_starts_anew(clips: int, tiny_model: WanX, tiny_data: TrainingData) -> None:
    """When all may be skipped, each of 2 branches computes its first pass whole (4 blocks) and of 4 more the first block:
    (4 + 4) / (5 * 4) of the blocks. A state that outlived a clip, or that branches shared, would compute less."""
    settings = SamplerSettings(num_inference_steps=5, guidance_scale=2, cache_threshold=ALWAYS)
    cache = FirstBlockCache(tiny_model, ALWAYS)
    condition, ids = first(tiny_data, clips)
    before = tiny_model.tally.passes
    _, nfe = generate(tiny_model, condition, ids, settings, cache=cache)
    assert cache.computed_share == 8 / 20
    assert nfe == 10 and tiny_model.tally.passes - before == 10 * clips  # begun, though most end early
    generate(tiny_model, condition, ids, settings, cache=cache)  # a second batch: the share stays
    assert cache.computed_share == 8 / 20


def test_a_cached_clip_does_not_depend_on_its_batch(tiny_model: WanX, tiny_data: TrainingData) -> None:
    settings = SamplerSettings(num_inference_steps=4, guidance_scale=2, cache_threshold=0.05)
    condition, ids = first(tiny_data, 3)
    together, _ = generate(tiny_model, condition, ids, settings)
    alone, _ = generate(tiny_model, condition.select(slice(2, 3)), ids[2:], settings)
    assert torch.equal(together[2:], alone)


def test_branches_keep_their_own_residuals(tiny_model: WanX, tiny_data: TrainingData) -> None:
    """Guided passes through one cache equal each branch through a cache of its own."""
    condition, _ = first(tiny_data, 1)
    one, cond, uncond = (FirstBlockCache(tiny_model, ALWAYS) for _ in range(3))
    guided = GuidedVelocity(one.model, condition, 2.0, branch=one.branch)
    separate = (
        GuidedVelocity(cond.model, condition, branch=cond.branch),
        GuidedVelocity(uncond.model, condition.unconditional(), branch=uncond.branch),
    )
    plain = GuidedVelocity(tiny_model, condition, 2.0)
    with torch.inference_mode():
        for i, time in enumerate((1.0, 0.6, 0.2)):
            x, t = tiny_data.latents[i : i + 1], torch.tensor(time)
            v, v0 = (each(x, t) for each in separate)
            made = guided(x, t)
            assert torch.equal(made, flow.guide(v, v0, 2.0))
            assert torch.equal(made, plain(x, t)) == (i == 0)  # later passes are really cut short


def test_a_skipped_pass_adds_the_last_computed_residual(tiny_model: WanX, tiny_data: TrainingData) -> None:
    """Tokens after the last block: block 1 of this pass plus what blocks 2 to 4 added in the computed one."""
    condition, _ = first(tiny_data, 1)
    cache = FirstBlockCache(tiny_model, ALWAYS)
    tokens: list[torch.Tensor] = []
    for block in (tiny_model.blocks[0], tiny_model.blocks[3], cache.model.blocks[3]):
        block.register_forward_hook(lambda module, inputs, output: tokens.append(output))
    try:
        with torch.inference_mode():
            for i, time in enumerate((0.9, 0.5)):
                x, t = tiny_data.latents[i : i + 1], torch.tensor([time])
                tiny_model.velocity(x, t, condition)
                with cache.branch("cond"):
                    cache.model.velocity(x, t, condition)
    finally:
        for block in tiny_model.blocks:
            block._forward_hooks.clear()
    first_then, last_then, cached_then, first_now, _, cached_now = tokens
    assert torch.equal(cached_then, last_then)
    torch.testing.assert_close(cached_now, first_now + (last_then - first_then), rtol=0, atol=1e-5)


def test_negative_threshold_is_refused() -> None:
    with pytest.raises(ValidationError):
        SamplerSettings(cache_threshold=-0.1)


# In a run


@pytest.fixture
def names() -> Iterator[tuple[str, ...]]:
    """The baselines' names, registered here where the installed package does not know them yet."""
    registry.cache_clear()
    for name in NAMES.keys() - set(registry("baselines").names()):
        registry("baselines").register(name, NAMES[name], "a test")
    yield tuple(NAMES)
    registry.cache_clear()


def test_they_are_planned_and_old_keys_stay(names: tuple[str, ...]) -> None:
    made = plan(RunSettings(baselines=("euler", *names)), {})
    cells = {c.name: c for c in made.cells}
    assert [cells[n].sampler.nfe for n in names] == [8, 16, 40, 100]  # type: ignore[union-attr]
    assert not cells["unipc-8"].inferred
    (note,) = cells["first-block-cache"].inferred
    assert note["setting"] == "cache_threshold" and note["value"] == 0.035 and note["note"].startswith("INFERRED")
    samplers = {s.name: s.settings["sampler"] for s in made.steps.values() if s.kind == "sample"}
    # A sampler without a cache is written as before there were caches: stored clips stay valid.
    assert set(samplers["euler"]) == {"kind", "num_inference_steps", "guidance_scale", "shift"}
    assert samplers["first-block-cache"] == samplers["euler"] | {"cache_threshold": 0.035}


def test_the_sample_step_records_what_was_computed(
    tiny_model: WanX, tiny_data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "load_denoiser", lambda step, store, role: tiny_model)
    monkeypatch.setattr(sample, "load_clips", lambda folder: tiny_data)
    facts = []
    for sampler in ({"num_inference_steps": 2, "guidance_scale": 2, "cache_threshold": ALWAYS}, {"num_inference_steps": 2}):
        told = {"model": "wanx", "sampler": sampler, "conditions": 2, "repeated_conditions": 0}
        step = Step("sample", "probe", told, {"data": "clips"})
        store = Store(tmp_path)
        facts.append(sample.run(step, store, store.start(step.key)))
    one = pass_flops(tiny_model, tiny_data.condition.select(slice(0, 1)))
    size = {"parameters": tiny_model.n_parameters, "blocks": 4}
    cards = [found.pop("card") for found in facts]
    assert [c["NFE"] for c in cards] == [4, 2] and [c["conditions"] for c in cards] == [2, 2]
    assert facts[0] == size | {"nfe": 4, "computed_share": 5 / 8, "flops": round(4 * 5 / 8 * one)}
    assert facts[1] == size | {"nfe": 2, "computed_share": 1.0, "flops": 2 * one}


@pytest.mark.parametrize("batched", [False, True])
def test_latency_times_a_cached_clip(batched: bool, tiny_model: WanX) -> None:
    settings = SamplerSettings(num_inference_steps=2, guidance_scale=2, cache_threshold=ALWAYS)
    cache = FirstBlockCache(tiny_model, ALWAYS)
    image = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    for _ in range(2):
        seconds = time_clip(tiny_model, settings, image, ["a red circle"], 0, batched, cache)
        assert set(seconds) == set(STAGES) and all(s > 0 for s in seconds.values())
    assert cache.computed_share == 5 / 8


def test_shuffled_frames_keep_every_picture_and_lose_the_motion(tiny_model: WanX) -> None:
    factors = shapes.draw_factors("test", range(24))
    truth = shapes.render(factors)
    batch = EvaluationBatch(None, truth[:, 0], truth, [(c, 0) for c in range(24)])
    made = ShuffledFrames(PRESET).generate(tiny_model, batch)
    assert (made == ShuffledFrames(PRESET).generate(tiny_model, batch)).all() and (made[:, 0] == truth[:, 0]).all()
    flat = [clip.flatten(1).double().sum(1).sort().values for clip in (made[3], truth[3])]
    assert (flat[0] == flat[1]).all() and (made[3] != truth[3]).any()
    other = ShuffledFrames(PRESET).generate(tiny_model, replace(batch, identities=[(c, 1) for c in range(24)]))
    assert (other != made).any()
    shuffled, real = (np.nanmean(measure(video, factors)["turn_error"]) for video in (made, truth))
    assert shuffled > 2 and real < 0.1
