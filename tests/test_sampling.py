"""Samplers against diffusers, and the count of network passes against the model's own tally.

What "parity with diffusers" means here. Wan's image-to-video pipeline calls `scheduler.set_timesteps(n)` and nothing else.
FlowMatchEulerDiscreteScheduler then spaces n times evenly between its sigma_max and sigma_min, and shifts them; but its
sigma_min has been shifted once already by its constructor. With shift 3 the stock times therefore end, before the final
jump to 0, at u = 0.002994, t = 0.0089 whatever n is: n steps are n - 1 real ones and one of almost no length. The
schedule of `flow.euler_times` is uniform in u from 1 to 0 with n + 1 points, each step of equal length before the shift,
as the original Wan code's `get_sampling_sigmas` has it; the scheduler does the same when told so:
`set_timesteps(sigmas=linspace(1, 1/n, n))`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import stock_vae
from diffusers import FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline
from pydantic import ValidationError

from flgbench import flow
from flgbench.data import shapes
from flgbench.data.captions import captions_of
from flgbench.errors import StageFailure
from flgbench.models.wanx import WanX
from flgbench.sampling import GuidedVelocity, SamplerSettings, clip_noise, euler, generate, guided_training
from flgbench.stage import TrainingData
from flgbench.steps.sample import check_finite

SHIFT = 3.0


def bent(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A velocity that is linear in neither x nor t, so that no two schedules agree on it."""
    return torch.sin(3 * x) + t * x - t**2


def scheduler_solution(scheduler: FlowMatchEulerDiscreteScheduler, x: torch.Tensor) -> torch.Tensor:
    for timestep in scheduler.timesteps:
        x = scheduler.step(bent(x, timestep / 1000), timestep, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize("steps", [1, 4, 50])
def test_euler_is_the_scheduler_with_uniform_sigmas(steps: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist())
    times = flow.euler_times(steps, SHIFT)
    torch.testing.assert_close(times, scheduler.sigmas, rtol=0, atol=1e-6)
    x = torch.randn(2, 16, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(euler(bent, x, times), scheduler_solution(scheduler, x), rtol=0, atol=2e-5)


@pytest.mark.parametrize("steps", [4, 50])
def test_euler_is_the_stock_scheduler_on_its_own_times(steps: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    scheduler.set_timesteps(steps)
    x = torch.randn(2, 16, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(euler(bent, x, scheduler.sigmas), scheduler_solution(scheduler, x), rtol=0, atol=2e-5)


def test_how_the_stock_times_differ() -> None:
    """The statement of this file's head in numbers, so that a change in diffusers does not go unnoticed."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    twice_shifted = flow.shift(flow.shift(torch.tensor(0.001), SHIFT), SHIFT)
    for steps in (4, 50):
        scheduler.set_timesteps(steps)
        assert scheduler.sigmas[-2].item() == pytest.approx(twice_shifted.item(), rel=1e-4)
        stock = flow.shift(torch.linspace(1, flow.shift(torch.tensor(0.001), SHIFT).item(), steps), SHIFT)
        torch.testing.assert_close(scheduler.sigmas[:-1], stock, rtol=0, atol=1e-6)
    assert flow.euler_times(4, SHIFT)[-2] == 0.5 and scheduler.sigmas[-2] < 0.01


def test_stock_pipeline_makes_the_same_latents(tiny_model: WanX, tmp_path: Path) -> None:
    """A saved model through WanImageToVideoPipeline.from_pretrained: same prompts, first frames, mask, guidance, solver.

    The pipeline's autoencoder runs diffusers' own convolutions. It has to be told the length of the captions, because
    padding tokens take part in Wan's cross-attention.
    """
    parts = {"transformer": tiny_model.transformer, "vae": stock_vae(), "text_encoder": tiny_model.text_encoder}
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    built = WanImageToVideoPipeline(
        tokenizer=tiny_model.tokenizer, scheduler=scheduler, image_encoder=None, image_processor=None, **parts
    )
    built.save_pretrained(tmp_path)
    pipeline = WanImageToVideoPipeline.from_pretrained(tmp_path, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    factors = shapes.draw_factors("test", [3])
    image, caption = shapes.render(factors)[:, 0], captions_of(factors)
    noise = clip_noise(3, 0, 0, tiny_model.latent_shape)[None]
    made = pipeline(
        image=image[0].permute(2, 0, 1)[None].float() / 255,
        prompt=caption,
        negative_prompt=tiny_model.negative_caption,
        height=64,
        width=64,
        num_frames=17,
        num_inference_steps=3,
        guidance_scale=3.0,
        max_sequence_length=tiny_model.text_length,
        latents=noise,
        output_type="latent",
    ).frames
    with torch.inference_mode():
        velocity = GuidedVelocity(tiny_model, tiny_model.condition(image, caption), 3.0)
        ours = euler(velocity, noise, pipeline.scheduler.sigmas)
    assert (ours - noise).abs().mean() > 0.1  # the comparison is about something
    torch.testing.assert_close(ours, made, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["euler", "renoise"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("batched", [False, True])
def test_passes_are_counted(kind: str, guidance: float, batched: bool, tiny_model: WanX, tiny_data: TrainingData) -> None:
    """The sampler's count, the settings' promise and the model's own tally agree; guidance costs two."""
    settings = SamplerSettings(kind=kind, num_inference_steps=3, guidance_scale=guidance)  # type: ignore[arg-type]
    before = tiny_model.tally.passes
    latents, nfe = generate(tiny_model, tiny_data.condition.select(slice(0, 2)), [(0, 0), (1, 0)], settings, batched)
    assert latents.shape == (2, *tiny_model.latent_shape)
    assert nfe == settings.nfe == (3 if guidance == 1 else 6)
    assert (tiny_model.tally.passes - before) == nfe * 2


def test_batched_guidance_equals_two_passes(tiny_model: WanX, tiny_data: TrainingData) -> None:
    condition, settings = tiny_data.condition.select(slice(0, 3)), SamplerSettings(num_inference_steps=2, guidance_scale=4)
    ids = [(0, 0), (1, 0), (2, 5)]
    one, _ = generate(tiny_model, condition, ids, settings, batched_cfg=False)
    two, _ = generate(tiny_model, condition, ids, settings, batched_cfg=True)
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5)
    unguided, _ = generate(tiny_model, condition, ids, settings.model_copy(update={"guidance_scale": 1.0}))
    assert (one - unguided).abs().max() > 1e-3  # guidance does something here


@pytest.mark.parametrize("kind", ["euler", "renoise"])
def test_a_clip_does_not_depend_on_its_batch(kind: str, tiny_model: WanX, tiny_data: TrainingData) -> None:
    settings = SamplerSettings(kind=kind, num_inference_steps=2)  # type: ignore[arg-type]
    ids = [(4, 0), (2, 1), (7, 0)]
    index = torch.tensor([c for c, _ in ids])
    together, _ = generate(tiny_model, tiny_data.condition.select(index), ids, settings)
    alone, _ = generate(tiny_model, tiny_data.condition.select(slice(2, 3)), [(2, 1)], settings)
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-5)


def test_clip_noise_is_normal_and_tells_clips_apart() -> None:
    draws = [clip_noise(c, s, d, (16, 5, 8, 8)) for c in range(4) for s in range(3) for d in range(3)]
    assert torch.equal(draws[0], clip_noise(0, 0, 0, (16, 5, 8, 8)))
    stacked = torch.stack(draws).flatten(1)
    correlation = torch.corrcoef(stacked) - torch.eye(len(draws))
    assert correlation.abs().max() < 0.08  # 36 draws of 5120 numbers: 4 standard errors are 0.056
    assert stacked.mean().abs() < 0.02 and abs(stacked.std() - 1) < 0.02


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_inference_steps": 0},
        {"num_inference_steps": 1001},
        {"guidance_scale": 0.5},
        {"shift": 0},
        {"kind": "heun"},
        {"steps": 4},
    ],
)
def test_wrong_sampler_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SamplerSettings(**wrong)  # type: ignore[arg-type]


def test_schedule_of_the_settings() -> None:
    assert SamplerSettings(num_inference_steps=4).schedule().tolist() == pytest.approx([1, 0.9, 0.75, 0.5, 0])
    assert SamplerSettings(num_inference_steps=50, guidance_scale=3).nfe == 100


def test_clips_that_are_not_finite_fail_by_name() -> None:
    latents = torch.zeros(3, 2, 1, 1, 1)
    check_finite(latents, [(0, 0), (1, 0), (1, 1)])
    latents[2, 1] = float("nan")
    with pytest.raises(StageFailure, match=r"NaN: the sampled latents are not finite \(condition 1 sample 1\)"):
        check_finite(latents, [(0, 0), (1, 0), (1, 1)])


def test_a_batch_is_guided_as_by_two_passes(tiny_model: WanX, tiny_data: TrainingData) -> None:
    x, t, condition = tiny_data.latents[:2], torch.tensor([0.3, 0.9]), tiny_data.condition.select(slice(0, 2))
    tiny_model.tally.passes = 0
    with torch.no_grad():
        found = guided_training(tiny_model, condition, 4.0)(x, t)
        assert tiny_model.tally.passes == 4
        expected = GuidedVelocity(tiny_model, condition, 4.0)
        torch.testing.assert_close(found[:1], expected(x, t[:1])[:1], rtol=0, atol=1e-5)
        torch.testing.assert_close(found[1:], expected(x, t[1:])[1:], rtol=0, atol=1e-5)
        assert torch.equal(guided_training(tiny_model, condition)(x, t), tiny_model.velocity(x, t, condition))
