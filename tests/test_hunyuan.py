"""The hunyuan family: two kinds of block skipped and deleted, captions masked, guidance embedded, the stock classes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import Flgbench, assert_refused
from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoImageToVideoPipeline, HunyuanVideoTransformer3DModel
from PIL import Image
from stages import run_stages, same, weights
from toy_hunyuan import DOUBLES, SINGLES, SMALL, build, installed

from flgbench import environment, flow
from flgbench.collect import collect
from flgbench.contracts import FamilyPreset
from flgbench.data import shapes
from flgbench.data.captions import captions_of
from flgbench.errors import UsageError
from flgbench.models.base import Condition
from flgbench.models.flops import pass_flops
from flgbench.models.hunyuan import Hunyuan
from flgbench.models.hunyuan_family import HunyuanFamily
from flgbench.models.tiny import gates, hunyuan_pretrain, hunyuan_text, hunyuan_vae
from flgbench.models.tiny import hunyuan as recipe
from flgbench.plan import plan
from flgbench.registry import registry
from flgbench.run_settings import RunSettings
from flgbench.runner import initial_status
from flgbench.sampling import GuidedVelocity, SamplerSettings, build_cache, clip_noise, euler, generate
from flgbench.settings import build_settings
from flgbench.stage import TrainingData
from flgbench.store import Store
from flgbench.students import Student, StudentRecord
from methods.parts.content import captured_states, drop_captions
from methods.parts.importance import leading, n_leading
from reports.data import Importance, load_run
from reports.importance import _mark_kinds

CLIPS = 6
BLOCKS = DOUBLES + SINGLES
TIMES = torch.tensor([0.2, 0.9])


def preset(model: Hunyuan) -> FamilyPreset:
    return FamilyPreset(
        shift=3.0,
        guidance_scale=2.0,
        num_inference_steps=50,
        clip=model.clip_shape,
        fps=8,
        blocks=len(model.blocks),
        self_attention_share=0.0,
        guidance_is_embedded=True,
        beta1=2.0,
    )


@pytest.fixture(scope="module")
def model() -> Hunyuan:
    """Shared: not changed."""
    return build()


@pytest.fixture(scope="module")
def data(model: Hunyuan) -> TrainingData:
    factors = shapes.draw_factors("train", np.arange(CLIPS))
    condition = model.condition(shapes.render(factors)[:, 0], captions_of(factors))
    latents = torch.randn((CLIPS, *model.latent_shape), generator=torch.Generator().manual_seed(2))
    latents[:, :, :1] = condition.image  # a clip begins with its given frame
    return TrainingData(latents, condition)


def two(data: TrainingData) -> tuple[torch.Tensor, Condition]:
    return data.latents[:2], data.condition.select(slice(0, 2))


# Blocks


@pytest.mark.parametrize("drop", [(0,), (1,), (2,), (BLOCKS - 1,), (0, 1), (2, 3, 4), (1, 2), (4, 0)])
def test_skipping_equals_deletion(drop: tuple[int, ...], model: Hunyuan, data: TrainingData) -> None:
    x, condition = two(data)
    skipped = model.velocity(x, TIMES, condition, skip=drop)
    deleted = model.without_blocks(drop)
    torch.testing.assert_close(skipped, deleted.velocity(x, TIMES, condition), rtol=0, atol=1e-5)
    assert (skipped - model.velocity(x, TIMES, condition)).abs().max() > 1e-3
    assert len(model.blocks) == BLOCKS and deleted.kept_blocks == tuple(i for i in range(BLOCKS) if i not in drop)
    doubles = sum(i < DOUBLES for i in drop)
    assert deleted.block_kinds == ("double",) * (DOUBLES - doubles) + ("single",) * (SINGLES - len(drop) + doubles)


def test_a_skipped_double_block_leaves_both_streams_alone(model: Hunyuan, data: TrainingData) -> None:
    """What the first single block is given after all doubles are skipped is what the first double was given."""
    x, condition = two(data)
    given: list[tuple[torch.Tensor, ...]] = []
    hook = lambda module, inputs: given.append(inputs[:2])  # noqa: E731
    handles = [model.blocks[i].register_forward_pre_hook(hook) for i in (0, DOUBLES)]
    model.velocity(x, TIMES, condition)
    model.velocity(x, TIMES, condition, skip=range(DOUBLES))
    for handle in handles:
        handle.remove()
    for before, after in zip(given[0], given[2], strict=True):
        assert torch.equal(before, after)
    assert all(not torch.equal(before, after) for before, after in zip(given[0], given[1], strict=True))


def test_a_saved_student_comes_back(model: Hunyuan, data: TrainingData, tmp_path: Path) -> None:
    student = model.without_blocks([3]).without_blocks([0])
    student.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["num_layers"], config["num_single_layers"]) == (1, 2)  # the stock class loads it
    loaded = model.with_transformer(tmp_path)
    x, condition = two(data)
    assert torch.equal(loaded.velocity(x, TIMES, condition), student.velocity(x, TIMES, condition))
    assert loaded.kept_blocks == student.kept_blocks == (1, 2, 4)
    assert loaded.tally is model.tally and not any(p.requires_grad for p in loaded.transformer.parameters())
    with pytest.raises(ValueError, match=r"\[3\]"):
        loaded.without_blocks([3])


def test_blocks_cost_the_same_and_weigh_differently(model: Hunyuan, data: TrainingData) -> None:
    """Kept blocks are kept compute, kept parameters another number."""
    one = data.condition.select(slice(0, 1))
    whole = pass_flops(model, one)
    double, single = (whole - pass_flops(model.without_blocks([b]), one) for b in (0, BLOCKS - 1))
    assert double == pytest.approx(single, rel=0.1)
    sizes = model.block_parameters
    assert sizes[0] / sizes[-1] == pytest.approx(36 / 15, rel=0.05)
    assert model.n_parameters - model.without_blocks([0]).n_parameters == sizes[0]


def test_the_published_model_has_its_known_size() -> None:
    with torch.device("meta"):
        full = HunyuanVideoTransformer3DModel(image_condition_type="token_replace")
    blocks = [*full.transformer_blocks, *full.single_transformer_blocks]
    sizes = [sum(p.numel() for p in block.parameters()) for block in blocks]
    total = sum(p.numel() for p in full.parameters())
    assert total == pytest.approx(12.8e9, rel=0.01)
    assert sizes[0] == pytest.approx(339.7e6, rel=1e-3) and sizes[-1] == pytest.approx(141.6e6, rel=1e-3)
    assert n_leading(0.3 * total, sizes[20:]) == 27 and n_leading(0.3 * total, sizes[:20]) == 11
    # Of the blocks' own parameters, which `keep` is a share of, as many doubles and one single less.
    assert len(leading(range(59, -1, -1), 0.7, sizes)) == 26 and len(leading(range(60), 0.7, sizes)) == 11


# What the network is told


def test_velocity_is_that_of_the_stock_class(model: Hunyuan, data: TrainingData) -> None:
    x, condition = two(data)
    stock = model.transformer(
        hidden_states=torch.cat([condition.image, x[:, :, 1:]], dim=2),
        timestep=TIMES * 1000,
        encoder_hidden_states=condition.text,
        encoder_attention_mask=condition.extras["text_mask"],
        pooled_projections=condition.extras["pooled"],
        guidance=torch.full((2,), 1000.0),
    ).sample
    ours = model.velocity(x, TIMES, condition)
    assert torch.equal(ours[:, :, 1:], stock[:, :, 1:])


def test_the_given_frame_is_exact_at_any_time(model: Hunyuan, data: TrainingData) -> None:
    x0, condition = two(data)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(5))
    x_t = flow.interpolate(x0, noise, TIMES)
    velocity = model.velocity(x_t, TIMES, condition)
    torch.testing.assert_close(velocity[:, :, 0], (noise - x0)[:, :, 0], rtol=0, atol=1e-4)
    latents, _ = generate(model, condition, [(0, 0), (1, 0)], SamplerSettings(num_inference_steps=3))
    torch.testing.assert_close(latents[:, :, :1], condition.image, rtol=0, atol=1e-5)


def test_a_padded_caption_gives_the_same_video(model: Hunyuan, data: TrainingData) -> None:
    """Beside a longer caption, cut to its own length, or with garbage behind its end."""
    x, condition = two(data)
    row = int(condition.extras["text_mask"].sum(1).argmin())
    one, x = condition.select(slice(row, row + 1)), x[row : row + 1]
    length = int(one.extras["text_mask"].sum())
    assert length < one.text.shape[1]
    cut = Condition(
        one.text[:, :length], one.negative_text, one.image, {**one.extras, "text_mask": one.extras["text_mask"][:, :length]}
    )
    garbage = one.text.clone()
    garbage[:, length:] = 7.0
    expected = model.velocity(x, TIMES[:1], one)
    sampler = SamplerSettings(num_inference_steps=2)
    clip, _ = generate(model, one, [(0, 0)], sampler)
    for told in (cut, Condition(garbage, one.negative_text, one.image, one.extras)):
        torch.testing.assert_close(model.velocity(x, TIMES[:1], told), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(generate(model, told, [(0, 0)], sampler)[0], clip, rtol=0, atol=1e-4)
    shorter = {**one.extras, "text_mask": one.extras["text_mask"].clone()}
    shorter["text_mask"][:, length - 1] = 0
    other = model.velocity(x, TIMES[:1], Condition(one.text, one.negative_text, one.image, shorter))
    assert (other - expected).abs().max() > 1e-4  # the last word does count


def test_a_caption_is_read_the_same_alone_and_in_a_batch(model: Hunyuan) -> None:
    images = shapes.render(shapes.draw_factors("test", [0, 1]))[:, 0]
    captions = ["a small red star", "over a plain background a large blue circle moves slowly to the upper right"]
    together, alone = model.condition(images, captions), model.condition(images[:1], captions[:1])
    assert together.text.shape == (2, 4 + model.text_length, model.reader.text_encoder.config.text_config.hidden_size)
    assert together.extras["text_mask"].sum(1).tolist() == [4 + 4, 4 + 14]
    torch.testing.assert_close(together.text[:1], alone.text, rtol=0, atol=1e-5)
    torch.testing.assert_close(together.extras["pooled"][:1], alone.extras["pooled"], rtol=0, atol=1e-5)
    # How convolutions are shared out among threads depends on the batch: some 5e-5 after all of an encoder's layers.
    torch.testing.assert_close(together.image[:1], alone.image, rtol=0, atol=5e-4)
    assert not together.text[0, 8:].any()


def test_a_long_caption_is_cut_and_said_so(model: Hunyuan) -> None:
    long = " ".join(["red"] * 30)
    mask = model.condition(torch.zeros(1, 64, 64, 3, dtype=torch.uint8), [long]).extras["text_mask"]
    assert mask.sum() == 4 + model.text_length
    assert model.remarks(long) == [f"the model reads the first {model.text_length} of the prompt's 30 tokens"]
    assert model.remarks("a zebra") == ["the model does not know: zebra"]


def test_clips_begin_with_the_latents_of_their_first_frame(model: Hunyuan) -> None:
    video = shapes.render(shapes.draw_factors("test", [0, 1]))
    latents = model.encode_video(video)
    assert latents.shape == (2, *model.latent_shape)
    torch.testing.assert_close(latents[:, :, :1], model.encode_image(video[:, 0]), rtol=0, atol=1e-5)
    assert model.decode(latents).shape == video.shape and model.decode(latents).dtype == torch.uint8


# Guidance


def test_embedded_guidance_is_one_pass_and_reaches_the_network(model: Hunyuan, data: TrainingData) -> None:
    _, condition = two(data)
    ids = [(0, 0), (1, 0)]
    steps = {"num_inference_steps": 2}
    plain, nfe = generate(model, condition, ids, SamplerSettings(**steps))
    told, told_nfe = generate(model, condition, ids, SamplerSettings(**steps, embedded_guidance=2.0))
    one, _ = generate(model, condition, ids, SamplerSettings(**steps, embedded_guidance=1.0))
    both, both_nfe = generate(model, condition, ids, SamplerSettings(**steps, embedded_guidance=2.0, guidance_scale=2.0))
    assert (nfe, told_nfe, both_nfe) == (2, 2, 4) and SamplerSettings(**steps, embedded_guidance=2.0).nfe == 2
    assert torch.equal(one, plain)
    assert not torch.allclose(told, plain, atol=1e-4) and not torch.allclose(both, told, atol=1e-4)


def test_a_student_is_sampled_at_its_embedded_scale(model: Hunyuan, tmp_path: Path) -> None:
    image = Image.fromarray(shapes.render(shapes.draw_factors("test", [0]))[0, 0].numpy())
    record = StudentRecord(tmp_path, "euler", "hunyuan", "tiny", "key", None, {})
    made = [
        Student(record, model, SamplerSettings(num_inference_steps=1, embedded_guidance=scale), model.clip_shape, 8)
        for scale in (None, 1.0, 3.0)
    ]
    none, one, three = (student.latents(image, "a small red star") for student in made)
    assert torch.equal(none, one) and not torch.allclose(one, three, atol=1e-4)


@pytest.mark.parametrize("threshold", [1e-9, 1e9])
def test_the_first_block_cache_knows_both_kinds_of_block(threshold: float, model: Hunyuan, data: TrainingData) -> None:
    """Below any change it computes all; above all changes every pass but the first ends after the first block."""
    one = data.condition.select(slice(0, 1))
    settings = SamplerSettings(num_inference_steps=4, cache_threshold=threshold)
    cache = build_cache(model, settings)
    assert cache is not None
    latents, nfe = generate(model, one, [(0, 0)], settings, cache=cache)
    plain, _ = generate(model, one, [(0, 0)], settings.model_copy(update={"cache_threshold": None}))
    assert nfe == 4
    if threshold < 1:
        assert cache.computed_share == 1
        torch.testing.assert_close(latents, plain, rtol=0, atol=1e-5)
    else:
        assert cache.computed_share == pytest.approx((BLOCKS + 3) / (4 * BLOCKS))
        assert not torch.allclose(latents, plain, atol=1e-4)


def test_the_negative_branch_has_its_own_text_and_the_same_image(model: Hunyuan, data: TrainingData) -> None:
    _, condition = two(data)
    negative = condition.unconditional()
    assert torch.equal(negative.image, condition.image)
    assert negative.extras["text_mask"].sum(1).tolist() == [4, 4]  # the image's tokens: the caption is empty
    assert torch.equal(negative.text, model.encode_text(["", ""]))
    dropped = drop_captions(condition, torch.tensor([True, False]))
    for name in ("text_mask", "pooled"):
        assert torch.equal(dropped.extras[name][0], negative.extras[name][0])
        assert torch.equal(dropped.extras[name][1], condition.extras[name][1])


def test_the_preset_says_both_guidances() -> None:
    family = HunyuanFamily().preset("tiny")
    sampler = family.teacher_sampler()
    assert (sampler.embedded_guidance, sampler.guidance_scale, sampler.nfe) == (family.guidance_scale, 1.0, 50)
    match = registry("methods").get("fastlightgen")
    settings = match(build_settings(match.Settings, {}, "fastlightgen"), family).settings.match
    assert (settings.beta1, settings.beta2) == (2.0, 0.25)  # the paper's for HunyuanVideo
    asked = match(build_settings(match.Settings, {"match": {"beta1": 1.5}}, "fastlightgen"), family).settings.match
    assert asked.beta1 == 1.5


@pytest.fixture
def weights_folder(model: Hunyuan, tmp_path: Path) -> Iterator[Path]:
    """The family with the random model as its teacher."""
    with installed(model, tmp_path) as folder:
        yield folder


def test_without_weights_one_line_says_how_to_make_them(
    flgbench: Flgbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flgbench.models.hunyuan_family.WEIGHTS", tmp_path / "nothing")
    assert_refused(flgbench("run", "--model", "hunyuan", "--dry-run"), "no weights", "flgbench pretrain --model hunyuan")


def test_a_plan_shows_what_is_not_defined(weights_folder: Path, tmp_path: Path) -> None:
    """F3-b is skipped with its reason, the other rows are planned; alone it is refused."""
    names = ("dmd2", "f3_pruning", "f3_pruning_b")
    run = RunSettings(model="hunyuan", methods=names, baselines=("euler", "euler-4-no-cfg"))
    made = plan(run, {})
    assert [c.name for c in made.cells] == ["euler", "euler-4-no-cfg", "dmd2", "f3_pruning"]
    assert [s.name for s in made.skipped] == ["f3_pruning_b"] and "share" in made.skipped[0].reason
    store = Store(tmp_path / "store")
    status = initial_status(made, store)
    collect(made, store, run, status, tmp_path / "run", {"name": "r"})
    record = json.loads((tmp_path / "run" / "cells.json").read_text())[-1]
    assert (record["cell"], record["status"]) == ("f3_pruning_b", "skipped")
    read = load_run(tmp_path / "run")
    cell = read.cell("f3_pruning_b")
    assert cell.failed and not cell.unfinished and all(c.unfinished for c in read.cells if c != cell)
    with pytest.raises(UsageError, match="f3_pruning_b removes"):
        plan(RunSettings(model="hunyuan", methods=("f3_pruning_b",)), {})


def test_both_forms_of_guidance_are_settings(weights_folder: Path) -> None:
    own, cfg = (
        plan(RunSettings(model="hunyuan", baselines=("euler", "euler-4-no-cfg"), teacher_guidance=form), {}).cells
        for form in ("own", "cfg")
    )
    assert [c.sampler.nfe for c in own] == [50, 4] and [c.sampler.nfe for c in cfg] == [100, 4]
    assert own[0].label == "Euler 50, embedded guidance (teacher)" and cfg[0].label == "Euler 50 × CFG (teacher)"
    assert own[1].sampler == cfg[1].sampler and own[1].sampler.embedded_guidance is None
    with pytest.raises(UsageError, match="leave it out"):
        plan(RunSettings(teacher_guidance="cfg"), {})


def test_another_family_refuses_an_embedded_scale(tiny_model, tiny_data) -> None:
    with pytest.raises(UsageError, match="embedded_guidance"):
        generate(tiny_model, tiny_data.condition, [(0, 0)], SamplerSettings(num_inference_steps=1, embedded_guidance=2.0))


def test_the_target_of_pretraining_is_the_guided_teacher(tiny_model, tiny_data) -> None:
    """With only the passes that each clip needs, what guidance with all passes gives."""
    x, t = tiny_data.latents[:4], torch.tensor([0.1, 0.4, 0.7, 0.95])
    condition = tiny_data.condition.select(slice(0, 4))
    dropped, scale = torch.tensor([False, False, True, True]), torch.tensor([1.0, 2.5, 1.0, 2.5])
    passes = tiny_model.tally.passes
    found = recipe.guided_target(tiny_model, x, t, condition, dropped, scale)
    assert tiny_model.tally.passes - passes == 2 + 3
    v, v0 = (tiny_model.velocity(x, t, c) for c in (condition, condition.unconditional()))
    expected = torch.stack([v[0], v0[1] + 2.5 * (v[1] - v0[1]), v0[2], v0[3]])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


# Attention in frames


def test_frame_attention_is_a_mask(model: Hunyuan, data: TrainingData) -> None:
    """Against diffusers' own processor with the same restriction written as a mask over all pairs of tokens."""
    x, condition = two(data)
    for position in (0, BLOCKS - 1):
        restricted = model.with_self_attention(["frame" if i == position else "full" for i in range(BLOCKS)])
        masked = model.copy()
        tokens, words = 5 * 16, int(condition.extras["text_mask"].sum(1).max())  # longer padding is cut
        frames = torch.arange(tokens) // 16
        pairs = torch.ones(tokens + words, tokens + words, dtype=torch.bool)
        pairs[:tokens, :tokens] = (frames[:, None] == frames) | (frames == 0)

        def restrict(module, inputs, named, pairs=pairs):
            return inputs, {**named, "attention_mask": named["attention_mask"] & pairs}

        masked.blocks[position].attn.register_forward_pre_hook(restrict, with_kwargs=True)
        found, expected = (m.velocity(x, TIMES, condition) for m in (restricted, masked))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        assert (found - model.velocity(x, TIMES, condition)).abs().max() > 1e-4
        assert restricted.n_parameters == model.n_parameters and restricted.self_attention[position] == "frame"


def test_attention_that_carries_the_text_is_not_removed(model: Hunyuan, data: TrainingData, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no caption would"):
        model.with_self_attention(["none"] * BLOCKS)
    model.with_self_attention(["frame"] * BLOCKS).save(tmp_path)
    assert model.with_transformer(tmp_path).self_attention == ("frame",) * BLOCKS


# Methods


METHODS = ("fastlightgen", "dmd2", "lcm", "magic_distillation", "icmd", "f3_pruning", "control_recover_ranked")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_makes_a_student(name: str, model: Hunyuan, data: TrainingData, tmp_path: Path) -> None:
    cls = registry("methods").get(name)
    small = {"clips": 2, "times": 1}
    values = {
        "fastlightgen": {"importance": small, "match": {"gan_weight": 0.03}},
        "magic_distillation": {"match": {"rank": 2}},
        "f3_pruning": small,
        "control_recover_ranked": {"importance": small},
    }.get(name, {})
    before = weights(model)
    method = cls(build_settings(cls.Settings, values, name), preset(model))
    curves = run_stages(method, model, data, tmp_path, iterations=2)
    student = model.with_transformer(tmp_path / method.stages(1e6)[-1].name / "transformer")
    assert same(weights(model), before)
    assert all(np.isfinite(v) for lines in curves.values() for line in lines for v in line.values())
    if name in ("fastlightgen", "icmd", "control_recover_ranked"):
        share = sum(student.block_parameters) / sum(model.block_parameters)
        assert abs(share - 0.7) <= max(model.block_parameters) / sum(model.block_parameters) / 2  # the nearest there is
        importance = tmp_path / "importance" / "importance.json"
        if importance.exists():
            assert json.loads(importance.read_text())["kinds"] == list(model.block_kinds)
    latents, nfe = generate(
        student, data.condition.select(slice(0, 1)), [(0, 0)], method.sampler().model_copy(update={"num_inference_steps": 2})
    )
    assert torch.isfinite(latents).all() and nfe == 2


def test_states_are_the_videos_tokens(model: Hunyuan, data: TrainingData) -> None:
    x, condition = two(data)
    with captured_states(model, [0, BLOCKS - 1]) as states:
        model.velocity(x, TIMES, condition)
    assert [s.shape for s in states] == [(2, 5 * 16, model.width)] * 2


# The stock pipeline


def test_the_stock_pipeline_makes_our_clip(model: Hunyuan, tmp_path: Path) -> None:
    """Loaded from the saved folder; so is ours, from the same."""
    folder = tmp_path / "hunyuan-tiny"
    hunyuan_pretrain.write_folder(model, FlowMatchEulerDiscreteScheduler(shift=3.0), folder)
    ours = Hunyuan.load(folder)
    pipeline = HunyuanVideoImageToVideoPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    factors = shapes.draw_factors("validation", np.arange(1))
    first, captions = shapes.render(factors)[:, 0], captions_of(factors)
    noise = clip_noise(0, 0, 0, ours.latent_shape)[None]
    condition = ours.condition(first, captions)
    # The stock pipeline would read twice as many image tokens beside the negative prompt as beside the prompt.
    negative = {
        "negative_prompt_embeds": condition.negative_text,
        "negative_pooled_prompt_embeds": condition.negative_extras["pooled"],
        "negative_prompt_attention_mask": condition.negative_extras["text_mask"],
    }
    stock = pipeline(
        Image.fromarray(first[0].numpy()),
        captions[0],
        height=64,
        width=64,
        num_frames=17,
        num_inference_steps=3,
        prompt_template=ours.reader.template,
        max_sequence_length=ours.text_length + 4,
        latents=noise,
        output_type="latent",
        guidance_scale=2.0,
        true_cfg_scale=3.0,
        **negative,
    ).frames
    # The stock pipeline mixes a thousandth of the image into its starting noise.
    start = 0.999 * noise + 0.001 * condition.image
    velocity = GuidedVelocity(ours, condition.guided(2.0), 3.0)
    with torch.inference_mode():
        latents = euler(velocity, start, pipeline.scheduler.sigmas)
    torch.testing.assert_close(latents, stock, atol=2e-4, rtol=1e-3)


# The recipe


def test_the_verb_makes_a_teacher(flgbench: Flgbench, tiny_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All parts of the recipe with small numbers: trained, called again, exported, loaded by the family's name.

    Only the gates, minutes of sampling, are left out: what is asked of them is what they are given.
    """
    gated: list[tuple[int, int, Path]] = []
    monkeypatch.setattr(environment, "cores", lambda: 1)  # in this process, where the small numbers are
    monkeypatch.setattr(gates, "measure_gates", lambda family, *given: gated.append(given) or {"passed": False})
    monkeypatch.setattr(hunyuan_pretrain, "CLIPS", 16)
    monkeypatch.setattr(hunyuan_pretrain, "_guide", lambda: tiny_model)
    monkeypatch.setattr(recipe, "TRANSFORMER", SMALL)
    for module in (hunyuan_text, hunyuan_vae, recipe):
        monkeypatch.setattr(module, "STEPS", 2)
        monkeypatch.setattr(module.train, "__defaults__", (2, 1))
    monkeypatch.setattr(recipe, "CONTINUED_STEPS", 2)
    work, folder = tmp_path / "work", tmp_path / "weights" / "hunyuan-tiny"
    verb = ("pretrain", "--model", "hunyuan", "--work", str(work), "--target", str(folder), "--conditions", "8")
    for _ in range(2):  # the second time nothing is left to train
        code, out, err = flgbench(*verb)
        assert code == 0, err
        assert out.startswith(f"weights: {folder}\n") and '"passed": false' in out
    assert gated == [(8, 3, folder)] * 2
    assert [json.loads(line)["step"] for line in (work / "dit-log.jsonl").read_text().splitlines()] == [1, 2]
    made = hunyuan_pretrain.load_trained(work)
    monkeypatch.setattr("flgbench.models.hunyuan_family.WEIGHTS", tmp_path / "weights")
    loaded = HunyuanFamily().load("tiny")
    for mine, kept in zip(weights(made), weights(loaded), strict=True):
        torch.testing.assert_close(mine, kept, rtol=1e-3, atol=1e-4)  # stored in half precision
    assert json.loads((folder / "recipe.json").read_text())["training"]["trained"] == 2
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) < 15e6
    on, further = tmp_path / "on", tmp_path / "further"
    on_verb = ("pretrain", "--model", "hunyuan", "--work", str(on), "--target", str(further), "--conditions", "8")
    code, _, err = flgbench(*on_verb, "--continue-from", str(folder))
    assert code == 0, err
    told = json.loads((further / "recipe.json").read_text())
    assert told["continued_from"]["training"]["trained"] == 2 and "--continue-from" in told["command"]
    assert (told["training"]["steps"], told["training"]["own_states"]) == (2, recipe.OWN_SHARE)
    assert (further / "start-dit-log.jsonl").read_text() == (folder / "dit-log.jsonl").read_text()
    assert told["training"]["seed"] == 1 + told["continued_from"]["training"]["seed"]
    for part, module in {"transformer": loaded.transformer, "vae": loaded.vae}.items():
        begun = hunyuan_pretrain._under(on / hunyuan_pretrain.START, f"{part}/")
        assert all(torch.equal(begun[k], v) for k, v in module.state_dict().items())
    kept = hunyuan_pretrain.load_trained(on).vae
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), loaded.vae.parameters(), strict=True))
    assert (further / "vae-log.jsonl").read_text() == (folder / "vae-log.jsonl").read_text()
    assert_refused(flgbench("pretrain", "--model", "hunyuan", "--gates", "--target", str(work)), "no teacher in")


def test_the_guide_is_shown_what_it_was_trained_on(tiny_model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The condition that the recipe hands to tiny wanx is the one wanx itself makes of the clip."""
    from flgbench.models.tiny import wanx

    shown: list[Condition] = []

    def watch(guide, x, t, condition, dropped, scale):
        shown.append(condition)
        return torch.zeros_like(x)

    monkeypatch.setattr(recipe, "guided_target", watch)
    monkeypatch.setattr(recipe, "TRANSFORMER", SMALL)
    made = recipe.build(hunyuan_vae.build(), hunyuan_text.build())
    recipe.train(made, tiny_model, wanx.encode_clips(tiny_model, "train", 0, 1), tmp_path, steps=1)
    factors = shapes.draw_factors("train", np.arange(1))
    expected = tiny_model.condition(shapes.render(factors)[:, 0], captions_of(factors))
    for name in ("text", "image"):
        found = getattr(shown[0], name)[:1]
        torch.testing.assert_close(found, getattr(expected, name), rtol=1e-3, atol=2e-3)  # cached in half precision


def test_own_states_are_those_of_the_networks_own_sampling(model: Hunyuan, data: TrainingData) -> None:
    """Each follows from the one before by an Euler step; put into a batch they replace its first clips and no others."""

    def tell(index: torch.Tensor, dropped: torch.Tensor, scale: torch.Tensor) -> Condition:
        assert not dropped.any()
        told = data.condition.select(index)
        return replace(told, extras=told.extras | {"guidance": scale})

    mine = recipe.OwnStates.sample(model, tell, CLIPS, 4, torch.Generator().manual_seed(1))
    assert mine.times[0] == 1 and (mine.times.diff() < 0).all() and mine.times[-1] > 0
    condition = tell(mine.index, torch.zeros(4, dtype=torch.bool), mine.scale)
    with torch.no_grad():
        for k in (0, 7, recipe.OWN_STEPS - 2):
            v = model.velocity(mine.states[k], mine.times[k].expand(4), condition)
            torch.testing.assert_close(mine.states[k + 1], mine.states[k] + (mine.times[k + 1] - mine.times[k]) * v)
    latents, dropped = torch.zeros(6, *model.latent_shape), torch.ones(6, dtype=torch.bool)
    batch = recipe.Batch(torch.full((6,), -1), latents, torch.zeros(6), dropped, torch.zeros(6))
    mine.put_into(batch, torch.Generator().manual_seed(2))
    assert torch.equal(batch.index[:4], mine.index) and torch.equal(batch.scale[:4], mine.scale)
    assert not batch.dropped[:4].any() and batch.dropped[4:].all() and (batch.index[4:] == -1).all()
    assert not batch.x_t[4:].any() and not batch.t[4:].any()
    for clip in range(4):
        (moment,) = torch.nonzero(mine.times == batch.t[clip])[0]
        assert torch.equal(batch.x_t[clip], mine.states[moment, clip])


@pytest.mark.parametrize("kinds", [("double", "double", "single"), ("block",) * 3])
def test_importance_plots_name_the_kinds_of_block(kinds: tuple[str, ...]) -> None:
    figure, axes = plt.subplots()
    _mark_kinds(axes, Importance(blocks=(0, 1, 2), x0_error=(3.0, 2.0, 1.0), kinds=kinds))
    several = len(set(kinds)) > 1
    assert [(t.get_text(), t.get_position()[0]) for t in axes.texts] == (
        [("double", 0.5), ("single", 2.0)] if several else []
    )
    assert [line.get_xdata()[0] for line in axes.lines] == ([1.5] if several else [])
    plt.close(figure)
