"""ICMD: which blocks go, the matched states, the discriminator's hinge, who trains whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from stages import PRESET, run, same, weights

from flgbench.checkpoint import load_checkpoint, save_checkpoint
from flgbench.errors import UsageError
from flgbench.models.base import VideoModel
from flgbench.models.wanx import WanX
from flgbench.stage import Roles, TrainingData
from methods.icmd import ICMD
from methods.parts.content import (
    ContentDistillation,
    ContentSettings,
    captured_states,
    content_loss,
    drop_captions,
    shallow_blocks,
)
from methods.parts.video_discriminator import VideoDiscriminator, hinge_discriminator_loss, hinge_generator_loss

pytestmark = pytest.mark.usefixtures("log_every_iteration")


def test_shallow_blocks_go_first() -> None:
    ten = [1] * 10
    assert shallow_blocks(0.7, ten) == [1, 3, 5]  # the first half has room for two: every other block goes on
    assert shallow_blocks(0.8, ten) == [1, 3]
    assert shallow_blocks(0.7, [1] * 40) == list(range(1, 24, 2))
    assert shallow_blocks(0.4, ten) == [1, 2, 3, 5, 7, 9]  # then the rest from the shallow end
    assert shallow_blocks(1.0, ten) == [] and shallow_blocks(0.01, ten) == list(range(1, 10))  # block 0 always stays


def test_content_loss_is_relative_to_the_teachers_variance() -> None:
    teacher = [3 + s * torch.randn(2, 80, 24, generator=torch.Generator().manual_seed(0)) for s in (1.0, 100.0)]
    assert content_loss(teacher, teacher) == 0
    off = [h + 0.5 * h.std() for h in teacher]
    torch.testing.assert_close(content_loss(off, teacher), torch.tensor(2 * 0.25))  # a quarter a layer at any scale
    states = [h.clone().requires_grad_(True) for h in off]
    targets = [h.requires_grad_(True) for h in teacher]
    content_loss(states, targets).backward()
    assert all(h.grad is None for h in targets) and all(h.grad is not None for h in states)


def states_of(model: VideoModel, data: TrainingData, positions: list[int]) -> list[torch.Tensor]:
    with captured_states(model, positions) as states:
        model.velocity(data.latents[:2], torch.tensor([0.2, 0.9]), data.condition.select(slice(0, 2)))
    return states


def test_states_are_matched_at_original_indices(tiny_model: WanX, tiny_data: TrainingData) -> None:
    """An idle block 1 may go without any trace; a teacher that computes otherwise before block 2 leaves one."""
    teacher = tiny_model.copy()
    idle: Any = teacher.blocks[1]
    with torch.no_grad():
        for layer in (idle.attn1.to_out[0], idle.attn2.to_out[0], idle.ffn.net[-1]):
            layer.weight.zero_()
            layer.bias.zero_()
    stage = ContentDistillation(ContentSettings(), Roles(teacher, tiny_data, {}))
    assert stage.student().kept_blocks == (0, 2, 3) and stage.matched == [0, 2, 3]
    own, imitated = states_of(stage.model, tiny_data, [0, 1, 2]), states_of(teacher, tiny_data, stage.matched)
    assert content_loss(own, imitated) < 1e-10
    wrong = states_of(teacher, tiny_data, [0, 1, 2])  # present positions
    assert content_loss(own, wrong) > 1e-4
    with torch.no_grad():
        idle.ffn.net[-1].bias.fill_(0.5)  # the neighbour that the student has lost
    perturbed = [((s - t) ** 2).mean().item() for s, t in zip(own, states_of(teacher, tiny_data, [0, 2, 3]), strict=True)]
    assert perturbed[0] < 1e-10 and perturbed[1] > 1e-3 and perturbed[2] > 1e-3


def test_content_loss_of_an_equal_student_is_zero(tiny_model: WanX, tiny_data: TrainingData) -> None:
    stage = ContentDistillation(ContentSettings(keep=1.0), Roles(tiny_model, tiny_data, {}))
    losses = stage.train_step(tiny_data.batch(2, torch.Generator().manual_seed(0)), 0)
    assert losses["content"] == 0 and losses["task"] > 0
    # Equal samples: 1 + D and 1 - D, but for the spectral norms that move between the two passes.
    assert losses["discriminator"].item() == pytest.approx(2, abs=1e-3)


def test_no_hook_stays(tiny_model: WanX, tiny_data: TrainingData) -> None:
    stage = ContentDistillation(ContentSettings(), Roles(tiny_model, tiny_data, {}))
    stage.train_step(tiny_data.batch(2, torch.Generator().manual_seed(0)), 0)
    with pytest.raises(RuntimeError), captured_states(tiny_model, [0]):
        raise RuntimeError
    assert not any(b._forward_hooks for model in (tiny_model, stage.model) for b in model.blocks)


def test_captions_are_dropped_clip_by_clip(tiny_data: TrainingData) -> None:
    condition = tiny_data.condition.select(slice(0, 3))
    mixed = drop_captions(condition, torch.tensor([False, True, False]))
    assert torch.equal(mixed.text[[0, 2]], condition.text[[0, 2]])
    assert torch.equal(mixed.text[1], condition.negative_text[0]) and torch.equal(mixed.image, condition.image)


# The discriminator


def test_hinge() -> None:
    fake, real = torch.tensor([[-3.0, 0.5]]), torch.tensor([[2.0, 0.0]])
    assert hinge_discriminator_loss(fake, real).item() == pytest.approx((0 + 1.5) / 2 + (0 + 1) / 2)
    assert hinge_generator_loss(fake).item() == pytest.approx(1.25)


def test_heads_see_space_and_time() -> None:
    """The spatial head's logit of a frame depends on that frame only, the temporal head's on its neighbours too."""
    torch.manual_seed(0)
    discriminator = VideoDiscriminator(16, 8).eval()  # in training every pass improves the spectral norms
    x, t = torch.randn(2, 16, 5, 8, 8), torch.tensor([0.3, 0.6])
    before = discriminator(x, t)
    assert before.shape == (2, 10)
    x[:, :, 4] += 1
    moved = (discriminator(x, t) - before).abs().amax(0) > 1e-7
    assert moved.tolist() == [False] * 4 + [True] + [False] * 3 + [True] * 2
    assert not torch.equal(discriminator(x, t), discriminator(x, t + 0.3))


def test_student_and_discriminator_do_not_train_each_other(tiny_model: WanX, tiny_data: TrainingData) -> None:
    """One backward of the summed loss gives each the gradient of its own loss alone."""
    settings = ContentSettings(l_icd=0.0)

    def gradients(parts: tuple[str, ...]) -> dict[str, list[torch.Tensor | None]]:
        stage = ContentDistillation(settings, Roles(tiny_model, tiny_data, {}))
        batch = tiny_data.batch(2, torch.Generator().manual_seed(0))
        x, t = batch.noise(), batch.uniform()
        velocity = stage.model.velocity(x, t, batch.condition)
        losses = dict(zip(("student", "discriminator"), stage._adversarial_losses(velocity, x, batch), strict=True))
        torch.stack([losses[p] for p in parts]).sum().backward()
        return {name: [p.grad for p in module.parameters()] for name, module in stage.modules().items()}

    both, student, discriminator = (
        gradients(("student", "discriminator")),
        gradients(("student",)),
        gradients(("discriminator",)),
    )
    assert all(g is None for g in student["discriminator"]) and all(g is None for g in discriminator["student"])
    for name, own in (("student", student), ("discriminator", discriminator)):
        assert any(g is not None and g.abs().sum() > 0 for g in own[name])
        assert all(torch.equal(a, b) for a, b in zip(both[name], own[name], strict=True) if a is not None and b is not None)


# The stage and the method


@pytest.mark.parametrize("l_mca", [1.0, 0.0])
def test_training_moves_student_and_discriminator(
    l_mca: float, tiny_model: WanX, tiny_data: TrainingData, tmp_path: Path
) -> None:
    stage = ContentDistillation(ContentSettings(l_mca=l_mca), Roles(tiny_model, tiny_data, {}))
    before = {name: [p.detach().clone() for p in module.parameters()] for name, module in stage.modules().items()}
    assert set(before) == set(stage.all_optimizers()) == ({"student", "discriminator"} if l_mca else {"student"})
    teacher = weights(tiny_model)
    lines = run(stage, tiny_model, tiny_data, tmp_path / "work", budget=50)
    for name, module in stage.modules().items():
        assert not same(before[name], [p.detach() for p in module.parameters()])
    assert same(teacher, weights(tiny_model))
    assert {"task", "content"} <= set(lines[0]) and ("adversarial" in lines[0]) == bool(l_mca)
    assert stage.student().kept_blocks == (0, 2, 3)


def test_training_recovers_the_teachers_states(tiny_model: WanX, tiny_data: TrainingData, tmp_path: Path) -> None:
    stage = ContentDistillation(ContentSettings(lr=4e-3, l_icd=10.0, l_mca=0.0), Roles(tiny_model, tiny_data, {}))
    lines = run(stage, tiny_model, tiny_data, tmp_path / "work", budget=250)
    assert lines[-1]["content"] < 0.7 * lines[0]["content"]


def test_keeping_everything_is_a_contradiction() -> None:
    for keep in (1.0, 0.97):
        with pytest.raises(UsageError, match=rf"^icmd\.keep must be below 1: .*{keep} of 10 .* at most 0\.9$"):
            ICMD(ContentSettings(keep=keep), PRESET).stages(1000)
    method = ICMD(ContentSettings(), PRESET)
    assert method.stages(1000)[-1].budget == 1000
    sampler = method.sampler()
    assert (sampler.kind, sampler.nfe, sampler.shift) == ("euler", 100, PRESET.shift)


def test_a_checkpoint_holds_everything(tiny_model: WanX, tiny_data: TrainingData, tmp_path: Path) -> None:
    """A fresh stage with the checkpoint of another takes the same next step: discriminator and its norms included."""

    def step(stage: ContentDistillation, iteration: int) -> list[torch.Tensor]:
        losses = stage.train_step(tiny_data.batch(2, torch.Generator().manual_seed(iteration)), iteration)
        losses["loss"].backward()
        for optimizer in stage.optimizers(iteration):
            optimizer.step()
            optimizer.zero_grad()
        return [losses["loss"].detach(), *(p.detach().clone() for m in stage.modules().values() for p in m.parameters())]

    first, second = (ContentDistillation(ContentSettings(), Roles(tiny_model, tiny_data, {})) for _ in range(2))
    for iteration in range(2):
        step(first, iteration)
    save_checkpoint(tmp_path / "c.safetensors", first.modules(), first.all_optimizers(), {}, {})
    load_checkpoint(tmp_path / "c.safetensors", second.modules(), second.all_optimizers())
    assert same(step(first, 2), step(second, 2))
