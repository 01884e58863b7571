"""Audio + text + image to video: adapters that leave the plain model alone until trained, and go where their blocks go."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
import toy_hunyuan
from conftest import Flgbench, assert_refused
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from safetensors.torch import load_file
from scipy.io import wavfile
from stages import run_stages, same, weights
from test_hunyuan import BLOCKS, DOUBLES, SINGLES, TIMES, preset

import flgbench as package
from flgbench import student_verbs
from flgbench.data import encoded, mel, shapes, sound
from flgbench.data.captions import captions_of
from flgbench.data.sound_file import read_sound
from flgbench.errors import UsageError
from flgbench.models.base import Condition
from flgbench.models.hunyuan import Hunyuan
from flgbench.models.hunyuan_audio import AudioAttention, HearingHunyuan, HearingTransformer
from flgbench.models.hunyuan_audio_family import HunyuanATI2VFamily
from flgbench.models.hunyuan_family import HunyuanFamily
from flgbench.models.tiny import hunyuan_audio as recipe
from flgbench.models.tiny import hunyuan_audio_pretrain, hunyuan_pretrain
from flgbench.models.wanx import WanX
from flgbench.registry import registry
from flgbench.sampling import SamplerSettings, build_cache, generate
from flgbench.settings import build_settings
from flgbench.shipped import verify, write_hashes
from flgbench.stage import TrainingData
from flgbench.students import StudentRecord
from flgbench.video import write_mp4

CLIPS = 4


@pytest.fixture(scope="module")
def plain() -> Hunyuan:
    """Five blocks of width 32 with seeded random weights: not changed."""
    return toy_hunyuan.build()


def trained(model: HearingHunyuan) -> HearingHunyuan:
    """A copy whose adapters say something."""
    twin = model.copy()
    generator = torch.Generator().manual_seed(3)
    for parameter in twin.transformer.adapter_parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return twin


@pytest.fixture(scope="module")
def model(plain: Hunyuan) -> HearingHunyuan:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return trained(HearingHunyuan.around(plain))


@pytest.fixture(scope="module")
def data(model: HearingHunyuan) -> TrainingData:
    factors = sound.draw_factors("train", np.arange(CLIPS))
    told = model.condition(shapes.render(factors)[:, 0], captions_of(factors))
    condition = model.with_inputs(told, {"sound": torch.from_numpy(sound.waveforms(factors))})
    latents = torch.randn((CLIPS, *model.latent_shape), generator=torch.Generator().manual_seed(2))
    latents[:, :, :1] = condition.image
    return TrainingData(latents, condition)


def two(data: TrainingData) -> tuple[torch.Tensor, Condition]:
    return data.latents[:2], data.condition.select(slice(0, 2))


def heard(condition: Condition, audio: torch.Tensor) -> Condition:
    return Condition(
        condition.text,
        condition.negative_text,
        condition.image,
        {**condition.extras, "audio": audio},
        condition.negative_extras,
    )


def test_an_untrained_adapter_is_the_plain_model(plain: Hunyuan, data: TrainingData) -> None:
    x, condition = two(data)
    fresh = HearingHunyuan.around(plain)
    assert torch.equal(fresh.velocity(x, TIMES, condition), plain.velocity(x, TIMES, condition))
    assert fresh.n_parameters > plain.n_parameters and fresh.block_kinds == plain.block_kinds
    assert len(fresh.transformer.adapter_parameters()) == 6 + 11 * BLOCKS


def test_silence_is_what_a_condition_says_unless_asked(model: HearingHunyuan, data: TrainingData) -> None:
    factors = sound.draw_factors("train", [0])
    silent = model.condition(shapes.render(factors)[:, 0], captions_of(factors))
    assert silent.extras["audio"].shape == (1, shapes.FRAMES, 4 * mel.BANDS) and not silent.extras["audio"].any()
    assert data.condition.extras["audio"].any()
    x, condition = two(data)
    other = model.velocity(x, TIMES, heard(condition, torch.zeros_like(condition.extras["audio"])))
    assert (other - model.velocity(x, TIMES, condition)).abs().max() > 1e-3
    with pytest.raises(UsageError, match="smell"):
        model.with_inputs(silent, {"smell": torch.zeros(1)})


def test_other_families_are_told_no_sound(plain: Hunyuan, data: TrainingData) -> None:
    with pytest.raises(UsageError, match="told no sound"):
        plain.with_inputs(data.condition, {"sound": torch.zeros(1, 34_000)})


def test_the_negative_branch_hears_the_same(data: TrainingData) -> None:
    _, condition = two(data)
    assert torch.equal(condition.unconditional().extras["audio"], condition.extras["audio"])


def test_a_frame_hears_what_is_near() -> None:
    """Of five latent frames the last audio token reaches the last two."""
    torch.manual_seed(0)
    attention = AudioAttention(32, 2, 16)
    attention.to_out.weight.data.normal_()
    video, audio = torch.randn(1, 5 * 4, 32), torch.randn(1, 5, 16)
    other = audio.clone()
    other[:, 4] += 1
    changed = (attention(video, audio) - attention(video, other)).abs().amax(2).view(5, 4).amax(1) > 1e-6
    assert changed.tolist() == [False, False, False, True, True]
    attention.near.data[:, :] = torch.tensor([-50.0, 0.0, -50.0])  # its own frame alone: one token, weight 1
    alone = attention(video, audio)
    gate = torch.nn.functional.silu(attention.to_gate(attention.norm(video)))
    expected = attention.to_out(attention.to_v(audio).repeat_interleave(4, dim=1) * gate)
    torch.testing.assert_close(alone, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("drop", [(0,), (BLOCKS - 1,), (1, 3)])
def test_a_block_takes_its_adapter_with_it(drop: tuple[int, ...], model: HearingHunyuan, data: TrainingData) -> None:
    x, condition = two(data)
    deleted = model.without_blocks(drop)
    skipped = model.velocity(x, TIMES, condition, skip=drop)
    torch.testing.assert_close(skipped, deleted.velocity(x, TIMES, condition), rtol=0, atol=1e-5)
    assert (skipped - model.velocity(x, TIMES, condition)).abs().max() > 1e-3
    assert len(deleted.transformer.adapter_parameters()) == 6 + 11 * (BLOCKS - len(drop))
    gone = sum(model.block_parameters[i] for i in drop)
    assert model.n_parameters - deleted.n_parameters == gone


def test_a_saved_student_comes_back(model: HearingHunyuan, data: TrainingData, tmp_path: Path) -> None:
    student = model.without_blocks([3]).without_blocks([0]).with_self_attention(["frame", "full", "full"])
    student.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["num_layers"], config["num_single_layers"], config["audio_features"]) == (DOUBLES - 1, SINGLES - 1, 128)
    loaded = model.with_transformer(tmp_path)
    x, condition = two(data)
    assert isinstance(loaded, HearingHunyuan) and loaded.kept_blocks == (1, 2, 4)
    assert torch.equal(loaded.velocity(x, TIMES, condition), student.velocity(x, TIMES, condition))
    assert [p.name for p in tmp_path.glob("*.safetensors")] == ["diffusion_pytorch_model.safetensors"]


def test_activations_computed_again_hear_the_same(model: HearingHunyuan, data: TrainingData) -> None:
    """Also where another sound was heard between forward and backward."""
    x, condition = two(data)
    other = heard(condition, condition.extras["audio"].flip(0))
    found = []
    for again in (False, True):
        twin = model.copy().requires_grad_(True)
        if again:
            twin.transformer.enable_gradient_checkpointing()
        loss = twin.velocity(x, TIMES, condition).pow(2).mean()
        with torch.no_grad():
            twin.velocity(x, TIMES, other)
        loss.backward()
        found.append([p.grad for p in twin.transformer.adapter_parameters()])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(plain, again, rtol=1e-4, atol=1e-7)
    assert all(grad.abs().max() > 0 for grad in found[0])


@pytest.mark.parametrize("threshold", [1e-9, 1e9])
def test_the_first_block_cache_hears(threshold: float, model: HearingHunyuan, data: TrainingData) -> None:
    one = data.condition.select(slice(0, 1))
    settings = SamplerSettings(num_inference_steps=4, cache_threshold=threshold)
    cache = build_cache(model, settings)
    assert cache is not None
    latents, _ = generate(model, one, [(0, 0)], settings, cache=cache)
    plain, _ = generate(model, one, [(0, 0)], settings.model_copy(update={"cache_threshold": None}))
    assert cache.computed_share == pytest.approx(1 if threshold < 1 else (BLOCKS + 3) / (4 * BLOCKS))
    if threshold < 1:
        torch.testing.assert_close(latents, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["fastlightgen", "magic_distillation"])
def test_methods_make_students_that_hear(name: str, model: HearingHunyuan, data: TrainingData, tmp_path: Path) -> None:
    cls = registry("methods").get(name)
    values = {
        "fastlightgen": {"importance": {"clips": 2, "times": 1}},
        "magic_distillation": {"match": {"rank": 2}},
    }.get(name, {})
    before = weights(model)
    method = cls(build_settings(cls.Settings, values, name), preset(model))
    run_stages(method, model, data, tmp_path, iterations=2)
    assert same(weights(model), before)


# The family


@pytest.fixture(scope="module")
def installed(plain: Hunyuan, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of weights with the random model as the teacher without sound, and adapters of the recipe's two steps."""
    from flgbench.models import hunyuan_family

    folder = tmp_path_factory.mktemp("weights")
    hunyuan_pretrain.write_folder(plain, FlowMatchEulerDiscreteScheduler(shift=3.0), folder / "hunyuan-tiny")
    write_hashes(folder / "hunyuan-tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hunyuan_family, "WEIGHTS", folder)
        verify.cache_clear()
        yield folder
    verify.cache_clear()


@pytest.fixture(scope="module")
def taught(installed: Path, tiny_model: WanX, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work folder of the recipe, done with small numbers in two parts; its result is installed."""
    work = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "CLIPS", 8)
        patch.setattr(recipe, "BATCH", 4)
        patch.setattr(hunyuan_audio_pretrain, "WanXFamily", lambda: SimpleNamespace(load=lambda scale: tiny_model))
        patch.setattr(recipe.train, "__defaults__", (1, 1))
        hunyuan_audio_pretrain.pretrain(work, 1)
        patch.setattr(recipe.train, "__defaults__", (2, 1))
        made = hunyuan_audio_pretrain.pretrain(work, 1)
        hunyuan_audio_pretrain.export(made, work, installed / "hunyuan-ati2v-tiny")
    return work


def test_the_recipe_makes_a_teacher_that_hears(taught: Path, installed: Path, plain: Hunyuan, data: TrainingData) -> None:
    """Its denoiser is the plain one, with adapters that training has moved; an interruption changes nothing."""
    loaded = HunyuanATI2VFamily().load("tiny")
    assert isinstance(loaded, HearingHunyuan)
    own = loaded.transformer.state_dict()
    for name, value in plain.transformer.state_dict().items():
        torch.testing.assert_close(own[name], value, rtol=1e-3, atol=1e-4)  # stored in half precision
    assert loaded.transformer.transformer_blocks[0].audio.to_out.weight.abs().max() > 0
    assert [json.loads(line)["step"] for line in (taught / "audio-log.jsonl").read_text().splitlines()] == [1, 2]
    read = load_file(taught / "sounding.safetensors")
    start = HunyuanFamily().load("tiny")
    assert isinstance(start, Hunyuan)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "BATCH", 4)
        patch.setattr(recipe, "WARMUP", 30)
        straight = recipe.train(start, read, taught / "again", steps=2, report_every=1)
    assert same(weights(straight), weights(recipe.train(start, read, taught / "again", steps=2)))
    size = sum(p.stat().st_size for p in (installed / "hunyuan-ati2v-tiny").rglob("*") if p.is_file())
    assert size < 15e6


def test_training_looks_where_the_sound_shows() -> None:
    video, silent = torch.zeros(2, 16, 5, 8, 8), torch.zeros(2, 16, 5, 8, 8)
    video[0, :, 2, 3, 3] = 1.0
    found = recipe.emphasis(video, silent, 4.0)
    assert torch.equal(found[1], torch.ones_like(found[1]))  # nothing to see anywhere
    assert found[0, 0, 2, 3, 3] / found[0, 0, 0, 0, 0] == pytest.approx(4.0)
    torch.testing.assert_close(found.mean((1, 2, 3, 4)), torch.ones(2))


def test_the_target_adds_what_guidance_adds_without_a_sound(plain: Hunyuan, data: TrainingData) -> None:
    x, condition = data.latents, data.condition
    t = torch.tensor([0.2, 0.4, 0.6, 0.8])
    asked = torch.tensor([1.0, 2.5, 1.0, 2.5])
    told = Condition(condition.text, condition.negative_text, condition.image, {**condition.extras, "guidance": asked})
    due, silent = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)), torch.tensor([False, False, True, True])
    found = recipe.target(plain, x, t, told, due, silent)
    at, at_one = plain.velocity(x, t, told), plain.velocity(x, t, told.guided(1.0))
    expected = torch.stack([due[0], due[1] + at[1] - at_one[1], at[2], at[3]])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_adapters_belong_to_one_teacher(taught: Path, installed: Path, tmp_path: Path) -> None:
    before = HunyuanATI2VFamily().fingerprint("tiny")
    assert before != HunyuanFamily().fingerprint("tiny")
    hashes = installed / "hunyuan-tiny" / "sha256.json"
    kept = hashes.read_text()
    try:
        hashes.write_text(kept + " ")
        verify.cache_clear()
        with pytest.raises(UsageError, match="trained from another 'hunyuan'"):
            HunyuanATI2VFamily().load("tiny")
        with pytest.raises(UsageError, match="begun from another"):
            hunyuan_audio_pretrain.pretrain(taught, 1)
    finally:
        hashes.write_text(kept)
        verify.cache_clear()


def test_without_weights_one_line_says_how_to_make_them(
    flgbench: Flgbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flgbench.models.hunyuan_family.WEIGHTS", tmp_path / "nothing")
    refused = flgbench("run", "--model", "hunyuan-ati2v", "--dry-run")
    assert_refused(refused, "no weights", "flgbench pretrain --model hunyuan-ati2v")


def test_a_run_measures_how_clips_follow_and_sample_makes_them_heard(
    taught: Path, flgbench: Flgbench, tmp_path: Path
) -> None:
    options = {"model": "hunyuan-ati2v", "conditions": 2, "repeated_conditions": 0, "training_clips": 16}
    run = package.run("none", "euler-2,real", out=tmp_path / "out", **options)
    assert not run.failed
    table = run.table.set_index(["cell", "metric"])["value"]
    assert (table["real", "audio_correlation"] > 0.99).all() and (table["real", "audio_lag"] == 0).all()
    assert ("euler-2", "audio_correlation") in table.index and ("euler-2", "joint") in table.index
    assert "Sound" in (run.folder / "report" / "tables" / "main.md").read_text()

    factors = sound.draw_factors("test", [0])
    Image.fromarray(shapes.render(factors)[0, 0].numpy()).save(tmp_path / "first.png")
    wave = sound.waveforms(factors)[0]
    wavfile.write(tmp_path / "beat.wav", sound.RATE, np.stack([wave, wave], 1))
    verb = ("sample", "--student", "latest/euler-2", "--image", str(tmp_path / "first.png"), "--prompt", "a small red star")
    verb = (*verb, "--out", str(tmp_path / "out"))
    clips = {}
    for name, more in (("loud", ("--audio", str(tmp_path / "beat.wav"))), ("silent", ())):
        code, _, err = flgbench(*verb, "-o", str(tmp_path / f"{name}.mp4"), *more)
        assert code == 0, err
        with av.open(str(tmp_path / f"{name}.mp4")) as container:
            assert len(container.streams.audio) == (name == "loud")
            clips[name] = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    assert clips["loud"].shape == clips["silent"].shape == (17, 64, 64, 3)
    for case, says in (("none.wav", "no such file"), ("first.png", "no sound track")):
        assert_refused(flgbench(*verb, "-o", str(tmp_path / "x.mp4"), "--audio", str(tmp_path / case)), says)


def test_real_clips_are_encoded_with_their_sound(taught: Path, flgbench: Flgbench, tmp_path: Path) -> None:
    factors = sound.draw_factors("train", [0, 1])
    waves = sound.waveforms(factors)
    (tmp_path / "clips").mkdir()
    for i, video in enumerate(shapes.render(factors).numpy()):
        write_mp4(tmp_path / "clips" / f"{i}.mp4", video, 8, waves[i])
    write_mp4(tmp_path / "clips" / "silent.mp4", video, 8)
    rows = [f"{name}.mp4,a small red star" for name in ("0", "1", "silent")]
    (tmp_path / "captions.csv").write_text("\n".join(["file_name,caption", *rows]) + "\n")
    code, printed, err = flgbench("encode", "clips", "--captions", "captions.csv", "--model", "hunyuan-ati2v", "-o", "set")
    assert code == 1 and "bad: silent.mp4: has no sound track" in printed, err
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert len(manifest["clips"]) == 2 and "16 kHz" in manifest["rules"]["sound"]
    stored = encoded.training_data(tmp_path / "set").condition.select(torch.arange(2)).extras["audio"]
    true = torch.from_numpy(mel.mel_frames(waves)).unflatten(1, (shapes.FRAMES, -1)).flatten(2)
    assert stored.shape == true.shape
    loud = true > 0.5
    assert (stored - true)[loud].abs().mean() < 0.05  # AAC is between them
    shifted = true.roll(1, dims=1)
    assert (stored - true).abs().mean() < 0.5 * (stored - shifted).abs().mean(), "in time with the picture"


def test_audio_for_a_family_that_hears_nothing(tmp_path: Path) -> None:
    record = StudentRecord(tmp_path, "euler", "wanx", "tiny", "key", None, {})
    with pytest.raises(UsageError, match="'wanx' hears nothing, hunyuan-ati2v does"):
        student_verbs._sound(record, tmp_path / "a.wav")


def test_a_clip_carries_its_sound(tmp_path: Path) -> None:
    """In time with the picture, nearly as it was, and the picture is what it is without."""
    factors = sound.draw_factors("test", [1])
    video, wave = shapes.render(factors)[0].numpy(), sound.waveforms(factors)[0]
    write_mp4(tmp_path / "loud.mp4", video, 8, wave)
    write_mp4(tmp_path / "silent.mp4", video, 8)
    heard = read_sound(tmp_path / "loud.mp4", len(wave))
    assert np.corrcoef(heard, wave)[0, 1] > 0.99
    with av.open(str(tmp_path / "loud.mp4")) as container:
        assert container.streams.audio[0].duration == len(wave)
    frames = []
    for name in ("loud", "silent"):
        with av.open(str(tmp_path / f"{name}.mp4")) as container:
            frames.append(np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)]))
    assert np.array_equal(*frames)
    with pytest.raises(UsageError, match="no sound track"):
        read_sound(tmp_path / "silent.mp4", len(wave))


# Real scale


def test_a_hearing_network_in_the_layout_of_the_published_one() -> None:
    """HunyuanVideo's own arguments on the meta device: what adapters add; and narrow with random weights, a forward."""
    with torch.device("meta"):
        full = HearingTransformer(image_condition_type="token_replace")
    added = sum(p.numel() for p in full.adapter_parameters())
    stock = sum(p.numel() for p in full.parameters()) - added
    assert stock == pytest.approx(12.8e9, rel=0.01)
    width = 3072
    block = 3 * (width**2 + width) + 2 * (64 * width + width) + 3 * 24
    assert added == pytest.approx(60 * block, rel=1e-3)
    narrow = {"num_attention_heads": 2, "num_layers": 2, "num_single_layers": 2, "num_refiner_layers": 1}
    torch.manual_seed(0)
    layout = HearingTransformer(image_condition_type="token_replace", text_embed_dim=64, **narrow).eval()
    told = {
        "hidden_states": torch.randn(1, 16, 5, 8, 8),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 6, 64),
        "encoder_attention_mask": torch.ones(1, 6, dtype=torch.long),
        "pooled_projections": torch.randn(1, 768),
        "guidance": torch.tensor([6000.0]),
        "return_dict": False,
    }
    with torch.no_grad():
        plain = layout(**told)[0]
        assert torch.equal(layout(**told, audio=torch.rand(1, 17, 128))[0], plain)
        for parameter in layout.adapter_parameters():
            parameter.normal_(std=0.1)
        assert not torch.allclose(layout(**told, audio=torch.rand(1, 17, 128))[0], plain, atol=1e-3)
