"""Self-attention within frames or removed: exact where nothing changes, local where it should be, counted, saved; F3."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import BLOCKS
from pydantic import ValidationError
from stages import PRESET

from flgbench.errors import UsageError
from flgbench.models.base import SelfAttention
from flgbench.models.denoiser import SELF_ATTENTION
from flgbench.models.families import WanXFamily
from flgbench.models.flops import pass_flops
from flgbench.models.wan_attention import frame_attention, project
from flgbench.models.wanx import WanX
from flgbench.plan import plan
from flgbench.run_settings import RunSettings
from flgbench.stage import Roles, TrainingData
from flgbench.steps import train as train_step
from flgbench.store import Store
from methods.f3_pruning import F3BSettings, F3Pruning, F3PruningB, F3Settings
from methods.parts.temporal_attention import (
    TemporalPruning,
    TemporalPruningSettings,
    layer_masses,
    layers_for_keep,
    temporal_mass,
)

TIMES = torch.tensor([0.2, 0.9])
FRAMES, PLACES, WIDTH = 5, 16, 24  # latent frames, tokens of a frame, width of the tiny model
MIXED: tuple[SelfAttention, ...] = ("full", "frame", "none", "frame")


def velocity(model: WanX, data: TrainingData) -> torch.Tensor:
    return model.velocity(data.latents[:2], TIMES, data.condition.select(slice(0, 2)))


def attention_parameters(width: int) -> int:
    """q, k, v and output projections with biases, two norms, three rows of the modulation table."""
    return 4 * (width**2 + width) + 2 * width + 3 * width


# The engine: self-attention of a layer


def test_frame_attention_is_full_attention_under_a_mask() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, FRAMES * PLACES, 3, 8, generator=generator) for _ in range(3))
    frame = torch.arange(FRAMES * PLACES) // PLACES
    allowed = (frame[:, None] == frame[None, :]) | (frame[None, :] == 0)
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed).transpose(1, 2)
    torch.testing.assert_close(frame_attention(query, key, value, FRAMES), expected)


def test_a_frame_hears_of_itself_and_the_first_only() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(3, 1, FRAMES, PLACES, 2, 8, generator=generator)  # query, key and value

    def by_frame(tokens: torch.Tensor) -> torch.Tensor:
        query, key, value = tokens.flatten(2, 3)
        return frame_attention(query, key, value, FRAMES).unflatten(1, (FRAMES, PLACES))

    for changed in range(FRAMES):
        others = tokens.clone()
        others[:, :, changed] += 1
        before, after = by_frame(tokens), by_frame(others)
        moved = [not torch.equal(before[:, i], after[:, i]) for i in range(FRAMES)]
        assert moved == [changed in (0, i) for i in range(FRAMES)]


def test_projections_are_those_of_the_stock_layer(tiny_model: WanX) -> None:
    """Attention of our q, k, v equals the stock processor, which norms and rotates by itself."""
    attention: Any = tiny_model.transformer.blocks[0].attn1  # type: ignore[union-attr]
    tokens = torch.randn(2, FRAMES * PLACES, WIDTH, generator=torch.Generator().manual_seed(0))
    rotary = tiny_model.transformer.rope(torch.zeros(2, 1, *tiny_model.latent_shape[1:]))
    q, k, v = (x.transpose(1, 2) for x in project(attention, tokens, rotary))
    own = attention.to_out[0](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(own, attention(tokens, None, None, rotary), rtol=0, atol=1e-6)


def test_kinds_of_self_attention_by_layer(tiny_model: WanX, tiny_data: TrainingData) -> None:
    model = tiny_model.with_self_attention(MIXED)
    assert model.self_attention == MIXED and tiny_model.self_attention == ("full",) * BLOCKS
    assert (velocity(model, tiny_data) - velocity(tiny_model, tiny_data)).abs().max() > 1e-3
    assert model.copy().self_attention == MIXED
    assert model.without_blocks([0, 1]).self_attention == ("none", "frame")  # re-indexed
    back = tiny_model.with_self_attention(["frame"] * BLOCKS).with_self_attention(["full"] * BLOCKS)
    assert torch.equal(velocity(back, tiny_data), velocity(tiny_model, tiny_data))
    with pytest.raises(ValueError, match="could become 'full'"):
        model.with_self_attention(["full"] * BLOCKS)
    with pytest.raises(ValueError, match="3 kinds"):
        tiny_model.with_self_attention(["full"] * 3)


def test_removed_self_attention_equals_one_that_adds_nothing(tiny_model: WanX, tiny_data: TrainingData) -> None:
    silent = tiny_model.copy()
    for block in silent.blocks:
        layer: Any = block
        torch.nn.init.zeros_(layer.attn1.to_out[0].weight)
        torch.nn.init.zeros_(layer.attn1.to_out[0].bias)
    removed = tiny_model.with_self_attention(["none"] * BLOCKS)
    torch.testing.assert_close(velocity(removed, tiny_data), velocity(silent, tiny_data), rtol=0, atol=1e-6)
    assert removed.n_parameters == tiny_model.n_parameters - BLOCKS * attention_parameters(WIDTH)


def test_changed_models_come_back(tiny_model: WanX, tiny_data: TrainingData, tmp_path: Path) -> None:
    for name, kinds in (("a", ("full", "frame", "frame", "full")), ("b", MIXED)):
        model = tiny_model.with_self_attention(kinds).without_blocks([0])
        model.save(tmp_path / name)
        loaded = tiny_model.with_transformer(tmp_path / name)
        assert torch.equal(velocity(loaded, tiny_data), velocity(model, tiny_data))
        assert loaded.self_attention == kinds[1:] and loaded.kept_blocks == (1, 2, 3)
        assert loaded.n_parameters == model.n_parameters
        assert not loaded.transformer.training and not any(p.requires_grad for p in loaded.transformer.parameters())
    stored = (tmp_path / "b" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert stored < 4 * model.n_parameters + 20_000  # nothing of the removed layer is in the file


def test_a_folder_from_before_has_full_attention(tiny_model: WanX, tmp_path: Path) -> None:
    tiny_model.save(tmp_path)
    (tmp_path / SELF_ATTENTION).unlink()
    assert tiny_model.with_transformer(tmp_path).self_attention == ("full",) * BLOCKS


def test_flops_count_attention(tiny_model: WanX, tiny_data: TrainingData) -> None:
    """Restricting a layer saves exactly its score and value products with other frames' keys, and no parameter."""
    one, tokens = tiny_data.condition.select(slice(0, 1)), FRAMES * PLACES
    passes = tiny_model.tally.passes
    full = pass_flops(tiny_model, one)
    frame = tiny_model.with_self_attention(["frame", "full", "full", "full"])
    # Two products of 2 x width FLOPs for every pair of query and key.
    pairs = PLACES**2 + (FRAMES - 1) * 2 * PLACES**2
    assert full - pass_flops(frame, one) == 4 * WIDTH * (tokens**2 - pairs)
    assert frame.n_parameters == tiny_model.n_parameters
    none = tiny_model.with_self_attention(["none", "full", "full", "full"])
    assert full - pass_flops(none, one) == 4 * WIDTH * tokens**2 + 4 * 2 * WIDTH**2 * tokens
    assert tiny_model.tally.passes == passes


# Temporal mass


def test_temporal_mass_has_known_values() -> None:
    tokens = FRAMES * PLACES
    frames = torch.arange(tokens) // PLACES
    onto_itself = 100 * torch.eye(tokens)[None, :, None]  # (1, N, 1, N): a query meets its own key alone
    assert temporal_mass(onto_itself, onto_itself, frames, frames).item() == pytest.approx(0, abs=1e-6)
    nowhere = torch.zeros(2, tokens, 3, 4)
    uniform = temporal_mass(nowhere, nowhere, frames, frames)
    assert uniform.item() == pytest.approx((FRAMES - 1) / FRAMES)
    chosen = torch.tensor([3, 40, 79])
    assert temporal_mass(nowhere[:, chosen], nowhere, frames[chosen], frames).item() == pytest.approx(uniform.item())
    previous = torch.roll(onto_itself, PLACES, dims=1)  # the same place in another frame
    assert temporal_mass(onto_itself, previous, frames, frames).item() == pytest.approx(1)


def test_layers_are_measured_through_the_model(tiny_model: WanX, tiny_data: TrainingData) -> None:
    """A layer whose keys are all equal attends uniformly; hooks are gone afterwards."""
    model = tiny_model.copy()
    for i in (0, 2):
        layer: Any = model.blocks[i]
        torch.nn.init.zeros_(layer.attn1.to_k.weight)
        torch.nn.init.zeros_(layer.attn1.to_k.bias)
    masses = layer_masses(model, tiny_data, clips=3, times=2, queries=20)
    torch.testing.assert_close(masses[[0, 2]], torch.full((2,), (FRAMES - 1) / FRAMES))
    assert ((masses > 0) & (masses < 1)).all() and (masses[[1, 3]] - 0.8).abs().min() > 1e-4
    assert all(not b.attn1._forward_pre_hooks for b in model.transformer.blocks)  # type: ignore[union-attr]


# The stage and its two rows


@dataclass(frozen=True)
class OneStep:
    settings: dict[str, Any]
    inputs: dict[str, str]
    key: str = "train-f3"


@pytest.mark.parametrize("variant", ["a", "b"])
def test_the_stage_leaves_a_student(
    variant: Any, tiny_model: WanX, tiny_data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the engine's own step: student, numbers and sizes are where the later steps look for them."""
    monkeypatch.setattr(train_step, "load_teacher", lambda step: tiny_model)
    monkeypatch.setattr(train_step, "load_clips", lambda folder: tiny_data)
    settings = TemporalPruningSettings(variant=variant, clips=2, times=1)
    target = "methods.parts.temporal_attention:TemporalPruning"
    step: Any = OneStep({"stage": target, "settings": settings.model_dump(mode="json")}, {"data": "d", "teacher": "t"})
    facts = train_step.run(step, Store(tmp_path), tmp_path)
    written = json.loads((tmp_path / "temporal_mass.json").read_text())
    student = tiny_model.with_transformer(tmp_path / "transformer")
    mass = torch.tensor(written["temporal_mass"])
    assert written["changed"] == sorted(mass.argsort()[:2].tolist())
    kind = {"a": "frame", "b": "none"}[variant]
    assert student.self_attention == tuple(kind if i in written["changed"] else "full" for i in range(BLOCKS))
    removed = 0 if variant == "a" else 2 * attention_parameters(WIDTH)
    assert facts["parameters"] == written["parameters"] == tiny_model.n_parameters - removed
    assert facts["blocks"] == BLOCKS and written["pass_flops"] < written["teacher_pass_flops"]
    assert facts["passes"] == pytest.approx(2)


def test_ratio_zero_is_the_untouched_model(tiny_model: WanX, tiny_data: TrainingData, tmp_path: Path) -> None:
    stage = TemporalPruning(TemporalPruningSettings(ratio=0, clips=1, times=1), Roles(tiny_model, tiny_data, {}))
    stage.compute(tmp_path)
    student = tiny_model.with_transformer(tmp_path / "transformer")
    assert torch.equal(velocity(student, tiny_data), velocity(tiny_model, tiny_data))


def test_layers_for_a_share_of_the_parameters() -> None:
    assert [layers_for_keep(keep, 1000, 750, 10) for keep in (0.999, 0.975, 0.97, 0.9, 0.75)] == [1, 1, 2, 4, 10]
    # Wan 14B image-to-video: 4 d^2 of about 15.4 d^2 a block, so that 70 % is out of reach.
    with pytest.raises(UsageError, match=r"^f3_pruning_b.keep 0.7 is out of reach: .* 74.0% .* choose at least 0.741$"):
        layers_for_keep(0.7, 154, 114, 40)


def test_keep_decides_how_many_layers_lose_attention(tiny_model: WanX, tiny_data: TrainingData, tmp_path: Path) -> None:
    def compute(keep: float) -> dict[str, Any]:
        settings = TemporalPruningSettings(variant="b", keep=keep, clips=1, times=1)
        TemporalPruning(settings, Roles(tiny_model, tiny_data, {})).compute(tmp_path)
        return json.loads((tmp_path / "temporal_mass.json").read_text())

    three = 1 - 3 * attention_parameters(WIDTH) / tiny_model.n_parameters
    assert len(compute(three)["changed"]) == 3
    written = compute(three - 0.01)
    assert len(written["changed"]) == 4 and written["parameters"] / written["teacher_parameters"] <= three - 0.01
    with pytest.raises(UsageError, match="out of reach"):
        compute(0.5)


def test_a_share_out_of_reach_is_refused_before_any_work() -> None:
    with pytest.raises(UsageError, match=r"^f3_pruning_b.keep 0.7 is out of reach"):
        plan(RunSettings(methods=("f3_pruning_b",), method_settings={"f3_pruning_b": {"keep": 0.7}}), {})
    teacher = WanXFamily().load("tiny")
    bare = teacher.with_self_attention(["none"] * len(teacher.blocks))
    share = 1 - bare.n_parameters / teacher.n_parameters
    assert WanXFamily().preset("tiny").self_attention_share == pytest.approx(share, abs=1e-3)


def test_contradictions_are_refused() -> None:
    with pytest.raises(ValidationError, match="needs variant b"):
        F3Settings(keep=0.9)
    with pytest.raises(ValidationError, match="set one of them"):
        F3BSettings(keep=0.9, ratio=0.5)


def test_both_rows_are_sampled_as_the_teacher() -> None:
    for cls, variant in ((F3Pruning, "a"), (F3PruningB, "b")):
        method = cls(cls.Settings(), PRESET)
        (spec,) = method.stages(1000)
        assert spec.settings.variant == variant and spec.budget == 0  # type: ignore[attr-defined]
        assert method.sampler().nfe == 100 and method.sampler().guidance_scale == PRESET.guidance_scale
