"""Images and prompts instead of procedural conditions, encoded clips instead of procedural ones: planned, run, reported."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Flgbench, assert_refused
from PIL import Image
from safetensors.torch import load_file, save_file

from flgbench import students
from flgbench.cells import Step
from flgbench.collect import thumbnails
from flgbench.data import clips, encoded, shapes, suite
from flgbench.data.captions import captions_of
from flgbench.errors import UsageError
from flgbench.inputs import fit
from flgbench.metrics.descriptive import without_truth
from flgbench.metrics.judges import clip_alignment, clip_similarity
from flgbench.metrics.table import ALL_METRICS
from flgbench.models.families import WanXFamily
from flgbench.plan import NO_TRUTH, Plan, plan
from flgbench.run_settings import RunSettings
from flgbench.runs import run_name
from flgbench.sampling import SamplerSettings
from flgbench.settings import digest
from flgbench.steps import execute
from flgbench.steps.loading import evaluated
from flgbench.store import Store
from flgbench.video import write_mp4
from reports.data import load_run

TINY = WanXFamily()
CLIPS, PROMPTS = 6, 4


def write_suite(folder: Path, names: list[str], camera: bool = False) -> Path:
    """Procedural first frames as JPEGs in the layout of VBench-I2V, in two ratios; the wide ones are all black."""
    frames = shapes.render(shapes.draw_factors("held_out", np.arange(len(names))))[:, 0].numpy()
    (folder / "crop" / "1-1").mkdir(parents=True)
    (folder / "crop" / "16-9").mkdir()
    entries: list[dict[str, Any]] = []
    for name, frame in zip(names, frames, strict=True):
        Image.fromarray(frame).resize((96, 80)).save(folder / "crop" / "1-1" / f"{name}.jpg", quality=95)
        Image.new("RGB", (160, 90)).save(folder / "crop" / "16-9" / f"{name}.jpg")
        entries.append({"prompt_en": name, "dimension": ["i2v_subject"], "image_name": f"{name}.jpg"})
        if camera:
            entries += [
                {"prompt_en": f"{name}, camera {way}", "dimension": ["camera_motion"]} for way in ("pans left", "static")
            ]
    (folder / suite.INFO).write_text(json.dumps(entries))
    return folder


def write_set(folder: Path, **changes: Any) -> Path:
    """An encoded set of random latents for the tiny teacher; `changes` are of its manifest's settings."""
    model = TINY.load("tiny")
    folder.mkdir()
    frames = shapes.render(shapes.draw_factors("train", np.arange(CLIPS)))
    condition = model.condition(frames[:, 0], captions_of(shapes.draw_factors("train", np.arange(CLIPS)))).tensors()
    shared = {k: v for k, v in condition.items() if k.startswith(clips.SHARED)}
    own = {"latents": torch.randn(CLIPS, *model.latent_shape)} | {k: v for k, v in condition.items() if k not in shared}
    save_file({k: v.contiguous() for k, v in own.items()}, folder / "shard-00000.safetensors")
    save_file(shared, folder / clips.NEGATIVE)
    settings = {"model": "wanx", "scale": "tiny", "fingerprint": TINY.fingerprint("tiny")}
    settings |= {"frames": 17, "height": 64, "width": 64, "fps": 8}
    manifest = {
        "format": clips.FORMAT,
        "settings": settings | changes,
        "clips": [{"file": f"{i}.mp4"} for i in range(CLIPS)],
    }
    (folder / clips.MANIFEST).write_text(json.dumps(manifest))
    return folder


def planned(**settings: Any) -> Plan:
    baselines = ("euler", "real", "vae_round_trip", "shuffled_frames", "frozen_image")
    return plan(RunSettings(methods=("dmd2",), baselines=baselines, **settings), {"cores": 1})


def keys(made: Plan) -> set[tuple[str, str, str]]:
    return {(s.kind, s.name, k) for k, s in made.steps.items()}


def test_images_of_the_nearest_ratio_in_the_files_order(tmp_path: Path) -> None:
    names = ["a red star", "a blue ball, slowly"]
    folder = write_suite(tmp_path / "s", names, camera=True)
    prompts = suite.read_suite(folder, (64, 64))
    assert [p.text for p in prompts] == [
        "a red star",
        "a blue ball, slowly",
        "a red star, camera pans left",
        "a blue ball, slowly, camera pans left",
        "a red star, camera static",
        "a blue ball, slowly, camera static",
    ], "each image once, then again"
    assert [p.image for p in prompts] == [folder / "crop" / "1-1" / f"{name}.jpg" for name in names] * 3
    assert {p.image.parent.name for p in suite.read_suite(folder, (480, 832))} == {"16-9"}
    images = suite.images_of(prompts[:2], (64, 64))
    with Image.open(prompts[0].image) as image:
        assert np.array_equal(images[0], fit(image.convert("RGB"), (64, 64))), "as every other image"
    for place in ("data/crop", "images", "data/origin", "origin", "."):
        other = tmp_path / place.replace("/", "-").replace(".", "plain")
        target = other / place / "1-1" if place == "data/crop" else other / place
        shutil.copytree(folder / "crop" / "1-1", target, dirs_exist_ok=True)
        shutil.copy(folder / suite.INFO, other / "prompts.json")
        assert suite.read_suite(other, (64, 64))[0].image == target / "a red star.jpg"
        assert suite.digest(suite.read_suite(other, (64, 64))) == suite.digest(prompts), "where it lies does not matter"


def test_wrong_suites(tmp_path: Path) -> None:
    def refused(words: str, entries: Any = None, text: str | None = None) -> None:
        folder = tmp_path / "s"
        shutil.rmtree(folder, ignore_errors=True)
        write_suite(folder, ["a red star"])
        if entries is not None or text is not None:
            (folder / suite.INFO).write_text(text if text is not None else json.dumps(entries))
        with pytest.raises(UsageError, match=words):
            suite.read_suite(folder, (64, 64))

    with pytest.raises(UsageError, match="no such folder"):
        suite.read_suite(tmp_path / "none", (64, 64))
    with pytest.raises(UsageError, match="no JSON files"):
        suite.read_suite(tmp_path, (64, 64))
    refused("cannot be read as JSON", text="{")
    refused("expected a list", entries={})
    refused("entry 1: no text 'prompt_en'", entries=[{"prompt": "a"}])
    refused("entry 1: image_name is no text", entries=[{"prompt_en": "a", "image_name": 1}])
    refused("entry 1: no image_name, and no prompt 'a' has one", entries=[{"prompt_en": "a, camera pans left"}])
    refused("entry 1: image .*gone.jpg: no such file", entries=[{"prompt_en": "a", "image_name": "gone.jpg"}])
    refused("entry 1: image .*info.json: not an image", entries=[{"prompt_en": "a", "image_name": f"../../{suite.INFO}"}])
    refused("entry 1: the prompt is empty", entries=[{"prompt_en": " ", "image_name": "a red star.jpg"}])


def test_the_plan_knows_contents_not_places(tmp_path: Path) -> None:
    write_suite(tmp_path / "s", ["a red star", "a blue ball"])
    write_set(tmp_path / "d")
    shutil.copytree(tmp_path / "s", tmp_path / "s2")
    shutil.copytree(tmp_path / "d", tmp_path / "d2")
    plain, both = planned(), planned(data=tmp_path / "d", suite=tmp_path / "s")
    assert keys(both) == keys(planned(data=tmp_path / "d2", suite=tmp_path / "s2"))
    assert {s.location for s in both.steps.values()} == {"", str(tmp_path / "d"), str(tmp_path / "s")}
    only_data, only_suite = planned(data=tmp_path / "d"), planned(suite=tmp_path / "s")
    changed = {(kind, name) for kind, name, _ in keys(only_data) - keys(plain)}
    assert changed == {("data", "encoded"), ("train", "match"), ("sample", "dmd2"), ("quality", "dmd2")}
    assert {kind for kind, _, _ in keys(only_suite) - keys(plain)} == {"data", "sample", "quality", "latency"}
    manifest = tmp_path / "d2" / clips.MANIFEST
    manifest.write_text(manifest.read_text() + "\n")
    assert keys(planned(data=tmp_path / "d2")) & keys(only_data) == keys(plain) & keys(only_data)
    Image.new("RGB", (9, 9)).save(tmp_path / "s2" / "crop" / "1-1" / "a red star.jpg")
    assert not keys(planned(suite=tmp_path / "s2")) & (keys(only_suite) - keys(plain))


def test_without_them_no_key_and_no_name_has_changed() -> None:
    """What is asked of the plan is written out as it was before there were sets and suites."""
    made = planned()
    teacher = next(k for k, s in made.steps.items() if s.kind == "teacher")
    place = {"model": "wanx", "scale": "tiny"}
    for split, count, name in (("train", 1024, "train"), ("test", 48, "test")):
        step = Step("data", name, place | {"split": split, "count": count}, {"teacher": teacher})
        assert step.key in made.steps
    (sample,) = (s for s in made.steps.values() if s.kind == "sample" and s.name == "real")
    assert sample.settings == place | {
        "baseline": "baselines.controls:RealClips", "conditions": 48, "repeated_conditions": 4
    }  # fmt: skip
    told = RunSettings().model_dump(mode="json", exclude={"data", "suite"}, exclude_none=True)
    assert run_name(RunSettings()) == f"wanx-tiny-{digest(told)}"


def test_a_suite_has_no_true_videos(tmp_path: Path) -> None:
    made = planned(suite=write_suite(tmp_path / "s", ["a red star", "a blue ball"]), conditions=64, pairs=20)
    skipped = {c.name: c.skipped for c in made.cells}
    assert skipped == {
        "euler": "", "real": NO_TRUTH, "vae_round_trip": NO_TRUTH, "shuffled_frames": NO_TRUTH, "frozen_image": "",
        "dmd2": "",
    }  # fmt: skip
    names = {s.name for s in made.steps.values() if s.kind in ("sample", "quality")}
    assert names == {"euler", "frozen_image", "dmd2"}
    for step in made.steps.values():
        if step.kind == "sample":
            assert step.settings["conditions"] == 2, "as many as there are"
            assert step.settings["repeated_conditions"] == 0


def test_a_set_must_fit(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--data .*none: no manifest.json .*no such folder"):
        planned(data=tmp_path / "none")
    (tmp_path / "half").mkdir()
    with pytest.raises(UsageError, match="was it encoded to its end"):
        planned(data=tmp_path / "half")
    for name, value in (("scale", "14b"), ("fingerprint", "0123"), ("fps", 16), ("model", "hunyuan")):
        folder = write_set(tmp_path / name, **{name: value})
        with pytest.raises(UsageError, match=f"encoded with {name} {value}, the run has "):
            planned(data=folder)
    folder = write_set(tmp_path / "other")
    manifest = json.loads((folder / clips.MANIFEST).read_text())
    for told, words in (({"format": 0}, "none that this version writes"), ({"clips": []}, "holds no clips")):
        (folder / clips.MANIFEST).write_text(json.dumps(manifest | told))
        with pytest.raises(UsageError, match=words):
            planned(data=folder)
    (folder / clips.MANIFEST).write_text("{")
    with pytest.raises(UsageError, match="cannot be read"):
        planned(data=folder)


def test_the_verb_refuses_before_any_work(flgbench: Flgbench, tmp_path: Path) -> None:
    assert_refused(flgbench("run", "--data", "none"), "--data", "flgbench encode")
    assert_refused(flgbench("run", "--suite", "none"), "--suite", "no such folder")
    assert not (tmp_path / "flgbench-out").exists()


def test_measures_without_truth() -> None:
    """Frozen clips, clips of half the contrast, and clips whose light goes up and down, by hand."""
    given = torch.from_numpy(np.random.default_rng(0).integers(60, 180, (1, 64, 64, 3), np.uint8))
    frozen = given[:, None].repeat(1, 9, 1, 1, 1)
    found = {k: float(v[0]) for k, v in without_truth(frozen, given).items()}
    assert found["first_frame_psnr"] == pytest.approx(58.92, abs=0.01) and found["first_frame_ssim"] == pytest.approx(1)
    assert found["sharpness_kept"] == pytest.approx(1)
    assert found["luminance_flicker"] == found["interpolation_error"] == 0 and found["flow_speed"] < 0.1

    flat = frozen.clone()
    flat[:, 1:] = (flat[:, 1:].int() // 4 * 2 + 60).to(torch.uint8)  # half the contrast, behind an exact first frame
    found = {k: float(v[0]) for k, v in without_truth(flat, given).items()}
    assert found["first_frame_ssim"] == pytest.approx(1) and found["sharpness_kept"] == pytest.approx(0.5, abs=0.01)

    flickering = frozen.clone()
    flickering[:, 1::2] += 10
    found = {k: float(v[0]) for k, v in without_truth(flickering, given).items()}
    assert found["luminance_flicker"] == pytest.approx(20, rel=1e-3) and found["interpolation_error"] == pytest.approx(10)

    grey = torch.full((1, 64, 64, 3), 90, dtype=torch.uint8)
    assert np.isnan(without_truth(grey[:, None].repeat(1, 9, 1, 1, 1), grey)["sharpness_kept"]).all(), "no edges to keep"


def test_clip_similarity_where_its_weights_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any weights of CLIP's classes can stand in OpenAI's place: here the shipped small ones."""
    monkeypatch.setattr(clip_similarity, "FILE", tmp_path / "none.safetensors")
    assert clip_similarity.why_not().startswith("not run: no ")
    whole = clip_alignment.all_rows(load_file(clip_alignment.WEIGHTS / "model.safetensors"))
    save_file(whole, tmp_path / "weights.safetensors")
    monkeypatch.setattr(clip_similarity, "FILE", tmp_path / "weights.safetensors")
    assert clip_similarity.why_not() == ""
    factors = shapes.draw_factors("test", np.arange(2))
    video, captions = shapes.render(factors), captions_of(factors)
    expected = clip_alignment.alignment(video, captions)
    np.testing.assert_allclose(clip_similarity.similarity(video, captions), expected, rtol=0, atol=1e-6)
    assert np.isfinite(clip_similarity.similarity(video[:, :2], ["a red star " * 100] * 2)).all(), "long prompts are cut"


def test_the_page_shows_large_clips_small() -> None:
    """81 wide frames, each as blue as its number, red in the middle: 17 from first to last, the middle kept."""
    clip = torch.zeros(2, 81, 96, 160, 3, dtype=torch.uint8)
    clip[..., 2] = torch.arange(81)[:, None, None]
    clip[:, :, :, 70:90, 0] = 200
    small = thumbnails(clip)
    assert small.shape == (2, 17, 64, 64, 3) and small.dtype == torch.uint8
    assert small[0, :, 0, 0, 2].tolist() == list(range(0, 81, 5))
    assert (small[0, :, 32, 32, 0] == 200).all() and (small[0, :, 32, (0, 63), 0] == 0).all()
    tiny = torch.randint(0, 256, (2, 17, 64, 64, 3), dtype=torch.uint8)
    assert torch.equal(thumbnails(tiny), tiny)


def plan_of(run: Path) -> list[dict[str, Any]]:
    return json.loads((run / "plan.json").read_text())["steps"]


def timed_on_the_suite(root: Path, data: str) -> None:
    """A latency step of its own, of one step a clip: the reference of a comparison takes 50. With more pairs than images."""
    place = {"model": "wanx", "scale": "tiny", "suite": "as planned", "threads": 1, "reference": "one", "pairs": PROMPTS + 1}
    samplers = {"one": SamplerSettings(num_inference_steps=1).record()}
    step = Step("latency", "interleaved", place | {"samplers": samplers}, {"data": data})
    execute(step, Store(root))
    times = pd.read_parquet(root / step.key / "results.parquet")
    assert (times[times["metric"] == "end_to_end_s"]["value"] > 0).sum() == PROMPTS + 1
    told = evaluated(step, Store(root), PROMPTS + 1)
    assert told.captions == [*told.captions[:PROMPTS], told.captions[0]]
    assert torch.equal(told.first_frames[-1], told.first_frames[0])


def test_from_clips_and_images_to_the_report(flgbench: Flgbench, tmp_path: Path) -> None:
    """The whole path with the shipped teacher: mp4s are encoded, DMD2 trains on them, its clips start from four images."""
    factors = shapes.draw_factors("train", np.arange(CLIPS))
    (tmp_path / "clips").mkdir()
    for i, video in enumerate(shapes.render(factors).numpy()):
        write_mp4(tmp_path / "clips" / f"{i}.mp4", video, 8)
    with (tmp_path / "captions.csv").open("w", newline="") as file:
        rows = [(f"{i}.mp4", caption) for i, caption in enumerate(captions_of(factors))]
        csv.writer(file).writerows([("file_name", "caption"), *rows])
    code, _, told = flgbench("encode", "clips", "--captions", "captions.csv", "-o", "encoded", "--shard-clips", "4")
    assert code == 0, told
    prompts = captions_of(shapes.draw_factors("held_out", np.arange(PROMPTS)))
    write_suite(tmp_path / "suite", prompts)
    line = ["run", "--methods", "dmd2", "--baselines", "euler-4,real,frozen_image", "--data", "encoded", "--suite", "suite"]
    line += ["--budget", "60", "--pairs", "3", "--executor", "inline", "--out", "out"]
    code, printed, told = flgbench(*line)
    assert code == 0, printed + told
    (folder,) = (tmp_path / "out" / "runs").iterdir()
    table = pd.read_parquet(folder / "results.parquet")

    measured = {"first_frame_psnr", "first_frame_ssim", "sharpness_kept", "luminance_flicker", "flow_speed"}
    for cell in ("euler-4", "dmd2", "frozen_image"):
        own = table[table["cell"] == cell].set_index("metric")
        assert set(own.index) >= set(ALL_METRICS), "every measure has a row"
        for name in measured | {"interpolation_error"}:
            assert (own.loc[[name], "status"] == "ok").all() and len(own.loc[[name]]) == PROMPTS
        rest = own[own.index.isin(set(ALL_METRICS) - measured - {"interpolation_error", "teacher_psnr"})]
        rest = rest[rest["status"] != "ok"]  # LPIPS and CLIP run where their weights are
        assert rest["value"].isna().all() and rest["reason"].str.startswith("not run: ").all()
        assert own.loc["joint", "reason"] == "not run: the suite has no ground truth"
    real = table[table["cell"] == "real"]
    assert real["value"].isna().all() and set(real["reason"]) == {f"skipped: {NO_TRUTH}"}
    frozen = table[(table["cell"] == "frozen_image") & (table["metric"] == "flow_speed")]
    assert (frozen["value"] < 0.01).all()
    dmd2 = table[(table["cell"] == "dmd2") & (table["metric"] == "first_frame_psnr")]["value"]
    assert dmd2.between(20, 58).all(), "its clips start from the suite's images"

    run = load_run(folder)
    assert {c.cell: c.status for c in run.cells} == {
        "euler-4": "done", "real": "skipped", "frozen_image": "done", "dmd2": "done"
    }  # fmt: skip
    assert run.cell("dmd2").card["conditions"] == PROMPTS and run.gallery is not None
    assert [c["caption"] for c in run.gallery.conditions] == prompts and "real" not in run.gallery.videos
    page = (folder / "report" / "index.html").read_text()
    assert "could not be made" not in page and "What failed" not in page
    main = (folder / "report" / "tables" / "main.md").read_text()
    assert main.startswith("### Images and prompts") and "skipped: the suite has no true videos" in main

    timed_on_the_suite(tmp_path / "out" / "store", next(s["key"] for s in plan_of(folder) if s["name"] == "suite"))
    code, printed, _ = flgbench(*line)
    assert code == 0 and "verdict" in printed
    code, printed, told = flgbench("vbench", "export", "dmd2", "exported", "--out", "out")
    assert code == 0, told
    exported = json.loads((tmp_path / "exported" / "manifest.json").read_text())
    assert [entry["caption"] for entry in exported["videos"]] == prompts
    given = Image.open(tmp_path / "exported" / exported["videos"][0]["image"])
    assert np.array_equal(given, suite.images_of(suite.read_suite(tmp_path / "suite", (64, 64))[:1], (64, 64))[0])
    with pytest.raises(UsageError, match="no cell 'real'"):
        students.find_student("latest/real", tmp_path / "out")
    # The trained student knows no place: the set may go, what was trained on it stays.
    shutil.move(tmp_path / "encoded", tmp_path / "moved")
    moved = [argument if argument != "encoded" else "moved" for argument in line]
    code, printed, _ = flgbench("plan", *(a for a in moved[1:] if a not in ("--executor", "inline")))
    assert code == 0 and ", 0 to run" in printed
    (shard, *_) = sorted((tmp_path / "moved").glob("shard-*"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x7f")
    assert encoded.damage(tmp_path / "moved") == f"{shard.name} has changed since it was written"
