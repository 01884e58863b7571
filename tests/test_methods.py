"""The parts of the methods: losses and gradients with known answers, then each stage for some iterations."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from stages import PRESET, run, same, weights

from flgbench import flow
from flgbench.errors import StageFailure, UsageError
from flgbench.models.wanx import WanX
from flgbench.stage import Roles, TrainingData
from methods.fastlightgen import FastLightGen, FastLightGenSettings
from methods.parts.adversarial import discriminator_loss, generator_loss
from methods.parts.distribution_matching import (
    DistributionMatching,
    MatchSettings,
    matching_gradient,
    matching_loss,
    well_guided_velocity,
)
from methods.parts.importance import Importance, ImportanceSettings, deletion_damage, n_redundant
from methods.parts.recovery import Recovery, RecoverySettings, recovery_loss

pytestmark = pytest.mark.usefixtures("log_every_iteration")


def importance_folder(folder: Path, redundant: list[int]) -> Path:
    folder.mkdir()
    (folder / "importance.json").write_text(json.dumps({"redundant": redundant}))
    return folder


# Distribution matching


def gaussian_clean(x: torch.Tensor, t: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """X0 of the exact velocity of N(mean, I): with V = (1-t)^2 + t^2 it is mean + (1-t)/V (x - (1-t) mean)."""
    scale = (1 - t) ** 2 + t**2
    velocity = -mean + (t - (1 - t)) / scale * (x - (1 - t) * mean)
    return flow.clean_estimate(x, t, velocity)


@pytest.mark.parametrize("time", [0.1, 0.5, 0.98])
def test_matching_gradient_points_from_teacher_to_student(time: float) -> None:
    """Student N(mu_g, I), teacher N(mu_r, I): f - r = t^2 / V (mu_g - mu_r) at every x, so descending g moves the
    student's mean straight to the teacher's; and it vanishes when they are equal."""
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(3, 1, 2, 4, 4, generator=generator) for _ in range(2))
    mu_g, mu_r = torch.tensor(1.2), torch.tensor(-0.5)
    t = torch.tensor(time)
    x_t = flow.interpolate(clean + mu_g, noise, t)
    fake, real = gaussian_clean(x_t, t, mu_g), gaussian_clean(x_t, t, mu_r)
    expected = (t**2 / ((1 - t) ** 2 + t**2) * (mu_g - mu_r)).expand_as(clean)
    torch.testing.assert_close(fake - real, expected, rtol=1e-4, atol=1e-5)
    gradient = matching_gradient(clean + mu_g, fake, real)
    scale = (clean + mu_g - real).abs().mean((1, 2, 3, 4), keepdim=True)  # one a clip
    torch.testing.assert_close(gradient * scale, expected, rtol=1e-4, atol=1e-5)
    assert (matching_gradient(clean, fake, fake) == 0).all()


def test_matching_loss_has_the_gradient_as_its_gradient() -> None:
    clean = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    gradient = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))
    matching_loss(clean, gradient).backward()
    torch.testing.assert_close(clean.grad, gradient / gradient.numel())


def test_a_student_that_descends_the_gradient_reaches_the_teacher() -> None:
    """Closed loop in one dimension: the fake is exact for the student at every moment."""
    generator = torch.Generator().manual_seed(0)
    mu, target = torch.tensor(3.0, requires_grad=True), torch.tensor(-1.0)
    for _ in range(300):
        clean = mu + torch.randn(32, 1, generator=generator)
        t = torch.rand(32, 1, generator=generator) * 0.96 + 0.02
        x_t = flow.interpolate(clean.detach(), torch.randn(32, 1, generator=generator), t.squeeze(1))
        fake, real = gaussian_clean(x_t, t, mu.detach()), gaussian_clean(x_t, t, target)
        (slope,) = torch.autograd.grad(matching_loss(clean, matching_gradient(clean.detach(), fake, real)), mu)
        mu = (mu - 0.1 * slope).detach().requires_grad_(True)
    assert mu.item() == pytest.approx(target.item(), abs=0.05)


def test_well_guided_teacher_contains_its_special_cases() -> None:
    generator = torch.Generator().manual_seed(0)
    dense, unconditional, pruned = (torch.randn(2, 3, 4, generator=generator) for _ in range(3))
    guided = flow.guide(dense, unconditional, 3.5)
    torch.testing.assert_close(well_guided_velocity(dense, unconditional, pruned, 3.5, 0.0), guided)
    torch.testing.assert_close(well_guided_velocity(dense, unconditional, None, 3.5, 0.25), guided)
    torch.testing.assert_close(well_guided_velocity(dense, unconditional, pruned, 1.0, 0.0), dense)
    intra = well_guided_velocity(dense, unconditional, pruned, 1.0, 0.25)
    torch.testing.assert_close(intra, 1.25 * dense - 0.25 * pruned)  # away from the pruned pass
    per_clip = well_guided_velocity(dense, unconditional, pruned, torch.tensor([1.0, 3.5]), torch.tensor([0.25, 0.0]))
    torch.testing.assert_close(per_clip, torch.stack([intra[0], guided[1]]))


@pytest.mark.parametrize(("gan", "pruned"), [(0.0, False), (0.5, False), (0.0, True), (0.5, True)])
def test_distribution_matching_trains_student_and_fake(
    gan: float, pruned: bool, tiny_model: WanX, tiny_data: TrainingData, tmp_path: Path
) -> None:
    teacher, artifacts = tiny_model.copy(), {}
    if pruned:
        recovered = tiny_model.copy()
        with torch.no_grad():
            recovered.transformer.proj_out.bias.add_(0.1)  # so that it can be told from the teacher
        recovered.save(tmp_path / "recovered" / "transformer")
        artifacts = {"importance": importance_folder(tmp_path / "i", [2]), "recovered": tmp_path / "recovered"}
    settings = MatchSettings(fake_updates=1, gan_weight=gan, beta2=0.25 if pruned else 0.0)
    stage = DistributionMatching(settings, Roles(teacher, tiny_data, artifacts))
    assert len(stage.student().blocks) == (3 if pruned else 4) and len(stage.fake.blocks) == 4
    start = recovered if pruned else teacher
    assert torch.equal(stage.student().transformer.proj_out.bias, start.transformer.proj_out.bias)
    before = [weights(m) for m in (stage.student(), stage.fake, teacher, stage.real)]
    head = [p.detach().clone() for p in stage.discriminator.parameters()] if stage.discriminator else []

    lines = run(stage, teacher, tiny_data, tmp_path / "work", budget=180)
    after = [weights(m) for m in (stage.student(), stage.fake, teacher, stage.real)]
    changed = [not same(a, b) for a, b in zip(before, after, strict=True)]
    assert changed == [True, True, False, False]
    if stage.discriminator:
        assert not same(head, [p.detach() for p in stage.discriminator.parameters()])
    named = {name for line in lines for name in line}
    assert {"gradient_rms", "fake"} <= named and ({"discriminator", "adversarial"} <= named) == (gan > 0)
    assert stage.student().kept_blocks == ((0, 1, 3) if pruned else (0, 1, 2, 3))


def test_two_time_scales(tiny_model: WanX, tiny_data: TrainingData) -> None:
    """The critic moves in every iteration, the student in the last of every `fake_updates`."""
    stage = DistributionMatching(MatchSettings(fake_updates=3), Roles(tiny_model, tiny_data, {}))
    assert [stage.moves_student(i) for i in range(6)] == [False, False, True] * 2
    named = {id(o): name for name, o in stage.all_optimizers().items()}
    assert [[named[id(o)] for o in stage.optimizers(i)] for i in (1, 2)] == [["fake"], ["student", "fake"]]


def test_student_and_critics_do_not_train_each_other(tiny_model: WanX, tiny_data: TrainingData) -> None:
    """One backward of the summed loss gives every network the gradient of its own loss alone."""
    settings = MatchSettings(fake_updates=1, gan_weight=0.5)

    def gradients(parts: tuple[str, ...]) -> dict[str, list[torch.Tensor | None]]:
        stage = DistributionMatching(settings, Roles(tiny_model, tiny_data, {}))
        with torch.no_grad():
            stage.fake.transformer.proj_out.bias.add_(0.3)  # otherwise fake = real and the student has nothing to do
        generator = torch.Generator().manual_seed(0)
        for parameter in stage.discriminator.parameters():  # type: ignore[union-attr]
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
        batch = tiny_data.batch(4, torch.Generator().manual_seed(0))
        clean = stage.sample_student(batch)
        critic = stage._critic_losses(clean.detach(), batch)["loss"]
        student = stage._student_losses(clean, batch)["loss"]
        sum({"critic": critic, "student": student}[p] for p in parts).backward()
        return {name: [p.grad for p in module.parameters()] for name, module in stage.modules().items()}

    both, critic, student = gradients(("critic", "student")), gradients(("critic",)), gradients(("student",))
    assert all(g is None for g in critic["student"])
    assert all(g is None for name in ("fake", "discriminator") for g in student[name])
    for name, own in (("student", student), ("fake", critic), ("discriminator", critic)):
        assert any(g is not None and g.abs().sum() > 0 for g in own[name])
        assert all(torch.equal(a, b) for a, b in zip(both[name], own[name], strict=True) if a is not None and b is not None)


def test_adversarial_losses_pull_apart() -> None:
    low, high = torch.full((4,), -3.0), torch.full((4,), 3.0)
    assert discriminator_loss(low, high) < discriminator_loss(high, low)
    assert generator_loss(high) < generator_loss(low)
    zero = torch.zeros(4)
    assert discriminator_loss(zero, zero).item() == pytest.approx(2 * math.log(2))


# Recovery (stage II)


def test_recovery_loss_mixes_distillation_and_truth() -> None:
    generator = torch.Generator().manual_seed(0)
    pruned, dense, truth = (torch.randn(2, 3, 4, generator=generator, requires_grad=True) for _ in range(3))
    imitate, learn = (pruned - dense).pow(2).mean(), (pruned - truth).pow(2).mean()
    torch.testing.assert_close(recovery_loss(pruned, dense, truth, 1.0)["loss"], imitate)
    torch.testing.assert_close(recovery_loss(pruned, dense, truth, 0.0)["loss"], learn)
    torch.testing.assert_close(recovery_loss(pruned, dense, truth, 0.25)["loss"], 0.25 * imitate + 0.75 * learn)
    assert recovery_loss(pruned, pruned, truth, 1.0)["loss"] == 0
    recovery_loss(pruned, dense, truth, 1.0)["loss"].backward()
    assert dense.grad is None  # sg(unpruned)
    torch.testing.assert_close(pruned.grad, 2 * (pruned - dense).detach() / pruned.numel())


@pytest.mark.parametrize("target", ["teacher", "self"])
def test_recovery_trains_and_leaves_the_teacher(
    target: str, tiny_model: WanX, tiny_data: TrainingData, tmp_path: Path
) -> None:
    artifacts = {"importance": importance_folder(tmp_path / "i", [1, 2])}
    stage = Recovery(RecoverySettings(target=target), Roles(tiny_model, tiny_data, artifacts))  # type: ignore[arg-type]
    student, teacher = weights(stage.student()), weights(tiny_model)
    assert same(student, teacher)  # starts as the teacher, dense
    lines = run(stage, tiny_model, tiny_data, tmp_path / "work", budget=60)
    assert not same(student, weights(stage.student())) and same(teacher, weights(tiny_model))
    assert all({"loss", "distillation", "ground_truth"} <= set(line) for line in lines)


def test_recovery_makes_the_pruned_pass_imitate_the_dense_one(
    tiny_model: WanX, tiny_data: TrainingData, tmp_path: Path
) -> None:
    artifacts = {"importance": importance_folder(tmp_path / "i", [1])}
    settings = RecoverySettings(lr=4e-3, skip_probability=1.0)
    stage = Recovery(settings, Roles(tiny_model, tiny_data, artifacts))
    lines = run(stage, tiny_model, tiny_data, tmp_path / "work", budget=250)
    assert lines[-1]["distillation"] < 0.5 * lines[0]["distillation"]


def test_drifting_ends_the_stage(tiny_model: WanX, tiny_data: TrainingData, tmp_path: Path) -> None:
    artifacts = {"importance": importance_folder(tmp_path / "i", [1, 2])}
    stage = Recovery(RecoverySettings(target="self", lr=0.5), Roles(tiny_model, tiny_data, artifacts))
    with pytest.raises(StageFailure, match=r"^drifting: the dense loss is") as failure:
        run(stage, tiny_model, tiny_data, tmp_path / "work", budget=400)
    assert failure.value.word == "drifting"


# Importance (stage I)


def test_number_of_redundant_blocks() -> None:
    assert [n_redundant(keep, 10) for keep in (1.0, 0.7, 0.5, 0.25, 0.01)] == [0, 3, 5, 8, 9]
    assert n_redundant(0.7, 4) == 1 and n_redundant(0.01, 1) == 0  # one block stays


def predictable_clips(model: WanX, data: TrainingData) -> TrainingData:
    """Clips x0 = eps - v(x_t) at t = 0.5 for the noise that `deletion_damage` draws: the dense model makes no error there,
    so no deletion can improve on it. Found by iterating the equation, which contracts because v is small."""
    noise = torch.randn(data.latents.shape, generator=torch.Generator().manual_seed(0))
    x0, t = noise.clone(), torch.full((len(noise),), 0.5)
    with torch.no_grad():
        for _ in range(60):
            x0 = noise - model.velocity(flow.interpolate(x0, noise, t), t, data.condition)
    return TrainingData(x0, data.condition)


def test_a_block_that_does_nothing_is_redundant_first(tiny_model: WanX, tiny_data: TrainingData, tmp_path: Path) -> None:
    model = tiny_model.copy()
    idle: Any = model.blocks[2]
    with torch.no_grad():
        model.transformer.proj_out.weight.mul_(0.3)
        for layer in (idle.attn1.to_out[0], idle.attn2.to_out[0], idle.ffn.net[-1]):
            layer.weight.zero_()
            layer.bias.zero_()
    data = predictable_clips(model, tiny_data)
    damage = deletion_damage(model, data, clips=8, times=1)
    assert damage["dense"].item() < 1e-8  # the clips are what they are meant to be
    assert damage["x0"][2] == 0 and damage["elbo"][2] == 0
    assert (damage["x0"][[0, 1, 3]] > 1e-5).all()
    # At t = 0.5 the weights are t^2 = 1/4 on the velocity error for x0, (1 - t) / t = 1 for the ELBO.
    torch.testing.assert_close(damage["elbo"], 4 * damage["x0"])

    Importance(ImportanceSettings(keep=0.5, clips=8, times=1), Roles(model, data, {})).compute(tmp_path)
    written = json.loads((tmp_path / "importance.json").read_text())
    assert written["redundant"][0] == 2 and len(written["redundant"]) == 2
    assert written["blocks"] == [0, 1, 2, 3]
    rest = sorted((0, 1, 3), key=lambda b: written["x0_error"][b])
    assert written["redundant"][1] == rest[0]


# The method


def test_fastlightgen_shares_the_budget_over_its_stages() -> None:
    method = FastLightGen(FastLightGenSettings(recovery_share=0.25), PRESET)
    importance, recover, match = method.stages(10_000)
    cost = importance.settings.clips * importance.settings.times * PRESET.blocks  # type: ignore[attr-defined]
    assert importance.budget == 0 and cost + recover.budget + match.budget == pytest.approx(10_000)
    assert match.budget == pytest.approx(3 * recover.budget)
    assert dict(match.inputs) == {"importance": "importance", "recovered": "recover"}
    with pytest.raises(UsageError, match="raise --budget"):
        method.stages(cost)


def test_keep_has_one_value() -> None:
    importance = FastLightGen(FastLightGenSettings(keep=0.5), PRESET).stages(10_000)[0]
    assert importance.settings.keep == 0.5  # type: ignore[attr-defined]
    with pytest.raises(ValidationError, match="differ: set one of them"):
        FastLightGenSettings(keep=0.5, importance=ImportanceSettings(keep=0.7))
