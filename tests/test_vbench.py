"""The bridge to VBench: its arithmetic, its file format, and a scorer process that stands in for it."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from flgbench.cli import app
from flgbench.data import shapes
from flgbench.errors import UsageError
from flgbench.vbench.export import export
from flgbench.vbench.results import image_of, read_scores, tabulate
from flgbench.vbench.score import ScoringFailed, score
from flgbench.vbench.scoring import DIMENSIONS, intervals, totals

FROZEN = {
    "i2v_subject": 1.0,
    "i2v_background": 1.0,
    "camera_motion": 1 / 7,
    "subject_consistency": 1.0,
    "background_consistency": 1.0,
    "motion_smoothness": 1.0,
    "dynamic_degree": 0.0,
    "aesthetic_quality": 0.60,
    "imaging_quality": 0.70,
}


def test_a_frozen_image_scores_87_of_100() -> None:
    found = totals(FROZEN)
    assert 100 * found["quality"] == pytest.approx(78.3, abs=0.05)
    assert 100 * found["i2v"] == pytest.approx(95.9, abs=0.05)
    assert 100 * found["total"] == pytest.approx(87.1, abs=0.05)


def test_no_total_without_all_nine_dimensions() -> None:
    for name in DIMENSIONS:
        with pytest.raises(UsageError, match=f"{name} missing"):
            totals({k: v for k, v in FROZEN.items() if k != name})


def result_file(folder: Path, raw: dict[str, float], images: int = 20, per_image: int = 5, spread: float = 0.0) -> Path:
    """A file in the documented format, with VBench's habits: imaging quality per video from 0 to 100, booleans."""
    rng = np.random.default_rng(0)
    shift = rng.normal(0, spread, images)
    content = {}
    for name, value in raw.items():
        videos = []
        for image in range(images):
            for sample in range(per_image):
                each: object = (value + shift[image]) * DIMENSIONS[name].per_video
                if name == "dynamic_degree":
                    each = bool(value)
                videos.append({"video_path": f"/data/videos/a dog, no. {image}-{sample}.mp4", "video_results": each})
        mean = float(np.mean([v["video_results"] for v in videos])) / DIMENSIONS[name].per_video
        content[name] = [mean, videos]
    path = folder / "results_2026-01-01-00:00:00_eval_results.json"
    path.write_text(json.dumps(content))
    return path


def test_import_reads_the_documented_format(tmp_path: Path) -> None:
    scores, remarks = read_scores([result_file(tmp_path, FROZEN)])
    assert remarks == []
    table = tabulate(scores).set_index("dimension")
    assert table.loc["total", "score"] == pytest.approx(totals(FROZEN)["total"])
    assert table.loc["imaging_quality", "score"] == pytest.approx(0.7)
    assert table.loc["motion_smoothness", "normalised"] == pytest.approx((1 - 0.7060) / (0.9975 - 0.7060))
    assert table.loc["i2v_subject", "images"] == 20 and table.loc["i2v_subject", "videos"] == 100
    partial, _ = read_scores([result_file(tmp_path, {"i2v_subject": 0.9})])
    assert list(tabulate(partial)["dimension"]) == ["i2v_subject"]  # and no total


def test_intervals_resample_images_not_videos(tmp_path: Path) -> None:
    """Five equal videos an image: the interval of the mean is that of twenty numbers, not of a hundred."""
    scores, _ = read_scores([result_file(tmp_path, {"aesthetic_quality": 0.6}, spread=0.05)])
    found = intervals(scores)["aesthetic_quality"]
    means = np.array([np.mean(v) for v in scores["aesthetic_quality"].values()])
    assert found.high - found.low == pytest.approx(2 * 1.96 * means.std() / np.sqrt(20), rel=0.1)
    assert found.n == 20 and found.value in found


def test_a_score_that_is_not_the_mean_is_said(tmp_path: Path) -> None:
    path = result_file(tmp_path, {"i2v_subject": 0.9})
    content = json.loads(path.read_text())
    content["i2v_subject"][0] = 0.5
    path.write_text(json.dumps(content))
    scores, remarks = read_scores([path])
    assert "0.5000 is not the mean of its videos, 0.9000" in remarks[0]
    assert tabulate(scores)["score"].tolist() == pytest.approx([0.9])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not a readable JSON file"),
        ("[]", r"expected \{dimension: \[score, videos\]\}"),
        ('{"sharpness": [1, []]}', "'sharpness' is no dimension"),
        ('{"i2v_subject": [0.9, []]}', r"expected \[score, list of videos\]"),
        ('{"i2v_subject": [0.9, [{"video_results": 1}]]}', "no 'video_path'"),
        ('{"i2v_subject": [0.9, [{"video_path": "a-0.mp4", "video_results": NaN}]]}', "expected a number, got nan"),
        ('{"i2v_subject": [0.9, [{"video_path": "a-0.mp4"}]]}', "expected a number, got None"),
    ],
)
def test_what_is_not_a_result_file(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "x_eval_results.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=said):
        read_scores([path])
    result = CliRunner().invoke(app, ["vbench", "import", str(path)])
    assert isinstance(result.exception, UsageError)


def test_a_dimension_in_two_files(tmp_path: Path) -> None:
    path = result_file(tmp_path, {"i2v_subject": 0.9})
    with pytest.raises(UsageError, match="in an earlier file already"):
        read_scores([path, path])


def test_image_of() -> None:
    assert image_of("/v/condition0003-7.mp4") == "condition0003"
    assert image_of(r"C:\v\a dog - running-0.mp4") == "a dog - running"
    assert image_of("alone.mp4") == "alone"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with the clips of one cell, as a run leaves them."""
    key = "sample-real-v2-0123456789ab"
    folder, artifact = tmp_path / "runs" / "r", tmp_path / "store" / key
    folder.mkdir(parents=True)
    artifact.mkdir(parents=True)
    identities = [(0, 0), (1, 0), (1, 1)]
    video = shapes.render(shapes.draw_factors("test", [c for c, _ in identities]))
    save_file({"video": torch.as_tensor(video)}, artifact / "videos.safetensors")
    (artifact / "identities.json").write_text(json.dumps(identities))
    (artifact / "done.json").write_text(json.dumps({"facts": {}, "files": {}}))
    unfinished = {"key": "sample-lcm-v2-0123456789ab", "kind": "sample", "cells": ["lcm"]}
    (folder / "steps.json").write_text(json.dumps([{"key": key, "kind": "sample", "cells": ["real"]}, unfinished]))
    (folder / "run.json").write_text(json.dumps({"settings": {"model": "wanx", "scale": "tiny"}}))
    (folder / "plan.json").write_text("{}")
    return folder


def test_export_has_the_layout_and_the_hashes(run: Path, tmp_path: Path) -> None:
    import av

    out = tmp_path / "clips"
    assert CliRunner().invoke(app, ["vbench", "export", "real", str(out), "--out", str(tmp_path)]).exit_code == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert [v["video"] for v in manifest["videos"]] == [
        f"videos/condition000{c}-{s}.mp4" for c, s in ((0, 0), (1, 0), (1, 1))
    ]
    for entry in manifest["videos"]:
        for kind in ("video", "image"):
            assert hashlib.sha256((out / entry[kind]).read_bytes()).hexdigest() == entry[f"{kind}_sha256"]
    truth = shapes.render(shapes.draw_factors("test", [0, 1]))
    assert (np.asarray(Image.open(out / "images" / "condition0001.png")) == truth[1, 0].numpy()).all()
    with av.open(str(out / "videos" / "condition0000-0.mp4")) as container:
        assert container.streams.video[0].average_rate == manifest["fps"] == 8
        frames = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    assert frames.shape == (17, 64, 64, 3)
    assert np.abs(frames.astype(int) - truth[0].numpy()).mean() < 4


def test_export_refuses(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Cells: lcm, real"):
        export(run, "dmd2", tmp_path / "clips", 8)
    with pytest.raises(UsageError, match="no clips yet"):
        export(run, "lcm", tmp_path / "clips", 8)
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match="there exists"):
        export(run, "real", tmp_path / "there", 8)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be made"):
        export(run, "real", tmp_path / "file" / "clips", 8)
    assert not (tmp_path / "clips").exists()


# Takes the place of evaluate_i2v.py: the same arguments, the documented result file.
SCORER = """
import argparse, json, pathlib, sys, time
p = argparse.ArgumentParser()
for name in ("--mode", "--videos_path", "--custom_image_folder", "--output_path"):
    p.add_argument(name, required=True)
p.add_argument("--dimension", nargs="+", required=True)
a = p.parse_args()
assert a.mode == "custom_input"
videos = sorted(pathlib.Path(a.videos_path).glob("*.mp4"))
images = {i.stem for i in pathlib.Path(a.custom_image_folder).glob("*.png")}
assert all(v.stem.rsplit("-", 1)[0] in images for v in videos)
what = pathlib.Path(__file__).with_name("behaviour").read_text()
if what == "hang":
    pathlib.Path(__file__).with_name("pid").write_text(str(__import__("os").getpid()))
    time.sleep(600)
if what == "fail":
    sys.exit("CUDA is not available")
if what == "score":
    found = {d: [0.5, [{"video_path": str(v), "video_results": 0.5} for v in videos]] for d in a.dimension}
    (pathlib.Path(a.output_path) / "results_now_eval_results.json").write_text(json.dumps(found))
"""


@pytest.fixture
def clips(run: Path, tmp_path: Path) -> Path:
    export(run, "real", tmp_path / "clips", 8)
    (tmp_path / "evaluate_i2v.py").write_text(SCORER)
    return tmp_path / "clips"


def call(clips: Path, behaviour: str, minutes: float = 1.0) -> list[Path]:
    (clips.parent / "behaviour").write_text(behaviour)
    return score(clips, Path(sys.executable), clips.parent / "evaluate_i2v.py", ["i2v_subject"], minutes)


def test_score_and_import(clips: Path) -> None:
    scores, _ = read_scores(call(clips, "score"))
    assert scores == {"i2v_subject": {"condition0000": [0.5], "condition0001": [0.5, 0.5]}}


def test_a_scorer_that_fails_hangs_or_writes_nothing(clips: Path) -> None:
    with pytest.raises(ScoringFailed, match=r"ended with code 1: CUDA is not available; its output: .*vbench\.log"):
        call(clips, "fail")
    with pytest.raises(ScoringFailed, match="left no"):
        call(clips, "nothing")
    with pytest.raises(ScoringFailed, match=r"not done after 0\.1 minutes"):
        call(clips, "hang", minutes=0.1)
    pid = int((clips.parent / "pid").read_text())
    for _ in range(50):
        if not Path(f"/proc/{pid}").exists():
            break
        time.sleep(0.1)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_score_refuses_before_it_starts(clips: Path, tmp_path: Path) -> None:
    script = clips.parent / "evaluate_i2v.py"
    with pytest.raises(UsageError, match="not a program"):
        score(clips, tmp_path / "no-python", script, ["i2v_subject"], 1)
    with pytest.raises(UsageError, match="name the script"):
        score(clips, Path(sys.executable), tmp_path / "none.py", ["i2v_subject"], 1)
    with pytest.raises(UsageError, match="vbench export"):
        score(tmp_path, Path(sys.executable), script, ["i2v_subject"], 1)
    told = ["vbench", "score", str(clips), "--python", sys.executable, "--script", str(script), "--dimensions", "fvd"]
    assert "'fvd' is none of" in str(CliRunner().invoke(app, told).exception)
