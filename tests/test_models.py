"""The wanx family: blocks skipped and deleted, saved and loaded, counted; its autoencoder in the fast form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import BLOCKS, stock_vae

from flgbench.data import shapes
from flgbench.models.base import Condition
from flgbench.models.folded_conv import FoldedCausalConv3d, decode_in_two_chunks, encode_in_two_chunks
from flgbench.models.tiny.wanx_vae import to_model_range
from flgbench.models.wanx import WanX
from flgbench.stage import TrainingData

TIMES = torch.tensor([0.2, 0.9])


@pytest.fixture(scope="module")
def video() -> torch.Tensor:
    return shapes.render(shapes.draw_factors("test", [0, 1]))


def two(data: TrainingData) -> tuple[torch.Tensor, Condition]:
    return data.latents[:2], data.condition.select(slice(0, 2))


@pytest.mark.parametrize("drop", [(0,), (BLOCKS - 1,), (1, 2), (2, 0)])
def test_skipping_equals_deletion(drop: tuple[int, ...], tiny_model: WanX, tiny_data: TrainingData) -> None:
    x, condition = two(tiny_data)
    skipped = tiny_model.velocity(x, TIMES, condition, skip=drop)
    deleted = tiny_model.without_blocks(drop)
    torch.testing.assert_close(skipped, deleted.velocity(x, TIMES, condition), rtol=0, atol=1e-6)
    dense = tiny_model.velocity(x, TIMES, condition)
    assert (skipped - dense).abs().max() > 1e-3  # a block that does nothing would prove nothing
    assert len(tiny_model.blocks) == BLOCKS  # skipping left the model whole
    assert deleted.n_parameters < tiny_model.n_parameters


def test_a_failing_pass_leaves_the_blocks_in_place(tiny_model: WanX, tiny_data: TrainingData) -> None:
    x, condition = two(tiny_data)
    with pytest.raises(RuntimeError):
        tiny_model.velocity(x[:, :3], TIMES, condition, skip=(1,))
    assert len(tiny_model.blocks) == BLOCKS


def test_kept_blocks_count_from_the_teacher(tiny_model: WanX) -> None:
    """Positions are those of the present model, kept indices those of the original."""
    once = tiny_model.without_blocks([1])
    assert once.kept_blocks == (0, 2, 3)
    twice = once.without_blocks([1])
    assert twice.kept_blocks == (0, 3) and tiny_model.kept_blocks == (0, 1, 2, 3)
    kept: list[Any] = [tiny_model.blocks[0], tiny_model.blocks[3]]
    left: list[Any] = list(twice.blocks)
    for mine, original in zip(left, kept, strict=True):
        assert torch.equal(mine.scale_shift_table, original.scale_shift_table)
        assert mine.scale_shift_table is not original.scale_shift_table  # a copy: training it leaves the teacher alone
    with pytest.raises(ValueError, match=r"\[3\]"):
        once.without_blocks([3])


def test_saved_student_comes_back(tiny_model: WanX, tiny_data: TrainingData, tmp_path: Path) -> None:
    student = tiny_model.without_blocks([0]).without_blocks([1])
    student.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["num_layers"] == 2  # the stock class loads it
    loaded = tiny_model.with_transformer(tmp_path)
    x, condition = two(tiny_data)
    assert torch.equal(loaded.velocity(x, TIMES, condition), student.velocity(x, TIMES, condition))
    assert loaded.kept_blocks == student.kept_blocks == (1, 3)
    assert not any(p.requires_grad for p in loaded.transformer.parameters())
    assert loaded.tally is tiny_model.tally and loaded.vae is tiny_model.vae
    assert tiny_model.transformer.config.num_layers == BLOCKS


def test_copies_own_their_weights(tiny_model: WanX) -> None:
    twin = tiny_model.copy().requires_grad_(True)
    with torch.no_grad():
        twin.transformer.proj_out.bias.add_(1)
    assert not torch.equal(twin.transformer.proj_out.bias, tiny_model.transformer.proj_out.bias)
    assert not tiny_model.transformer.proj_out.bias.requires_grad


def test_unconditional_keeps_the_image(tiny_model: WanX, tiny_data: TrainingData) -> None:
    condition = tiny_data.condition
    negative = condition.unconditional()
    assert torch.equal(negative.image, condition.image)
    assert torch.equal(negative.text, tiny_model.encode_text([""]).expand_as(condition.text))
    assert not torch.equal(negative.text, condition.text)


def test_conditions_select_and_join(tiny_data: TrainingData) -> None:
    condition = tiny_data.condition
    parts = [condition.select(torch.tensor([0, 2])), condition.select(slice(5, 8))]
    joined = Condition.concatenate(parts)
    assert len(joined) == 5
    assert torch.equal(joined.text[1], condition.text[2]) and torch.equal(joined.image[4], condition.image[7])


def test_passes_are_tallied(tiny_model: WanX, tiny_data: TrainingData) -> None:
    """Forward 1, with its backward 3, both times clips and the share of blocks that ran."""
    x, condition = two(tiny_data)
    trained = tiny_model.copy().requires_grad_(True)

    def cost(model: WanX, skip: tuple[int, ...] = ()) -> float:
        before = tiny_model.tally.passes
        model.velocity(x, TIMES, condition, skip)
        return tiny_model.tally.passes - before

    assert cost(tiny_model) == pytest.approx(2)
    assert cost(tiny_model, (0,)) == pytest.approx(2 * 3 / 4)
    assert cost(tiny_model.without_blocks([0, 1])) == pytest.approx(2 * 2 / 4)
    assert cost(trained) == pytest.approx(6)
    assert cost(trained, (0, 1, 2)) == pytest.approx(6 / 4)
    with torch.no_grad():
        assert cost(trained) == pytest.approx(2)


def test_folded_convolutions_equal_the_stock_autoencoder(tiny_model: WanX, video: torch.Tensor) -> None:
    stock, pixels = stock_vae(), to_model_range(video)
    assert any(isinstance(m, FoldedCausalConv3d) for m in tiny_model.vae.modules())
    assert not any(isinstance(m, FoldedCausalConv3d) for m in stock.modules())
    with torch.no_grad():
        expected = stock.encode(pixels).latent_dist.mode()
        torch.testing.assert_close(encode_in_two_chunks(tiny_model.vae, pixels), expected, rtol=0, atol=1e-4)
        assert expected.std() > 0.01
        latents = 3 * torch.randn(2, *tiny_model.latent_shape, generator=torch.Generator().manual_seed(0))
        decoded = stock.decode(latents).sample
        torch.testing.assert_close(decode_in_two_chunks(tiny_model.vae, latents), decoded, rtol=0, atol=1e-4)
        assert decoded.std() > 1e-3 and (decoded.abs() < 1).float().mean() > 0.5


def test_a_single_frame_goes_through_the_autoencoder(tiny_model: WanX, video: torch.Tensor) -> None:
    stock, frame = stock_vae(), to_model_range(video[:, :1])
    with torch.no_grad():
        expected = stock.encode(frame).latent_dist.mode()
        torch.testing.assert_close(encode_in_two_chunks(tiny_model.vae, frame), expected, rtol=0, atol=1e-4)
        assert decode_in_two_chunks(tiny_model.vae, expected).shape == frame.shape


def test_latents_are_normalised(tiny_model: WanX, video: torch.Tensor) -> None:
    stock = stock_vae()
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (stock.config.latents_mean, stock.config.latents_std))
    with torch.no_grad():
        raw = stock.encode(to_model_range(video)).latent_dist.mode()
        decoded = stock.decode(raw).sample
    latents = tiny_model.encode_video(video)
    assert latents.shape[1:] == tiny_model.latent_shape
    torch.testing.assert_close(latents, (raw - mean) / std, rtol=0, atol=1e-3)
    shown = tiny_model.decode(latents)
    assert shown.dtype == torch.uint8 and shown.shape == video.shape
    # 8-bit steps; an autoencoder of random weights may put a value on a rounding edge
    expected = decoded.add(1).mul(127.5).permute(0, 2, 3, 4, 1)
    assert (shown.float() - expected).abs().max() <= 0.51


def test_first_frame_condition(tiny_model: WanX, video: torch.Tensor) -> None:
    """Wan's layout: four mask channels that are 1 in the first latent frame, then 16 of the frame followed by grey."""
    image = tiny_model.encode_image(video[:, 0])
    assert image.shape == (2, 20, *tiny_model.latent_shape[1:])
    assert (image[:, :4, 0] == 1).all() and (image[:, :4, 1:] == 0).all()
    padded = torch.zeros(2, 3, 17, 64, 64)
    padded[:, :, :1] = to_model_range(video[:, :1])
    torch.testing.assert_close(image[:, 4:], tiny_model._encode(padded), rtol=0, atol=1e-6)
    # The encoder is causal: the first latent frame is that of the whole clip, later ones know nothing of it.
    torch.testing.assert_close(image[:, 4:, 0], tiny_model.encode_video(video)[:, :, 0], rtol=0, atol=1e-4)


def test_text_is_zero_behind_the_caption(tiny_model: WanX) -> None:
    short, long = "a small red star", "the red star , small , moves down slowly on a plain background"
    text = tiny_model.encode_text([short, long])
    length = [len(c.split()) + 1 for c in (short, long)]  # and the end token
    for row, n in zip(text, length, strict=True):
        assert (row[n:] == 0).all() and (row[:n].abs().sum(1) > 0).all()
    alone = tiny_model.encode_text([short])
    torch.testing.assert_close(text[:1], alone, rtol=0, atol=1e-5)


def test_a_condition_carries_what_a_family_adds() -> None:
    extras, negative = {"mask": torch.ones(2, 4), "look": torch.randn(2, 3, 5)}, {"mask": torch.zeros(1, 4)}
    told = Condition(torch.randn(2, 4, 8), torch.zeros(1, 4, 8), torch.randn(2, 1, 1, 1, 1), extras, negative)

    second = told.select(slice(1, 2))
    assert torch.equal(second.extras["look"], extras["look"][1:])
    without = told.unconditional()
    assert torch.equal(without.extras["look"], extras["look"]) and without.extras["mask"].shape == (2, 4)
    assert not without.extras["mask"].any()

    again = Condition.concatenate([told.select(slice(0, 1)), Condition.from_tensors(second.tensors())])
    assert again.tensors().keys() == told.tensors().keys()
    assert all(torch.equal(again.tensors()[name], value) for name, value in told.tensors().items())
