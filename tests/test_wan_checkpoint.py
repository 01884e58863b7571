"""Real checkpoints through the family wanx: both layouts equal the stock pipeline, sizes are exact, damage is told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from accelerate import init_empty_weights
from conftest import assert_refused
from diffusers import FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline, WanTransformer3DModel
from PIL import Image
from safetensors.torch import load_file, save_file
from stages import preset, run_stages
from wan_folders import CAPTIONS, CLIP, NEGATIVE, SCALE, TEXT_LENGTH, WAN_21, WAN_22, build_folder

from flgbench import flow
from flgbench.data import shapes
from flgbench.data.captions import captions_of
from flgbench.errors import UsageError
from flgbench.models import parts
from flgbench.models.base import Condition, Placement
from flgbench.models.families import WanXFamily
from flgbench.models.folded_conv import is_folded
from flgbench.models.parts import Part
from flgbench.models.stock import save_pipeline
from flgbench.models.wan_presets import CHECKPOINTS, denoiser_size
from flgbench.models.wanx import WanX
from flgbench.plan import plan
from flgbench.registry import registry
from flgbench.run_settings import RunSettings
from flgbench.sampling import GuidedVelocity, SamplerSettings, clip_noise, euler, generate
from flgbench.stage import TrainingData
from flgbench.steps import loading
from flgbench.store import Store
from methods.parts.importance import n_redundant

LAYOUTS = (WAN_21, WAN_22)
TIMES = torch.tensor([0.3, 0.8])
FP32 = Placement()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {layout: build_folder(tmp_path_factory.mktemp("wan"), layout) for layout in LAYOUTS}


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, Any]:
    return {layout: load(folders[layout], layout) for layout in LAYOUTS}


@pytest.fixture(scope="module")
def conditions(models: dict[str, WanX]) -> dict[str, Condition]:
    return {layout: model.condition(images(), CAPTIONS) for layout, model in models.items()}


def load(folder: Path, layout: str, placement: Placement = FP32) -> Any:
    return WanXFamily(str(folder)).load(SCALE[layout], placement)


def images() -> torch.Tensor:
    """Two first frames with something to see."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    return torch.from_numpy(coarse.repeat(8, axis=1).repeat(8, axis=2))


def noise(model: WanX) -> torch.Tensor:
    return torch.stack([clip_noise(c, 0, 0, model.latent_shape) for c in range(2)])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_stock_pipeline_makes_our_clip(layout: str, folders: dict[str, Path], models: dict[str, WanX]) -> None:
    model = models[layout]
    pipeline = WanImageToVideoPipeline.from_pretrained(folders[layout])
    pipeline.set_progress_bar_config(disable=True)
    assert (pipeline.image_encoder is not None) == (layout == WAN_21)
    start = noise(model)[:1]
    stock = pipeline(
        Image.fromarray(images()[0].numpy()),
        CAPTIONS[0],
        negative_prompt=NEGATIVE,
        height=CLIP[1],
        width=CLIP[2],
        num_frames=CLIP[0],
        num_inference_steps=4,
        guidance_scale=3.0,
        max_sequence_length=TEXT_LENGTH[layout],
        latents=start,
        output_type="latent",
    ).frames
    velocity = GuidedVelocity(model, model.condition(images()[:1], CAPTIONS[:1]), 3.0)
    with torch.inference_mode():
        latents = euler(velocity, start, pipeline.scheduler.sigmas)
    torch.testing.assert_close(latents, stock, rtol=0, atol=1e-4)
    assert (latents - start).abs().mean() > 0.1  # it went somewhere


def test_image_tokens_and_text_decide(models: dict[str, WanX], conditions: dict[str, Condition]) -> None:
    """Each of what a condition carries reaches the denoiser."""
    model, condition = models[WAN_21], conditions[WAN_21]
    assert condition.extras["image_tokens"].shape == (2, 5, 32)  # 4 patches and the class token
    x = noise(model)
    base = model.velocity(x, TIMES, condition)
    tokens = {"image_tokens": condition.extras["image_tokens"].flip(0)}
    other = Condition(condition.text, condition.negative_text, condition.image, tokens)
    assert (model.velocity(x, TIMES, other) - base).abs().max() > 1e-4
    assert (model.velocity(x, TIMES, condition.unconditional()) - base).abs().max() > 1e-4
    stock = model.transformer(
        torch.cat([x, condition.image], 1),
        TIMES * 1000,
        condition.text,
        condition.extras["image_tokens"],
        return_dict=False,
    )[0]
    torch.testing.assert_close(base, stock, rtol=0, atol=1e-6)
    assert not models[WAN_22].condition(images(), CAPTIONS).extras


def test_the_given_frame_stays(models: dict[str, WanX], conditions: dict[str, Condition]) -> None:
    """Wan 2.2 TI2V: whatever x's first frame is, the model sees the given one, and every sampler arrives at it."""
    model, condition = models[WAN_22], conditions[WAN_22]
    given = condition.image
    assert given.shape == (2, *model.latent_shape[:1], 1, *model.latent_shape[2:])
    torch.testing.assert_close(given, model.encode_video(images()[:, None]), rtol=0, atol=1e-5)
    for kind, guidance in (("euler", 3.0), ("renoise", 1.0), ("unipc", 3.0)):
        settings = SamplerSettings(kind=kind, num_inference_steps=3, guidance_scale=guidance)
        latents, _ = generate(model, condition, [(0, 0), (1, 0)], settings)
        torch.testing.assert_close(latents[:, :, :1], given, rtol=0, atol=1e-5)

    eps, clean = noise(model), torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(1))
    clean[:, :, :1] = given
    x = flow.interpolate(clean, eps, TIMES)
    velocity = model.velocity(x, TIMES, condition)
    torch.testing.assert_close(velocity[:, :, :1], (eps - clean)[:, :, :1], rtol=0, atol=1e-5)  # as it is regressed
    moved = x.clone()
    moved[:, :, 0] += 1
    torch.testing.assert_close(model.velocity(moved, TIMES, condition)[:, :, 1:], velocity[:, :, 1:], rtol=0, atol=0)


def test_tokens_of_the_given_frame_are_at_time_zero(models: dict[str, WanX]) -> None:
    times = models[WAN_22]._token_times(TIMES)
    tokens = models[WAN_22].token_frames * 2 * 2  # latents of 4x4 in patches of 2x2
    assert times.shape == (2, tokens)
    assert not times[:, :4].any() and torch.equal(times[:, 4:], TIMES[:, None].expand(2, tokens - 4))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_skipping_equals_deletion(layout: str, models: dict[str, WanX], conditions: dict[str, Condition]) -> None:
    model, condition = models[layout], conditions[layout]
    x = noise(model)
    skipped = model.velocity(x, TIMES, condition, skip=(1, 2))
    deleted = model.without_blocks((1, 2)).velocity(x, TIMES, condition)
    torch.testing.assert_close(skipped, deleted, rtol=0, atol=1e-6)
    assert (skipped - model.velocity(x, TIMES, condition)).abs().max() > 1e-3


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kinds", [("full",) * 3, ("full", "none", "frame")])
def test_a_saved_student_comes_back(
    layout: str, kinds: Any, models: dict[str, WanX], conditions: dict[str, Condition], tmp_path: Path
) -> None:
    model, condition = models[layout], conditions[layout]
    student = model.without_blocks([2]).with_self_attention(kinds)
    student.save(tmp_path)
    again = model.with_transformer(tmp_path)
    x = noise(model)
    assert torch.equal(again.velocity(x, TIMES, condition), student.velocity(x, TIMES, condition))
    assert again.kept_blocks == (0, 1, 3) and again.self_attention == kinds
    assert not any(p.requires_grad or p.is_meta for p in again.transformer.parameters())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bf16_is_near_fp32(
    layout: str, folders: dict[str, Path], models: dict[str, WanX], conditions: dict[str, Condition]
) -> None:
    half = load(folders[layout], layout, Placement(dtype=torch.bfloat16))
    x = noise(half)
    assert half.dtype == torch.bfloat16 and half.device == torch.device("cpu")  # before anything is read
    velocity = half.velocity(x, TIMES, conditions[layout])
    expected = models[layout].velocity(x, TIMES, conditions[layout])
    assert half.dtype == torch.bfloat16 and velocity.dtype == torch.float32 and torch.isfinite(velocity).all()
    error = (velocity - expected)[:, :, 1:].norm() / expected[:, :, 1:].norm()
    assert 1e-5 < error < 0.03
    # what diffusers keeps in fp32 stays, and the embeddings are in the encoder's dtype
    assert half.transformer.scale_shift_table.dtype == torch.float32
    assert half.encode_text(CAPTIONS).dtype == torch.bfloat16 and half.encode_image(images()).dtype == torch.float32
    assert half.vae.dtype == torch.float32


@pytest.mark.parametrize("layout", LAYOUTS)
def test_our_autoencoder_path_is_the_stock_one(layout: str, folders: dict[str, Path], models: dict[str, WanX]) -> None:
    model = models[layout]
    stock = WanImageToVideoPipeline.from_pretrained(folders[layout]).vae
    video = images()[:, None].expand(-1, CLIP[0], -1, -1, -1).clone()
    video[:, 5:] = video[:, 5:].flip(2)
    latents = model.encode_video(video)
    assert is_folded(model.vae) and latents.shape[1:] == model.latent_shape
    mean, std = (torch.tensor(stock.config[k]).view(1, -1, 1, 1, 1) for k in ("latents_mean", "latents_std"))
    with torch.no_grad():
        raw = stock.encode(video.permute(0, 4, 1, 2, 3).float() / 127.5 - 1).latent_dist.mode()
        pixels = stock.decode(raw).sample
    torch.testing.assert_close(latents, (raw - mean) / std, rtol=0, atol=1e-4)
    shown = model.decode(latents)
    assert shown.dtype == torch.uint8 and shown.shape == video.shape
    assert (shown - pixels.add(1).mul(127.5).permute(0, 2, 3, 4, 1)).abs().max() <= 0.51
    unfolded = model.copy()
    unfolded.vae = stock
    torch.testing.assert_close(unfolded.encode_video(video), latents, rtol=0, atol=1e-4)
    assert (unfolded.decode(latents).int() - shown.int()).abs().max() <= 1


def test_large_frames_go_through_tiles(models: dict[str, WanX], folders: dict[str, Path]) -> None:
    for layout, clip, tiled in ((WAN_21, (81, 480, 832), False), (WAN_21, (81, 720, 1280), True), (WAN_22, CLIP, False)):
        model = load(folders[layout], layout)
        model.clip_shape = clip
        assert model._autoencoder().use_tiling == tiled


@pytest.mark.parametrize("layout", LAYOUTS)
def test_export_writes_the_layout_back(
    layout: str, folders: dict[str, Path], models: dict[str, WanX], tmp_path: Path
) -> None:
    model = models[layout]
    save_pipeline(model, FlowMatchEulerDiscreteScheduler(), tmp_path)
    shutil.copy(folders[layout] / "flgbench.json", tmp_path)
    again = load(tmp_path, layout)
    condition = again.condition(images(), CAPTIONS)
    x = noise(model)
    assert torch.equal(again.velocity(x, TIMES, condition), model.velocity(x, TIMES, model.condition(images(), CAPTIONS)))


# Sizes

T2V_14B = {**CHECKPOINTS["14b"].transformer, "in_channels": 16, "image_dim": None, "added_kv_proj_dim": None}
T2V_1_3B = {**T2V_14B, "num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}


@pytest.mark.parametrize(
    ("config", "total", "block"),
    [
        (CHECKPOINTS["14b"].transformer, 16.39e9, 403.8e6),
        (T2V_14B, 14.29e9, 351.4e6),
        (CHECKPOINTS["5b"].transformer, 5.00e9, 163.7e6),
        (T2V_1_3B, 1.42e9, 46.4e6),
    ],
)
def test_parameters_of_the_published_denoisers(config: Any, total: float, block: float) -> None:
    """Built on the meta device, counted, and equal to the formula; methods.md 1.8 has the rounded figures."""
    with init_empty_weights():
        built = WanTransformer3DModel(**config)
    size = denoiser_size(config)
    assert size.total == sum(p.numel() for p in built.parameters())
    assert size.block == sum(p.numel() for p in built.blocks[0].parameters())
    assert size.total == pytest.approx(total, abs=0.005e9) and size.block == pytest.approx(block, abs=0.05e6)


@pytest.mark.parametrize(("scale", "blocks", "dropped"), [("14b", 40, 12), ("14b-720p", 40, 12), ("5b", 30, 9)])
def test_thirty_percent_of_the_blocks(scale: str, blocks: int, dropped: int) -> None:
    size = denoiser_size(CHECKPOINTS[scale].transformer)
    assert WanXFamily().preset(scale).blocks == blocks and n_redundant(0.7, blocks) == dropped
    kept = {**CHECKPOINTS[scale].transformer, "num_layers": blocks - dropped}
    with init_empty_weights():
        student = WanTransformer3DModel(**kept)
    left = sum(p.numel() for p in student.parameters())
    assert left == size.total - dropped * size.block
    assert 0.70 < left / size.total < 0.71  # of all parameters; what surrounds the blocks stays


def test_presets() -> None:
    small, large, wide = (WanXFamily().preset(scale) for scale in ("5b", "14b", "14b-720p"))
    assert (large.clip, large.fps, large.shift, large.guidance_scale) == ((81, 480, 832), 16, 3.0, 5.0)
    assert (wide.clip, wide.fps, wide.shift, wide.guidance_scale) == ((81, 720, 1280), 16, 5.0, 5.0)
    assert (small.clip, small.fps, small.shift, small.guidance_scale) == ((121, 704, 1280), 24, 5.0, 5.0)
    tiny = json.loads((WanXFamily().folder("tiny") / "transformer" / "config.json").read_text())
    size = denoiser_size(tiny)
    share = tiny["num_layers"] * size.self_attention / size.total
    assert WanXFamily().preset("tiny").self_attention_share == pytest.approx(share, abs=1e-3)
    assert large.self_attention_share == pytest.approx(40 * (4 * 5120 * 5121 + 5 * 5120) / 16.39e9, rel=1e-3)


def test_a_folder_that_was_named_says_its_own_numbers(folders: dict[str, Path]) -> None:
    own = WanXFamily(str(folders[WAN_21])).preset("14b")
    assert (own.clip, own.fps, own.blocks, own.shift) == (CLIP, 8, 4, 3.0)


def test_older_files_leave_out_defaults(
    folders: dict[str, Path], models: dict[str, WanX], conditions: dict[str, Condition], tmp_path: Path
) -> None:
    """As the published Wan 2.1 folders do, which are older than most of these settings."""
    left_out = {
        "model_index.json": ("expand_timesteps", "boundary_ratio", "transformer_2"),
        "vae/config.json": ("scale_factor_spatial", "scale_factor_temporal", "is_residual", "patch_size", "in_channels"),
        "transformer/config.json": ("rope_max_seq_len", "pos_embed_seq_len"),
    }

    def forget(folder: Path) -> None:
        for name, keys in left_out.items():
            config = json.loads((folder / name).read_text())
            (folder / name).write_text(json.dumps({k: v for k, v in config.items() if k not in keys}))

    older = load(damaged(folders[WAN_21], tmp_path / "older", forget), WAN_21)
    assert older.latent_shape == models[WAN_21].latent_shape and not older.per_token_times
    condition = older.condition(images(), CAPTIONS)
    torch.testing.assert_close(condition.image, conditions[WAN_21].image, rtol=0, atol=1e-6)
    x = noise(older)
    expected = models[WAN_21].velocity(x, TIMES, conditions[WAN_21])
    torch.testing.assert_close(older.velocity(x, TIMES, condition), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", registry("methods").groups()["all"])
def test_every_method_trains_a_model_with_token_times(name: str, models: dict[str, WanX], tmp_path: Path) -> None:
    model = models[WAN_22]
    factors = shapes.draw_factors("train", np.arange(2))
    condition = model.condition(shapes.render(factors)[:, 0], captions_of(factors))
    latents = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    latents[:, :, :1] = condition.image
    cls = registry("methods").get(name)
    run_stages(cls(cls.Settings(), preset(model)), model, TrainingData(latents, condition), tmp_path, 1)


# Parts are read when needed


def test_parts_are_read_when_needed(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The data step reads no denoiser and keeps no encoder; sampling reads neither text nor image encoder."""
    counts = {"conditions": 2, "repeated_conditions": 0, "pairs": 3}
    made = plan(RunSettings(scale="14b", checkpoint=str(folders[WAN_21]), baselines=("euler-4",), **counts), {})
    store, read, get = Store(tmp_path), set(), Part.get

    def noted(part: Part) -> Any:
        if part.loaded is None:
            read.add(type(get(part)).__name__)
        return get(part)

    monkeypatch.setattr(Part, "get", noted)
    seen: dict[str, set[str]] = {}
    for kind, name in (("teacher", "wanx"), ("data", "test"), ("sample", "euler-4")):
        step = next(s for s in made.steps.values() if (s.kind, s.name) == (kind, name))
        read.clear()
        loading._teacher.cache_clear()
        store.finish(step.key, import_module(f"flgbench.steps.{kind}").run(step, store, store.start(step.key)))
        seen[kind] = set(read)
        if kind == "data":
            assert not [p for p in vars(loading.load_teacher(step)).values() if isinstance(p, Part) and p.loaded]
    loading._teacher.cache_clear()
    encoders = {"AutoencoderKLWan", "UMT5EncoderModel", "CLIPVisionModel"}
    assert seen["teacher"] == {"WanTransformer3DModel"}
    assert encoders < seen["data"] and "WanTransformer3DModel" not in seen["data"]
    assert seen["sample"] == {"AutoencoderKLWan", "WanTransformer3DModel"}
    assert store.facts(made.cells[0].sample)["card"]["dtype"] == "bfloat16"
    assert "extra.image_tokens" in load_file(store.path(made.steps[step.key].inputs["data"]) / "clips.safetensors")


def test_weights_first_asked_for_by_a_sampler_can_be_trained(folders: dict[str, Path]) -> None:
    model = load(folders[WAN_22], WAN_22)
    with torch.inference_mode():
        assert model.n_parameters
    model.copy().requires_grad_(True).transformer.proj_out.weight.sum().backward()


# What identifies a checkpoint


def damaged(source: Path, target: Path, change: Callable[[Path], None]) -> Path:
    shutil.copytree(source, target)
    change(target)
    return target


def edit(path: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / path).read_text())
        (folder / path).write_text(json.dumps({**config, **changes}))

    return change


def scaled_weights(folder: Path) -> None:
    shard = sorted((folder / "transformer").glob("*.safetensors"))[-1]
    save_file({k: v * 1.01 for k, v in load_file(shard).items()}, shard, metadata={"format": "pt"})


def test_fingerprint(folders: dict[str, Path], tmp_path: Path) -> None:
    source = folders[WAN_21]
    original = WanXFamily(str(source)).fingerprint("14b")
    copied = damaged(source, tmp_path / "copy", lambda folder: None)
    (copied / "README.md").write_text("not a part")
    assert WanXFamily(str(copied)).fingerprint("14b") == original
    for name, change in {
        "weights": scaled_weights,
        "config": edit("vae/config.json", latents_mean=[0.0] * 16),
        "clips": edit("flgbench.json", negative_caption=""),
    }.items():
        other = damaged(source, tmp_path / name, change)
        assert WanXFamily(str(other)).fingerprint("14b") != original, name


def test_a_checkpoint_is_part_of_the_keys(folders: dict[str, Path]) -> None:
    settings: dict[str, Any] = {"baselines": ("euler-4",), "scale": "14b"}
    keys = set(plan(RunSettings(**settings, checkpoint=str(folders[WAN_21])), {}).steps)
    assert keys.isdisjoint(plan(RunSettings(**settings, checkpoint=str(folders[WAN_22])), {}).steps)
    tiny = plan(RunSettings(baselines=("euler-4",)), {}).steps.values()
    assert all("checkpoint" not in step.settings and "revision" not in step.settings for step in tiny)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_revision_in_the_local_cache(hub: Path, folders: dict[str, Path]) -> None:
    commit, name = "0123456789" * 4, "someone/wan-small"
    home = hub / "models--someone--wan-small"
    shutil.copytree(folders[WAN_22], home / "snapshots" / commit)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    for revision in (None, "main", commit):
        family = WanXFamily(name, revision)
        assert family.folder("5b") == home / "snapshots" / commit
        assert family.fingerprint("5b").endswith(f"@{commit}")
    with pytest.raises(UsageError, match=rf"v2 is not in the hub cache .*only {commit}\. .*{name} --revision v2`"):
        WanXFamily(name, "v2").fingerprint("5b")


def test_what_is_not_in_the_cache_is_not_downloaded(hub: Path) -> None:
    with pytest.raises(UsageError, match=r"--scale 14b: Wan-AI/.*480P-Diffusers not in the hub .*`hf download Wan-AI/"):
        WanXFamily().load("14b")
    with pytest.raises(UsageError, match="--checkpoint some/one: no such folder, and as a hub id not in"):
        WanXFamily("some/one").load("5b")
    with pytest.raises(UsageError, match="--checkpoint /no/such: no such folder, and not a hub id"):
        WanXFamily("/no/such").load("5b")


# Errors


def remove(path: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        target = folder / path
        shutil.rmtree(target) if target.is_dir() else target.unlink()

    return change


def first_shard(folder: Path) -> Path:
    return sorted((folder / "transformer").glob("*.safetensors"))[0]


def cut(folder: Path) -> None:
    shard = first_shard(folder)
    shard.write_bytes(shard.read_bytes()[:-1])


def pickled(folder: Path) -> None:
    for path in (folder / "vae").glob("*.safetensors*"):
        path.unlink()
    (folder / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"")


T2V = edit("model_index.json", _class_name="WanPipeline")
WRONG: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "no index": (WAN_21, remove("model_index.json"), "no model_index.json: not a folder in diffusers layout"),
    "no transformer": (WAN_21, remove("transformer"), "the part 'transformer' is missing"),
    "no vae": (WAN_22, remove("vae"), "the part 'vae' is missing"),
    "no text encoder": (WAN_22, remove("text_encoder"), "the part 'text_encoder' is missing"),
    "no tokenizer": (WAN_22, remove("tokenizer"), "the part 'tokenizer' is missing"),
    "no image encoder": (WAN_21, remove("image_encoder"), "the part 'image_encoder' is missing"),
    "no image processor": (WAN_21, remove("image_processor"), "the part 'image_processor' is missing"),
    "another family": (WAN_21, edit("model_index.json", _class_name="FluxPipeline"), "says FluxPipeline: not an image"),
    "text to video": (WAN_21, T2V, "says WanPipeline: not an image-to-video"),
    "two denoisers": (
        WAN_21,
        edit("model_index.json", transformer_2=["diffusers", "WanTransformer3DModel"]),
        "two denoisers",
    ),
    "another class": (WAN_21, edit("vae/config.json", _class_name="AutoencoderKL"), "AutoencoderKL, expected Auto"),
    "another encoder": (WAN_22, edit("text_encoder/config.json", model_type="t5"), "says t5, expected umt5"),
    "16 channels": (
        WAN_21,
        edit("transformer/config.json", in_channels=16),
        r"16 input channels: a text-to-video model; .* needs 36 = 16 noisy \+ 4 mask \+ 16 first frame",
    ),
    "channels of 2.1": (WAN_22, edit("transformer/config.json", in_channels=36), "36 input channels; .* needs 48"),
    "a shard gone": (WAN_21, lambda f: first_shard(f).unlink(), r"00001-of-.*safetensors of \d+ weight files missing"),
    "a shard cut": (WAN_21, cut, r"\d+ bytes, expected \d+: the download is not whole"),
    "a shard of rubbish": (WAN_21, lambda f: first_shard(f).write_bytes(b"<html>"), "not a whole .safetensors file"),
    "other weights": (WAN_21, edit("transformer/config.json", num_layers=5), r"holds \d+ weights, its config.json"),
    "only pickles": (WAN_22, pickled, "no .safetensors weights"),
    "short text": (WAN_21, edit("flgbench.json", text_length=20), "text_length 20: .* image tokens reads 512"),
    "no json": (WAN_21, lambda f: (f / "model_index.json").write_text("{"), "cannot be read as JSON"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_checkpoints(case: str, folders: dict[str, Path], tmp_path: Path) -> None:
    layout, change, words = WRONG[case]
    folder = damaged(folders[layout], tmp_path / "wrong", change)
    with pytest.raises(UsageError, match=words) as refused:
        plan(RunSettings(scale=SCALE[layout], checkpoint=str(folder), baselines=("euler",)), {})
    assert "\n" not in str(refused.value)


def test_missing_weights_are_not_made_up(folders: dict[str, Path], tmp_path: Path) -> None:
    def drop_one(folder: Path) -> None:
        (index,) = (folder / "text_encoder").glob("*.index.json")
        name = "encoder.final_layer_norm.weight"
        shard = index.parent / json.loads(index.read_text())["weight_map"][name]
        save_file({k: v for k, v in load_file(shard).items() if k != name}, shard, metadata={"format": "pt"})

    model = load(damaged(folders[WAN_22], tmp_path / "part", drop_one), WAN_22)
    with pytest.raises(UsageError, match=r"1 weights are missing, encoder.final_layer_norm.weight for one"):
        model.encode_text(CAPTIONS)


def test_a_published_scale_takes_only_its_own_denoiser(hub: Path, folders: dict[str, Path]) -> None:
    home = hub / "models--Wan-AI--Wan2.1-I2V-14B-480P-Diffusers"
    shutil.copytree(folders[WAN_21], home / "snapshots" / "abc")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("abc")
    with pytest.raises(UsageError, match=r"num_layers 4, expected 40, .*If it is meant: --checkpoint"):
        WanXFamily().fingerprint("14b")
    assert WanXFamily(CHECKPOINTS["14b"].repository).fingerprint("14b").endswith("@abc")


def test_no_room_on_the_gpu(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1e4, 8e10))
    model = load(folders[WAN_21], WAN_21, Placement("cuda", torch.bfloat16))
    with pytest.raises(UsageError, match=r"transformer: 0\.0 GB of weights in torch.bfloat16, and 0\.0 GB are free on cuda"):
        model.n_parameters  # noqa: B018
    with pytest.raises(UsageError, match=r"32\.8 GB of weights in torch.bfloat16, and 24.0 GB are free on cuda:1"):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (24e9, 8e10))
        size = denoiser_size(CHECKPOINTS["14b"].transformer).total
        parts.check_room(Placement("cuda:1", torch.bfloat16), size, Path("transformer"))


Flgbench = Callable[..., tuple[int, str, str]]


def test_the_command_line(flgbench: Flgbench, folders: dict[str, Path], tmp_path: Path, hub: Path) -> None:
    folder = str(folders[WAN_21])
    options = ("--methods", "fastlightgen", "--baselines", "euler", "--scale", "14b", "--out", str(tmp_path / "out"))
    code, out, err = flgbench("plan", *options, "--checkpoint", folder)
    assert code == 0, err
    assert "to run" in out and not (tmp_path / "out" / "store").exists()
    assert_refused(flgbench("plan", *options, "--checkpoint", folder, "--revision", "main"), "leave it out")
    assert_refused(flgbench("run", *options), "--scale 14b: Wan-AI/", "hf download")
    assert_refused(flgbench("run", *options, "--checkpoint", "a/b"), "--checkpoint a/b", "hf download a/b")
