"""Latent consistency distillation: the loss where its value is known, then the stage for some iterations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from stages import PRESET, assert_resumes, preset, run_stages, ten_blocks, train_for

from flgbench import flow
from flgbench.errors import UsageError
from flgbench.models.wanx import WanX
from flgbench.stage import Roles, TrainingData
from methods.lcm import LCM, LCMSettings
from methods.parts.consistency import ConsistencyDistillation, ConsistencySettings, euler_step, pseudo_huber
from methods.parts.importance import ImportanceSettings

pytestmark = pytest.mark.usefixtures("log_every_iteration")


def batch_of(data: TrainingData, size: int = 4):
    return data.batch(size, torch.Generator().manual_seed(0))


def disturb(model: WanX, seed: int = 0, amount: float = 0.1) -> None:
    """Noise on all weights, so that the model differs from what it was copied from."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.transformer.parameters():
            p.add_(amount * torch.randn(p.shape, generator=generator))


# The loss


def test_pseudo_huber_is_quadratic_below_h_and_linear_above() -> None:
    h = 1e-3
    d = torch.linspace(-1, 1, 101)
    torch.testing.assert_close(pseudo_huber(1e-6 * d, h), (1e-6 * d).pow(2).mean() / (2 * h), rtol=1e-5, atol=0)
    torch.testing.assert_close(pseudo_huber(1e3 * d, h), 1e3 * d.abs().mean() - h, rtol=1e-5, atol=0)
    exact = ((0.37**2 + h**2) ** 0.5) - h
    assert pseudo_huber(torch.full((5,), 0.37), h).item() == pytest.approx(exact, rel=1e-6)
    assert pseudo_huber(torch.zeros(5), h) == 0
    assert pseudo_huber(torch.full((4,), 300.0, dtype=torch.float16), h).item() == pytest.approx(
        300, rel=1e-4
    )  # no overflow


def test_euler_step_is_exact_on_a_straight_flow() -> None:
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(2, 1, 2, 4, 4, generator=generator) for _ in range(2))
    t, s = torch.tensor([0.9, 0.6]), torch.tensor([0.5, 0.0])
    x_t, velocity = flow.interpolate(x0, noise, t), flow.velocity_target(x0, noise)
    stepped = euler_step(x_t, t, s, velocity)
    torch.testing.assert_close(stepped, flow.interpolate(x0, noise, s))
    torch.testing.assert_close(stepped[1], x0[1])
    assert euler_step(x_t.bfloat16(), t, s, velocity.bfloat16()).dtype == torch.float32


def test_no_loss_on_a_constant_flow(tiny_model: WanX, tiny_data: TrainingData) -> None:
    """With one velocity everywhere all points of a trajectory have the same clean estimate, whatever the guidance."""
    teacher = tiny_model.copy()
    with torch.no_grad():
        teacher.transformer.proj_out.weight.zero_()
        teacher.transformer.proj_out.bias.normal_(generator=torch.Generator().manual_seed(0))
    stage = ConsistencyDistillation(ConsistencySettings(), Roles(teacher, tiny_data, {}))
    assert stage.train_step(batch_of(tiny_data), 0)["loss"].item() < 1e-9
    disturb(stage.target)
    assert stage.train_step(batch_of(tiny_data), 0)["loss"].item() > 1e-3


def test_the_loss_is_the_equation(tiny_model: WanX, tiny_data: TrainingData) -> None:
    """methods.md 4, written out with the same draws: guided Euler step of the teacher, target by the EMA network."""
    teacher = tiny_model.copy()
    stage = ConsistencyDistillation(ConsistencySettings(guidance_scale=2.5), Roles(teacher, tiny_data, {}))
    disturb(stage.model, 1, 0.05)
    disturb(stage.target, 2, 0.05)
    found = stage.train_step(batch_of(tiny_data), 0)["loss"]

    batch = batch_of(tiny_data)
    n = torch.randint(50, (4,), generator=batch.generator)
    t, s = flow.euler_times(50, 3.0)[n], flow.euler_times(50, 3.0)[n + 1]
    assert (s < t).all()
    x_t = flow.interpolate(batch.latents, batch.noise(), t)
    wide = (slice(None), None, None, None, None)
    with torch.no_grad():
        v, v0 = (teacher.velocity(x_t, t, c) for c in (batch.condition, batch.condition.unconditional()))
        x_s = x_t - (t - s)[wide] * (v0 + 2.5 * (v - v0))
        target = x_s - s[wide] * stage.target.velocity(x_s, s, batch.condition)
        clean = x_t - t[wide] * stage.model.velocity(x_t, t, batch.condition)
    expected = (((clean - target) ** 2 + 1e-6).sqrt() - 1e-3).mean()
    torch.testing.assert_close(found.detach(), expected, rtol=1e-4, atol=1e-6)


def test_at_the_end_of_the_trajectory_the_target_is_the_euler_step(tiny_model: WanX, tiny_data: TrainingData) -> None:
    """A grid of one point has s = 0 only: the target network's weights do not matter, the student imitates the teacher."""
    stage = ConsistencyDistillation(ConsistencySettings(grid=1, guidance_scale=1), Roles(tiny_model, tiny_data, {}))
    disturb(stage.target)
    assert stage.train_step(batch_of(tiny_data), 0)["loss"].item() < 1e-9
    x, zero = tiny_data.latents[:2], torch.zeros(2)
    assert torch.equal(
        flow.clean_estimate(x, zero, stage.target.velocity(x, zero, tiny_data.condition.select(slice(0, 2)))), x
    )


def test_static_estimates_are_logged_and_not_guarded(tiny_model: WanX, tiny_data: TrainingData) -> None:
    stage = ConsistencyDistillation(ConsistencySettings(), Roles(tiny_model, tiny_data, {}))
    losses = stage.train_step(batch_of(tiny_data), 0)
    assert "clean" not in losses and losses["motion"].ndim == 0


# The stage


def test_training_moves_student_and_target_and_leaves_the_teacher(
    tiny_model: WanX, tiny_data: TrainingData, tmp_path: Path
) -> None:
    stage = ConsistencyDistillation(ConsistencySettings(ema_decay=0.75), Roles(tiny_model, tiny_data, {}))
    teacher = [p.clone() for p in tiny_model.transformer.parameters()]
    tiny_model.tally.passes = 0
    lines = train_for(stage, tiny_data, tiny_model, tmp_path, 1)
    assert lines[0]["passes"] == 2 * 6  # student and its backward 3, guided teacher 2, target 1
    moved = False
    parts = (m.transformer.parameters() for m in (stage.model, stage.target))
    for before, student, target in zip(teacher, *parts, strict=True):
        # Stopped in the log line: the target has moved by then.
        torch.testing.assert_close(target, 0.75 * before + 0.25 * student.detach())
        moved |= not torch.equal(before, student)
    assert moved and not any(p.requires_grad for p in stage.target.transformer.parameters())
    assert all(torch.equal(a, b) for a, b in zip(teacher, tiny_model.transformer.parameters(), strict=True))
    assert stage.student() is stage.model and stage.student() is not stage.target


def test_an_interrupted_training_ends_where_the_whole_one_does(
    tiny_model: WanX, tiny_data: TrainingData, tmp_path: Path
) -> None:
    def make() -> ConsistencyDistillation:
        return ConsistencyDistillation(ConsistencySettings(), Roles(tiny_model, tiny_data, {}))

    assert_resumes(make, tiny_data, tiny_model, tmp_path, budget=6 * 12)


# The method


def test_a_pruned_start_gives_a_student_with_seventy_percent_of_the_blocks(
    tiny_model: WanX, tiny_data: TrainingData, tmp_path: Path
) -> None:
    teacher = ten_blocks(tiny_model)
    method = LCM(LCMSettings(keep=0.7, importance=ImportanceSettings(clips=2, times=1)), preset(teacher))
    assert [spec.name for spec in method.stages(1e4)] == ["importance", "recover", "distill"]
    curves = run_stages(method, teacher, tiny_data, tmp_path, 2)
    assert curves.keys() == {"recover", "distill"}
    # Student and target run 7 of 10 blocks, the guided teacher all.
    assert curves["distill"][0]["passes"] == pytest.approx(2 * (0.7 * 4 + 2))
    student = teacher.with_transformer(tmp_path / "distill" / "transformer")
    assert len(student.blocks) == 7 and len(student.kept_blocks) == 7


def test_the_dense_method_is_one_stage_of_the_whole_budget() -> None:
    (spec,) = LCM(LCMSettings(), PRESET).stages(1000)
    assert (spec.name, spec.budget, dict(spec.inputs)) == ("distill", 1000, {})
    sampler = LCM(LCMSettings(), PRESET).sampler()
    assert (sampler.kind, sampler.nfe) == ("renoise", 4)
    with pytest.raises(UsageError, match="lcm: ranking blocks takes 640 network passes"):
        LCM(LCMSettings(keep=0.7), PRESET).stages(600)


@pytest.mark.parametrize("wrong", [{"guidance_scale": 0.5}, {"grid": 0}, {"huber": 0.0}, {"ema_decay": 1.0}])
def test_settings_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        ConsistencySettings(**wrong)  # type: ignore[arg-type]
