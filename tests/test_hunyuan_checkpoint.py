"""The real scale of the family hunyuan: the stock pipeline's clip, exact sizes and FLOPs, kept shares, damage told."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from conftest import Flgbench, assert_refused
from diffusers import HunyuanVideoImageToVideoPipeline, HunyuanVideoTransformer3DModel
from hunyuan_folders import CLIP, DENOISER, DOUBLES, SCALE, SINGLES, build_folder
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flgbench.contracts import FamilyPreset
from flgbench.errors import UsageError
from flgbench.models.base import Placement, SelfAttention
from flgbench.models.flops import hunyuan_pass_flops
from flgbench.models.hunyuan import Hunyuan
from flgbench.models.hunyuan_attention import set_kind
from flgbench.models.hunyuan_family import HunyuanFamily
from flgbench.models.hunyuan_presets import CHECKPOINTS, block_kinds, denoiser_size
from flgbench.models.parts import Part
from flgbench.plan import plan
from flgbench.run_settings import RunSettings
from flgbench.sampling import GuidedVelocity, clip_noise, euler
from methods.parts.pruned_start import pruned_shape

CAPTION = "a small red star moves down"
PUBLISHED = CHECKPOINTS[SCALE].transformer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_folder(tmp_path_factory.mktemp("hunyuan") / "checkpoint")


def load(folder: Path, placement: Placement | None = None) -> Any:
    return HunyuanFamily(str(folder)).load(SCALE, placement or Placement())


def picture() -> torch.Tensor:
    coarse = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    return torch.from_numpy(coarse.repeat(8, axis=1).repeat(8, axis=2))


def test_the_stock_pipeline_makes_our_frames(folder: Path) -> None:
    """Asked as the model card asks it: its own template, text length and embedded guidance."""
    model = load(folder)
    pipeline = HunyuanVideoImageToVideoPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.vae.enable_tiling()
    noise = clip_noise(0, 0, 0, model.latent_shape)[None]
    size = {"height": CLIP[1], "width": CLIP[2], "num_frames": CLIP[0], "num_inference_steps": 3, "guidance_scale": 6.0}
    stock = pipeline(Image.fromarray(picture()[0].numpy()), CAPTION, **size, latents=noise, output_type="np").frames
    condition = model.condition(picture(), [CAPTION])
    start = 0.999 * noise + 0.001 * condition.image  # the stock pipeline mixes a thousandth of the image in
    with torch.inference_mode():
        latents = euler(GuidedVelocity(model, condition.guided(6.0), 1.0), start, pipeline.scheduler.sigmas)
    ours = model.decode(latents)
    assert ours.shape == (1, *CLIP, 3)
    assert np.abs(ours.numpy() - 255 * stock).max() < 1  # rounding, and what a sum of other order makes of it
    assert ours.float().std() > 1 and (latents - start).abs().mean() > 0.1


def test_the_stock_pipelines_text(folder: Path) -> None:
    """Every fourth of the image's 576 tokens, then the caption without the template, in bf16 near fp32."""
    model, half = load(folder), load(folder, Placement(dtype=torch.bfloat16))
    condition = model.condition(picture(), [CAPTION])
    assert condition.text.shape == (1, 144 + 252, 64)
    # The caption's six words and the line break that follows the part which is cut out.
    assert condition.extras["text_mask"].sum() == 144 + 6 + 1
    assert half.dtype == torch.bfloat16  # before anything is read
    told = half.condition(picture(), [CAPTION])
    assert told.text.dtype == torch.bfloat16 and told.image.dtype == torch.float32
    x, t = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0)), torch.full((1,), 0.5)
    expected, found = model.velocity(x, t, condition), half.velocity(x, t, condition)
    error = (found - expected)[:, :, 1:].norm() / expected[:, :, 1:].norm()
    assert found.dtype == torch.float32 and 1e-5 < error < 0.05


@pytest.mark.parametrize("kind", ["full", "frame"])
def test_a_clip_alone_is_that_of_a_batch(kind: SelfAttention, folder: Path) -> None:
    """Alone its text is cut where the caption ends and nothing is masked; in a batch padding is."""
    model = load(folder).with_self_attention([kind] * (DOUBLES + SINGLES))
    condition = model.condition(picture().expand(2, -1, -1, -1), [CAPTION, "a star"])
    x, t = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(1)), torch.tensor([0.2, 0.9])
    together = model.velocity(x, t, condition)
    for one in (slice(0, 1), slice(1, 2)):
        alone = model.velocity(x[one], t[one], condition.select(one))
        torch.testing.assert_close(alone, together[one], rtol=0, atol=1e-5)


def test_parts_are_read_when_needed_and_released(folder: Path) -> None:
    model = load(folder)
    parts = {name: held for name, held in vars(model).items() if isinstance(held, Part)}
    readers = {name: held for name, held in vars(model.reader).items() if isinstance(held, Part)}
    assert set(parts) == {"transformer", "vae", "tokenizer"} and len(readers) == 5
    assert model.latent_shape == (16, 5, 8, 8) and model.n_teacher_blocks == DOUBLES + SINGLES
    assert not any(held.loaded for held in (*parts.values(), *readers.values()))
    model.condition(picture(), [CAPTION])
    assert parts["transformer"].loaded is None and parts["vae"].loaded and readers["text_encoder"].loaded
    assert parts["vae"].loaded.use_tiling
    model.release_encoders()
    assert not any(held.loaded for held in (*parts.values(), *readers.values()))


# Sizes


@pytest.mark.parametrize("config", [PUBLISHED, DENOISER, {**DENOISER, "guidance_embeds": False, "mlp_ratio": 3.0}])
def test_parameters_of_denoisers(config: Any) -> None:
    """Built on the meta device, counted, and equal to the formula; methods.md 1.8 has the rounded figures."""
    with torch.device("meta"):
        built = HunyuanVideoTransformer3DModel(**config)
    size = denoiser_size(config)
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    blocks = built.transformer_blocks[0], built.single_transformer_blocks[0]
    assert (size.total, size.double, size.single) == (count(built), *map(count, blocks))
    linear = [[m for m in b.modules() if isinstance(m, torch.nn.Linear)] for b in blocks]
    adapted = [sum(m.in_features + m.out_features for m in layers) for layers in linear]
    assert [size.adapted_double, size.adapted_single] == adapted
    if config is PUBLISHED:
        assert (size.total, size.double, size.single) == (12_821_012_544, 339_831_296, 141_591_808)


def test_preset_and_network() -> None:
    preset, network = HunyuanFamily().preset(SCALE), HunyuanFamily().network(SCALE)
    assert (preset.clip, preset.fps, preset.shift, preset.blocks) == ((129, 720, 1280), 24, 7.0, 60)
    assert preset.teacher_sampler().embedded_guidance == 6.0 and preset.teacher_sampler().nfe == 50
    assert (preset.beta1, preset.beta2) == (2.0, 0.25)
    assert network is not None and network.parameters == 12_821_012_544 and network.largest_block == 339_831_296
    assert network.tokens == 33 * 45 * 80 + 396
    assert network.flops / 1e15 == pytest.approx(12.1, abs=0.05)
    assert network.blocks * network.block_parameters == pytest.approx(20 * 339_831_296 + 40 * 141_591_808, abs=60)


@pytest.mark.parametrize(
    ("loses", "gone"), [(None, (0, 26)), ("single", (0, 26)), ("double", (11, 0))]
)  # of the blocks' own parameters, of which the keep is a share
def test_thirty_percent_by_kind(loses: str | None, gone: tuple[int, int]) -> None:
    preset = HunyuanFamily().preset(SCALE)
    sized = FamilyPreset(7.0, 6.0, 50, preset.clip, 24, 60, 0.0, kinds=preset.kinds, loses=loses)
    lost = set(range(60)) - set(pruned_shape(0.7, sized).kept)
    assert (sum(b < 20 for b in lost), sum(b >= 20 for b in lost)) == gone
    share = sum(sized.block_sizes[b] for b in lost) / sum(sized.block_sizes)
    assert share == pytest.approx(0.3, abs=0.5 * max(sized.block_sizes) / sum(sized.block_sizes))


LATENT, TEXT = (3, 8, 6), 20


@pytest.mark.parametrize(
    ("kinds", "seen"),
    [
        (("double",) * 2 + ("single",) * 3, ("full",) * 5),
        (("double", "single"), ("full", "full")),
        (("double", "double", "single"), ("full", "frame", "frame")),
    ],
)
@pytest.mark.parametrize("guided", [True, False])
def test_formula_counts_what_torch_counts(kinds: tuple[str, ...], seen: tuple[SelfAttention, ...], guided: bool) -> None:
    doubles = kinds.count("double")
    counts = {"num_layers": doubles, "num_single_layers": len(kinds) - doubles}
    config = {**DENOISER, **counts, "num_attention_heads": 2, "mlp_ratio": 3.0, "guidance_embeds": guided}
    with torch.device("meta"):
        model = HunyuanVideoTransformer3DModel(**config)
        for block, kind in zip((*model.transformer_blocks, *model.single_transformer_blocks), seen, strict=True):
            set_kind(block, kind, LATENT[0])
        told = torch.zeros(1, TEXT, 64), torch.ones(1, TEXT), torch.zeros(1, 64), torch.zeros(1)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            model(torch.zeros(1, 16, *LATENT), torch.zeros(1), *told)
    assert hunyuan_pass_flops(config, kinds, seen, LATENT, TEXT).total == counter.get_total_flops()


def test_a_kept_share_of_compute_is_one_of_blocks() -> None:
    """methods.md 1.8: 30 % of the parameters from single blocks is 45 % of block compute, from double blocks 18 %."""
    names = [kind.name for kind in block_kinds(PUBLISHED) for _ in range(kind.count)]

    def flops(kept: list[str]) -> int:
        return hunyuan_pass_flops(PUBLISHED, kept, ("full",) * len(kept), (33, 90, 160), 396).total

    whole = flops(names)
    assert 1 - flops(names[:33]) / whole == pytest.approx(27 / 60, abs=0.001)
    assert 1 - flops(names[11:]) / whole == pytest.approx(11 / 60, abs=0.001)


# Command lines


def test_the_plan_of_a_recipe(flgbench: Flgbench) -> None:
    teacher = ("--model", "hunyuan", "--scale", SCALE)
    line = ("plan", "--methods", "fastlightgen", "--baselines", "euler", "--recipe", "fastlightgen-paper-13b")
    code, printed, told = flgbench(*line, *teacher)
    assert code == 0, told
    assert "GPU-h" in printed and "GB a GPU" in printed and "12,095.2 TFLOP a pass" in printed and "16 x H100" in printed
    code, printed, told = flgbench(*line[:-1], "fastlightgen-paper", *teacher)
    assert code == 0 and "of scale 14b" in told


def test_a_sweep_of_the_kept_share_is_timed(flgbench: Flgbench, tmp_path: Path) -> None:
    """Table 7's, at the tiny scale: a row a point, with kept blocks and kept parameters."""
    size = ("--weights", "random", "--frames", "5", "--height", "32", "--width", "32", "--pairs", "1", "--passes", "1")
    sweep = ("--methods", "euler-4,fastlightgen", "--set", "fastlightgen.keep=1,0.7,0.5", "--passes-only", "fastlightgen")
    code, out, err = flgbench("latency", "--model", "hunyuan", *sweep, *size, "--threads", "1", "--json")
    assert code == 0, err
    rows = {row["row"]: row for row in json.loads(out)["rows"]}
    points = [f"fastlightgen@keep={keep}" for keep in ("1", "0.7", "0.5")]
    assert list(rows) == ["euler-4", "fastlightgen", *points]
    kept = [(rows[name]["kept_blocks"], rows[name]["kept_parameters"]) for name in points]
    assert kept[0] == (1.0, 1.0)
    assert all(blocks < parameters < 1 for blocks, parameters in kept[1:]), "single blocks go first"
    assert rows["fastlightgen"]["kept_blocks"] == kept[1][0]
    assert all(rows[name]["values"]["pass_s"]["value"] > 0 for name in points)
    assert rows[points[1]]["values"]["denoise_s"]["value"] is None, "a point of a method that makes no clips makes none"
    table = next((tmp_path / "flgbench-latency").rglob("*.md")).read_text()
    assert "FastLightGen, keep=0.7" in table and "parameters" in table


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "hunyuan", "--lose-first", "triple"), ("--lose-first triple", "double, single")),
        (("--lose-first", "double"), ("one kind of block",)),
        (("--set", "lcm.keep=1,0.5", "--methods", "euler"), ("lcm", "not among")),
        (("--model", "hunyuan", "--scale", SCALE, "--frames", "6"), ("--frames 6", "129")),
        (("--model", "hunyuan", "--scale", SCALE, "--height", "40"), ("--height 40", "multiples of 16")),
        (("--model", "hunyuan", "--scale", "14b"), ("--scale 14b", "13b")),
    ],
)
def test_wrong_use_is_one_line(arguments: tuple[str, ...], words: tuple[str, ...], flgbench: Flgbench) -> None:
    assert_refused(flgbench("latency", *arguments, "--device", "cpu"), *words)


def test_the_full_size_is_weighed_before_it_is_built(flgbench: Flgbench) -> None:
    line = ("latency", "--model", "hunyuan", "--scale", SCALE, "--methods", "euler", "--device", "cpu", "--dtype", "bf16")
    refused = flgbench(*line, "--pairs", "1")
    assert_refused(refused, "--scale 13b at 129 frames of 720x1280", "smaller --frames")
    found = re.search(r"and ([0-9.]+) GiB on", refused[2])
    # 12.8 B of the denoiser, 8.4 B of Llava and CLIP in 16 bits, 0.25 B of the autoencoder in 32, and what a clip takes.
    assert found and 55 < float(found[1]) < 65


# What is wrong with a folder


def edit(path: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / path).read_text())
        (folder / path).write_text(json.dumps({**config, **changes}))

    return change


def remove(path: str) -> Callable[[Path], None]:
    return lambda folder: shutil.rmtree(folder / path)


def cut(folder: Path) -> None:
    shard = sorted((folder / "transformer").glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-1])


DENOISER_FILE = "transformer/config.json"
WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "no transformer": (remove("transformer"), "the part 'transformer' is missing"),
    "no second encoder": (remove("text_encoder_2"), "the part 'text_encoder_2' is missing"),
    "no second tokenizer": (remove("tokenizer_2"), "the part 'tokenizer_2' is missing"),
    "no image processor": (remove("image_processor"), "the part 'image_processor' is missing"),
    "another family": (edit("model_index.json", _class_name="WanImageToVideoPipeline"), "says Wan.*: not an image-to-video"),
    "text to video": (edit("model_index.json", _class_name="HunyuanVideoPipeline"), "says HunyuanVideoPipeline: not an"),
    "another encoder": (edit("text_encoder/config.json", model_type="llama"), "says llama, expected llava"),
    "33 channels": (edit(DENOISER_FILE, image_condition_type="latent_concat", in_channels=33), "16-channel model"),
    "no image": (edit(DENOISER_FILE, image_condition_type=None), "image_condition_type is None: a text-to-video model"),
    "other channels": (edit(DENOISER_FILE, in_channels=4), "4 input channels; with this vae it needs 16"),
    "a shard cut": (cut, r"\d+ bytes, expected \d+: the download is not whole"),
    "other weights": (edit(DENOISER_FILE, num_single_layers=9), r"holds \d+ weights, its config.json describes \d+"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_checkpoints(case: str, folder: Path, tmp_path: Path) -> None:
    change, words = WRONG[case]
    wrong = tmp_path / "wrong"
    shutil.copytree(folder, wrong)
    change(wrong)
    with pytest.raises(UsageError, match=words) as refused:
        plan(RunSettings(model="hunyuan", scale=SCALE, checkpoint=str(wrong), baselines=("euler",)), {})
    assert "\n" not in str(refused.value)


def test_the_published_scale_takes_only_its_own_denoiser(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(UsageError, match=r"hunyuanvideo-community/HunyuanVideo-I2V not in the hub .*`hf download hunyuan"):
        HunyuanFamily().load(SCALE)
    home = tmp_path / "hub" / "models--hunyuanvideo-community--HunyuanVideo-I2V"
    shutil.copytree(folder, home / "snapshots" / "abc")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("abc")
    with pytest.raises(UsageError, match=r"num_layers 2, expected 20, .*If it is meant: --checkpoint"):
        HunyuanFamily().fingerprint(SCALE)
    named = HunyuanFamily(CHECKPOINTS[SCALE].repository)
    assert named.fingerprint(SCALE).endswith("@abc")
    assert [kind.count for kind in named.preset(SCALE).kinds] == [DOUBLES, SINGLES]
    with pytest.raises(UsageError, match=r"revision v2 is not in the hub cache"):
        HunyuanFamily(CHECKPOINTS[SCALE].repository, "v2").fingerprint(SCALE)
    with pytest.raises(UsageError, match=r"need --scale 13b: the tiny weights"):
        HunyuanFamily(str(folder)).preset("tiny")


def test_a_long_caption_keeps_the_templates_end(folder: Path) -> None:
    model: Hunyuan = load(folder)
    mask = model.condition(picture(), [" ".join(["red"] * 300)]).extras["text_mask"]
    assert mask.sum() == 144 + 252
