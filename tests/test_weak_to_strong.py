"""Weak-to-strong distillation: one LoRA at two scales, the special cases it contains, then the stage for some iterations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from stages import PRESET, assert_resumes, preset, run_stages, ten_blocks, train_for

from flgbench import flow
from flgbench.models.wanx import WanX
from flgbench.stage import Batch, Roles, TrainingData
from methods.magic_distillation import MagicDistillation, MagicDistillationSettings
from methods.parts.adversarial import FeatureDiscriminator
from methods.parts.distribution_matching import DistributionMatching, MatchSettings, matching_gradient
from methods.parts.importance import ImportanceSettings
from methods.parts.lora import ADAPTER, lora_layers, lora_share, set_lora_scale, with_lora
from methods.parts.weak_to_strong import WeakToStrong, WeakToStrongSettings

pytestmark = pytest.mark.usefixtures("log_every_iteration")


def batch_of(data: TrainingData) -> Batch:
    return data.batch(2, torch.Generator().manual_seed(0))


def fill(model: WanX) -> None:
    """A LoRA that has learnt something: B is no longer zero."""
    generator = torch.Generator().manual_seed(0)
    for layer in lora_layers(model):
        weight = layer.lora_B[ADAPTER].weight
        weight.data = 0.2 * torch.randn(weight.shape, generator=generator)


def velocity(model: WanX, data: TrainingData) -> torch.Tensor:
    with torch.no_grad():
        return model.velocity(data.latents[:2], torch.tensor([0.3, 0.9]), data.condition.select(slice(0, 2)))


# The LoRA


def test_a_new_lora_changes_nothing(tiny_model: WanX, tiny_data: TrainingData) -> None:
    """B = 0: fake = real = teacher, at every scale."""
    adapted = with_lora(tiny_model, 4)
    for scale in (0.0, 0.25, 1.0):
        set_lora_scale(lora_layers(adapted), scale)
        assert torch.equal(velocity(adapted, tiny_data), velocity(tiny_model, tiny_data))
        assert lora_share(lora_layers(adapted), scale) == 0


def test_the_scale_is_the_factor_of_the_change(tiny_model: WanX, tiny_data: TrainingData) -> None:
    """The adapted model is the one with scale BA added to its weights."""
    adapted, merged = with_lora(tiny_model, 4), tiny_model.copy()
    fill(adapted)
    change = {}
    for name, layer in adapted.transformer.named_modules():
        if hasattr(layer, "lora_B"):
            change[name] = 0.25 * layer.lora_B[ADAPTER].weight.detach() @ layer.lora_A[ADAPTER].weight.detach()
            merged.transformer.get_submodule(name).weight.data += change[name]
    assert len(change) == 10 * len(tiny_model.blocks)  # q, k, v, out of both attentions, and both layers of the FFN
    set_lora_scale(lora_layers(adapted), 0.25)
    torch.testing.assert_close(velocity(adapted, tiny_data), velocity(merged, tiny_data), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(velocity(adapted, tiny_data), velocity(tiny_model, tiny_data), atol=1e-3)

    base = torch.cat([tiny_model.transformer.get_submodule(n).weight.flatten() for n in change])
    expected = torch.cat([c.flatten() for c in change.values()]).norm() / base.norm()
    torch.testing.assert_close(lora_share(lora_layers(adapted), 0.25), expected)
    torch.testing.assert_close(lora_share(lora_layers(adapted), 1.0), 4 * expected)


def test_only_the_lora_is_trained_and_the_same_at_every_start(tiny_model: WanX) -> None:
    torch.manual_seed(7)
    first = dict(with_lora(tiny_model, 3).transformer.named_parameters())
    torch.manual_seed(8)
    second = dict(with_lora(tiny_model, 3).transformer.named_parameters())
    assert all(("lora_" in name) == p.requires_grad for name, p in first.items())
    assert all(torch.equal(p, second[name]) for name, p in first.items())
    assert not any("lora_" in name or p.requires_grad for name, p in tiny_model.transformer.named_parameters())


# The gradient


def student_gradients(stage: DistributionMatching, data: TrainingData) -> list[torch.Tensor]:
    batch = batch_of(data)
    stage._student_losses(stage.sample_student(batch), batch)["loss"].backward()
    return [p.grad for p in stage.student().transformer.parameters()]  # type: ignore[misc]


@pytest.mark.parametrize("gan", [0.0, 0.1])
def test_without_a_weak_share_it_is_dmd2_with_a_lora(gan: float, tiny_model: WanX, tiny_data: TrainingData) -> None:
    common: dict[str, Any] = {"backward_simulation": False, "gan_weight": gan}
    roles = Roles(tiny_model, tiny_data, {})
    dmd2 = DistributionMatching(MatchSettings(beta1=2.5, **common), roles)
    magic = WeakToStrong(WeakToStrongSettings(guidance_scale=2.5, weak=0, rank=4, **common), roles)
    fill(magic.fake)  # type: ignore[arg-type]
    dmd2.fake = magic.fake  # at scale 1 throughout
    expected = student_gradients(dmd2, tiny_data)
    found = student_gradients(magic, tiny_data)
    assert any(g.abs().sum() > 0 for g in expected)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))

    leaning = WeakToStrong(WeakToStrongSettings(guidance_scale=2.5, weak=0.25, rank=4, **common), roles)
    fill(leaning.fake)  # type: ignore[arg-type]
    assert not all(torch.equal(a, b) for a, b in zip(student_gradients(leaning, tiny_data), expected, strict=True))


def test_the_scores_are_guided_weak_and_unguided_strong(tiny_model: WanX, tiny_data: TrainingData) -> None:
    stage: Any = WeakToStrong(WeakToStrongSettings(weak=0.5, strong=2.0, rank=4), Roles(tiny_model, tiny_data, {}))
    fill(stage.fake)
    batch, t = batch_of(tiny_data), torch.tensor([0.3, 0.9])
    with torch.no_grad():
        real = stage.real_velocity(batch.latents, t, batch.condition, batch)
        fake = stage.fake_velocity(batch.latents, t, batch.condition)
        set_lora_scale(lora_layers(stage.fake), 0.5)
        v, v0 = (stage.fake.velocity(batch.latents, t, c) for c in (batch.condition, batch.condition.unconditional()))
        torch.testing.assert_close(real, v0 + 3.5 * (v - v0))
        set_lora_scale(lora_layers(stage.fake), 2.0)
        torch.testing.assert_close(fake, stage.fake.velocity(batch.latents, t, batch.condition))


def test_the_weak_passes_leave_the_critics_gradient(tiny_model: WanX, tiny_data: TrainingData) -> None:
    """The scale is toggled between the critic's forward and its backward: its graph must keep the strong one."""

    def gradients(toggle: bool) -> list[torch.Tensor | None]:
        stage = WeakToStrong(WeakToStrongSettings(rank=4), Roles(tiny_model, tiny_data, {}))
        fill(stage.fake)  # type: ignore[arg-type]
        batch = batch_of(tiny_data)
        clean = stage.sample_student(batch)
        loss = stage._critic_losses(clean.detach(), batch)["loss"]
        if toggle:
            stage._student_losses(clean, batch)
        loss.backward()
        assert all(p.grad is None for p in stage.student().transformer.parameters())
        return [p.grad for p in stage.fake.transformer.parameters() if p.requires_grad]

    for a, b in zip(gradients(True), gradients(False), strict=True):
        assert a is not None and b is not None and torch.equal(a, b)


def test_regularization_pulls_to_the_real_clip(tiny_model: WanX, tiny_data: TrainingData) -> None:
    generator = torch.Generator().manual_seed(1)
    batch = batch_of(tiny_data)
    clean, fake, real = (torch.randn(batch.latents.shape, generator=generator) for _ in range(3))

    def gradient(weight: float, real: torch.Tensor) -> torch.Tensor:
        settings = WeakToStrongSettings(rank=1, regularization=weight)
        return WeakToStrong(settings, Roles(tiny_model, tiny_data, {})).gradient(clean, fake, real, batch)

    assert torch.equal(gradient(0, real), matching_gradient(clean, fake, real))
    pull = (fake - batch.latents) / flow.per_clip((clean - batch.latents).abs().mean((1, 2, 3, 4)), clean)
    torch.testing.assert_close(gradient(0.3, fake), 0.3 * pull)  # equal scores: nothing but the pull is left


def test_the_discriminator_leaves_no_hook(tiny_model: WanX, tiny_data: TrainingData) -> None:
    model, batch = tiny_model.copy(), batch_of(tiny_data)
    discriminator = FeatureDiscriminator(model)
    logits = discriminator(batch.latents, torch.tensor([0.3, 0.9]), batch.condition)
    assert logits.shape == (2,)
    assert not any(module._forward_hooks for module in model.transformer.modules())


# The stage


def test_training_moves_student_and_lora_and_leaves_the_teacher(
    tiny_model: WanX, tiny_data: TrainingData, tmp_path: Path
) -> None:
    stage = WeakToStrong(WeakToStrongSettings(fake_updates=1, rank=4), Roles(tiny_model, tiny_data, {}))
    modules = {**stage.modules(), "teacher": tiny_model.transformer}
    before = {name: {k: v.clone() for k, v in m.state_dict().items()} for name, m in modules.items()}
    lines = train_for(stage, tiny_data, tiny_model, tmp_path, 6)
    changed = {
        name: {k for k, v in m.state_dict().items() if not torch.equal(v, before[name][k])} for name, m in modules.items()
    }
    assert changed["student"] and changed["discriminator"] and not changed["teacher"]
    assert changed["fake"] and all("lora_" in key for key in changed["fake"])

    shares = [line["weak_share"] for line in lines]
    assert shares[0] == 0 and 0 < shares[1] < shares[-1]
    assert {"fake", "gradient_rms", "adversarial", "discriminator"} <= lines[0].keys()
    # Student 3; critic 3; scores 2 + 1; discriminator 2; adversarial 1 and the gradient of its input 1.
    assert lines[0]["passes"] == 2 * 13

    stage.student().save(tmp_path / "student")
    with safe_open(tmp_path / "student" / "diffusion_pytorch_model.safetensors", "pt") as file:
        assert set(file.keys()) == {k for k in tiny_model.transformer.state_dict() if "rope" not in k}
    loaded = tiny_model.with_transformer(tmp_path / "student")
    assert torch.equal(velocity(loaded, tiny_data), velocity(stage.student(), tiny_data))  # type: ignore[arg-type]


def test_an_interrupted_training_ends_where_the_whole_one_does(
    tiny_model: WanX, tiny_data: TrainingData, tmp_path: Path
) -> None:
    def make() -> WeakToStrong:
        return WeakToStrong(WeakToStrongSettings(fake_updates=1, rank=4), Roles(tiny_model, tiny_data, {}))

    assert_resumes(make, tiny_data, tiny_model, tmp_path, budget=6 * 26)


# The method


def test_a_pruned_start_gives_a_student_with_seventy_percent_of_the_blocks(
    tiny_model: WanX, tiny_data: TrainingData, tmp_path: Path
) -> None:
    teacher = ten_blocks(tiny_model)
    settings = MagicDistillationSettings(
        keep=0.7, importance=ImportanceSettings(clips=2, times=1), match=WeakToStrongSettings(fake_updates=1)
    )
    curves = run_stages(MagicDistillation(settings, preset(teacher)), teacher, tiny_data, tmp_path, 2)
    assert curves.keys() == {"recover", "match"}
    student = teacher.with_transformer(tmp_path / "match" / "transformer")
    assert len(student.blocks) == 7 and len(student.kept_blocks) == 7


def test_the_dense_method_is_one_stage_of_the_whole_budget() -> None:
    method = MagicDistillation(MagicDistillationSettings(), PRESET)
    (spec,) = method.stages(1000)
    assert (spec.name, spec.budget, dict(spec.inputs)) == ("match", 1000, {})
    assert (method.sampler().kind, method.sampler().nfe) == ("renoise", 4)


@pytest.mark.parametrize("wrong", [{"guidance_scale": 0.5}, {"rank": 0}, {"weak": 1.0}, {"weak": -0.1}])
def test_settings_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        WeakToStrongSettings(**wrong)  # type: ignore[arg-type]
