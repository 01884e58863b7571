"""Other open models through their diffusers pipelines, with tiny random components of diffusers' own classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Flgbench, assert_refused
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLTemporalDecoder,
    CogVideoXDDIMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXTransformer3DModel,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from PIL import Image
from stages import PRESET
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from baselines.open_models import INDEX, SVDXT, CogVideoXI2V, PipelineModel, SVDSettings, fingerprint, frame_indices
from flgbench import api, open_models, timing
from flgbench.cells import Step
from flgbench.contracts import EvaluationBatch
from flgbench.data import shapes
from flgbench.data.captions import captions_of
from flgbench.errors import UsageError
from flgbench.inputs import fit
from flgbench.plan import plan
from flgbench.registry import registry
from flgbench.run_settings import RunSettings
from flgbench.steps import latency
from flgbench.store import Store

STEPS = 2


@pytest.fixture(scope="module")
def cogvideox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder whose clips are 9 frames of 16 x 16."""
    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "red": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    text = T5Config(vocab_size=4, d_model=32, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    folder = tmp_path_factory.mktemp("cogvideox")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=8,
            out_channels=4,
            time_embed_dim=2,
            text_embed_dim=32,
            num_layers=1,
            sample_width=2,
            sample_height=2,
            sample_frames=9,
            max_text_seq_length=16,
            use_rotary_positional_embeddings=True,
            use_learned_positional_embeddings=True,
        )
        vae = AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
        )
        pipe = CogVideoXImageToVideoPipeline(tokenizer, T5EncoderModel(text), vae, transformer, CogVideoXDDIMScheduler())
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def svd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder whose clips are 4 frames."""
    folder = tmp_path_factory.mktemp("svd")
    seen = CLIPVisionConfig(
        hidden_size=32, projection_dim=32, num_hidden_layers=1, num_attention_heads=4, image_size=224, intermediate_size=37,
        patch_size=56,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNetSpatioTemporalConditionModel(
            block_out_channels=(32, 64),
            layers_per_block=1,
            sample_size=4,
            in_channels=8,
            out_channels=4,
            down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            cross_attention_dim=32,
            num_attention_heads=8,
            projection_class_embeddings_input_dim=96,
            addition_time_embed_dim=32,
            num_frames=4,
        )
        vae = AutoencoderKLTemporalDecoder(
            block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4
        )
        pipe = StableVideoDiffusionPipeline(
            vae,
            CLIPVisionModelWithProjection(seen),
            unet,
            EulerDiscreteScheduler(prediction_type="v_prediction", timestep_type="continuous", use_karras_sigmas=True),
            CLIPImageProcessor(crop_size=224, size=224),
        )
    pipe.save_pretrained(folder)
    return folder


def cog(folder: Path, **more: Any) -> CogVideoXI2V:
    return CogVideoXI2V(PRESET, CogVideoXI2V.Settings(checkpoint=str(folder), num_inference_steps=STEPS, **more))


def stable(folder: Path, **more: Any) -> SVDXT:
    size = {"height": 32, "width": 48}
    return SVDXT(PRESET, SVDSettings(checkpoint=str(folder), num_inference_steps=STEPS, **size, **more))


# Rules


def test_frames_are_the_nearest_in_time() -> None:
    assert frame_indices(49, 8, 17, 8) == (list(range(17)), 1.0)  # the first two seconds
    assert frame_indices(49, 8, 81, 16) == ([round(i / 2) for i in range(81)], 1.0)
    chosen, slowed = frame_indices(25, 7, 81, 16)  # 3.4 s for 5 s: played slower, from its first frame to its last
    assert chosen[0] == 0 and chosen[-1] == 24 and slowed == pytest.approx(5 * 7 / 24)
    assert chosen == sorted(chosen)


# Clips


@pytest.mark.parametrize("build", [cog, stable])
def test_a_clip_is_the_pipelines_own(build: Callable[..., PipelineModel], request: pytest.FixtureRequest) -> None:
    """The stock pipeline, called by hand with the same picture and seed, resized by the stated rules."""
    folder = request.getfixturevalue("cogvideox" if build is cog else "svd")
    frame = shapes.render(shapes.draw_factors("test", np.arange(1)))[0, 0]
    model = build(folder)
    made = model.make(frame, "red", 7)
    if build is cog:
        pipe: Any = CogVideoXImageToVideoPipeline.from_pretrained(folder)
        size, own = (9, 16, 16), {"prompt": "red", "max_sequence_length": 16, "num_frames": 9}
    else:
        pipe = StableVideoDiffusionPipeline.from_pretrained(folder)
        size, own = (4, 32, 48), {"fps": 7}
    pipe.set_progress_bar_config(disable=True)
    picture = Image.fromarray(fit(Image.fromarray(frame.numpy()), size[1:]))
    given = {"height": size[1], "width": size[2], "num_inference_steps": STEPS, "output_type": "np"}
    frames = pipe(picture, generator=torch.Generator().manual_seed(7), **given, **own).frames[0]
    chosen, slowed = frame_indices(size[0], model.settings.fps, PRESET.clip[0], PRESET.fps)
    expected = [fit(Image.fromarray((255 * frames[i]).round().astype(np.uint8)), PRESET.clip[1:]) for i in chosen]
    assert made.video.shape == (*PRESET.clip, 3) and made.video.dtype == torch.uint8
    np.testing.assert_array_equal(made.video.numpy(), np.stack(expected))
    assert made.facts["native_size"] == list(size) and made.facts["slowed"] == round(slowed, 3)
    assert made.facts["nfe"] == 2 * STEPS  # both guide by default, with both passes in one batch
    parts = [made.seconds[k] for k in ("text_s", "denoise_s", "decode_s")]
    assert min(parts) > 0 and sum(parts) == pytest.approx(made.seconds["end_to_end_s"])


def test_passes_are_counted_not_computed(cogvideox: Path, svd: Path) -> None:
    frame = torch.zeros(64, 64, 3, dtype=torch.uint8)
    assert cog(cogvideox, guidance_scale=1.0).make(frame, "red", 0).facts["nfe"] == STEPS
    assert stable(svd, guidance_scale=1.0).make(frame, "", 0).facts["nfe"] == STEPS


def test_noise_depends_on_condition_and_sample_alone(svd: Path) -> None:
    factors = shapes.draw_factors("test", np.arange(2))
    frames, captions = shapes.render(factors)[:, 0], captions_of(factors)
    model = stable(svd)
    ids = [(0, 0), (1, 0), (1, 1)]
    rows = [c for c, _ in ids]
    clips = model.generate(None, EvaluationBatch(None, frames[rows], frames, ids, [captions[c] for c in rows]))
    alone = model.generate(None, EvaluationBatch(None, frames[1:], frames, [(1, 0)], captions[1:]))
    torch.testing.assert_close(clips[1:2], alone, rtol=0, atol=0)
    assert (clips[1] != clips[2]).any()


# Asked for, and refused


def test_they_run_only_when_asked_for() -> None:
    groups = registry("baselines").groups()
    assert {"cogvideox-i2v", "svd-xt"} <= set(registry("baselines").names()) - set(groups["all"])
    assert "needs a checkpoint" in registry("baselines").describe("svd-xt")


def test_wrong_checkpoints_are_refused_in_one_line(
    flgbench: Flgbench, cogvideox: Path, svd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def asked(*more: str, name: str = "cogvideox-i2v") -> tuple[int, str, str]:
        return flgbench("plan", "--methods", "none", "--baselines", name, *(x for m in more for x in ("--set", m)))

    place = "cogvideox-i2v.checkpoint"
    assert_refused(asked(), "needs weights", f"--set {place}=FOLDER", "zai-org/CogVideoX-5b-I2V")
    assert_refused(asked(name="svd-xt"), "stabilityai/stable-video-diffusion-img2vid-xt")
    assert_refused(asked(f"{place}=no where"), "no such folder")
    assert_refused(asked(f"{place}=nobody/nothing"), "not in the local cache", "hf download nobody/nothing")
    assert_refused(asked(f"{place}={tmp_path}"), "no model_index.json")
    assert_refused(asked(f"{place}={svd}"), "holds a StableVideoDiffusionPipeline")
    assert_refused(asked(f"cogvideox-i2v.chekpoint={svd}"), "did you mean 'checkpoint'")
    assert_refused(asked(f"svd-xt.checkpoint={svd}"), "'svd-xt' is not among the baselines of this run")
    assert_refused(asked("euler.steps=3", name="euler"), "euler has no setting 'steps'")
    (tmp_path / INDEX).write_text((cogvideox / INDEX).read_text())
    assert_refused(asked(f"{place}={tmp_path}"), "is missing in")
    for part in ("tokenizer", "text_encoder", "vae", "scheduler", "transformer"):
        (tmp_path / part).mkdir()
    (tmp_path / "transformer" / "diffusion_pytorch_model.bin").write_bytes(b"\x80")
    assert_refused(asked(f"{place}={tmp_path}"), "nothing pickled is read")


def test_weights_are_part_of_the_keys(cogvideox: Path, tmp_path: Path) -> None:
    def planned(baselines: tuple[str, ...], **settings: Any) -> Any:
        return plan(RunSettings(baselines=baselines, method_settings={"cogvideox-i2v": settings} if settings else {}), {})

    without, made = planned(("euler",)), planned(("euler", "cogvideox-i2v"), checkpoint=str(cogvideox))
    assert {k for k, s in without.steps.items() if s.kind != "latency"} < set(made.steps)
    cell = made.cells[-1]
    assert cell.kind == "open" and cell.measures_latency
    content = made.steps[cell.sample].settings
    assert "transformer/diffusion_pytorch_model.safetensors" in content["weights"]
    timed = next(s for s in made.steps.values() if s.kind == "latency")
    assert timed.settings["generators"] == {"cogvideox-i2v": {k: content[k] for k in ("baseline", "settings", "weights")}}
    assert set(timed.settings["samplers"]) == {"euler"}
    fewer = planned(("euler", "cogvideox-i2v"), checkpoint=str(cogvideox), num_inference_steps=3)
    assert fewer.cells[-1].sample != cell.sample
    with pytest.raises(UsageError, match="have changed since the run was planned"):
        open_models.load(dict(content) | {"weights": {}}, PRESET)
    snapshot = tmp_path / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    assert fingerprint(snapshot) == {"revision": "abc123"}  # a commit of the hub says all


def test_they_are_timed_beside_the_reference(svd: Path, tmp_path: Path) -> None:
    """The latency step as planned, but with a short reference."""
    made = plan(
        RunSettings(
            baselines=("euler", "svd-xt"),
            method_settings={"svd-xt": {"checkpoint": str(svd), "height": 32, "width": 32, "num_inference_steps": STEPS}},
            pairs=3,
        ),
        {},
    )
    planned = next(s for s in made.steps.values() if s.kind == "latency")
    samplers = {"euler": {**planned.settings["samplers"]["euler"], "num_inference_steps": 2}}
    step, store = Step("latency", "short", {**planned.settings, "samplers": samplers}), Store(tmp_path)
    folder = store.start(step.key)
    latency.run(step, store, folder)
    table = pd.read_parquet(folder / "results.parquet")
    times = table[table["cell"] == "svd-xt"].pivot(index="condition", columns="metric", values="value").drop(index=-1)
    assert list(times.index) == [0, 1, 2] and (times[list(timing.STAGES)] > 0).all(axis=None)
    reason = table[(table["cell"] == "svd-xt") & (table["metric"] == "peak_memory_mb")]["reason"].item()
    assert table["status"].eq("missing").sum() == 2 and "share one process" in reason


# The whole path


def test_open_models_are_rows_of_a_run(cogvideox: Path, svd: Path, tmp_path: Path) -> None:
    given = {"num_inference_steps": STEPS}
    run = api.run(
        "none",
        "euler-4,cogvideox-i2v,svd-xt",
        out=tmp_path,
        settings={
            "cogvideox-i2v": {"checkpoint": str(cogvideox), **given},
            "svd-xt": {"checkpoint": str(svd), "height": 32, "width": 32, **given},
        },
        training_clips=16,
        conditions=2,
        repeated_conditions=0,
    )
    assert not run.failed
    rows = run.main.set_index("cell")
    assert list(rows["kind"]) == ["baseline", "open", "open"]
    assert list(rows.loc[["cogvideox-i2v", "svd-xt"], "nfe"]) == [2 * STEPS] * 2
    assert rows["joint"].notna().all() and pd.isna(rows.loc["svd-xt", "training_passes"])
    assert rows.loc["svd-xt", "kept_note"] == "another network than the teacher's"
    cell = next(c for c in json.loads((run.folder / "cells.json").read_text()) if c["cell"] == "svd-xt")
    assert cell["settings"]["native_size"] == [4, 32, 32] and cell["settings"]["fps"] == 7
    assert cell["settings"]["slowed"] > 4  # four frames at 7 fps for two seconds
    assert "Stable Video Diffusion" in run.report.read_text()
