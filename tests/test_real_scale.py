"""The whole path of a real scale, on checkpoints of a few thousand weights: clips to shards, trainings, report, student."""

from __future__ import annotations

import csv
import json
import shutil
from collections import namedtuple
from pathlib import Path

import hunyuan_folders
import numpy as np
import pandas as pd
import pytest
from conftest import Flgbench, assert_refused
from diffusers import HunyuanVideoTransformer3DModel
from PIL import Image
from safetensors import safe_open
from test_suite import write_suite
from wan_folders import SCALE, WAN_21, WAN_22, build_folder

from flgbench.data import shapes
from flgbench.data.captions import captions_of
from flgbench.video import write_mp4

CLIPS = 6
# Two steps in place of fifty: what is asked is whether the path is whole, not how long it is.
FEW = ["--set", "fastlightgen.importance.clips=2", "--set", "fastlightgen.importance.times=2"]


def write_clips(folder: Path) -> Path:
    """Procedural clips as mp4s; the captions beside them."""
    factors = shapes.draw_factors("train", np.arange(CLIPS))
    folder.mkdir()
    for i, video in enumerate(shapes.render(factors).numpy()):
        write_mp4(folder / f"{i}.mp4", video, 8)
    captions = folder.parent / "captions.csv"
    with captions.open("w", newline="") as file:
        rows = [(f"{i}.mp4", caption) for i, caption in enumerate(captions_of(factors))]
        csv.writer(file).writerows([("file_name", "caption"), *rows])
    return captions


def train_students(teacher: list[str], flgbench: Flgbench, tmp_path: Path, baseline: str = "euler-4") -> Path:
    """Encode clips, train two students, evaluate them on a suite; the run's folder. Only beside `euler` are they timed."""
    captions = write_clips(tmp_path / "clips")
    code, printed, told = flgbench("encode", "clips", "--captions", str(captions), *teacher, "-o", "encoded")
    assert code == 0, printed + told
    write_suite(tmp_path / "suite", captions_of(shapes.draw_factors("held_out", np.arange(2))))

    line = ["run", "--methods", "dmd2,fastlightgen", "--baselines", baseline, *teacher, "--data", "encoded"]
    line += ["--suite", "suite", "--budget", "60", "--pairs", "3", *FEW, "--executor", "inline", "--out", "out"]
    code, printed, told = flgbench(*line)
    assert code == 0, printed + told
    (run,) = (tmp_path / "out" / "runs").iterdir()
    cells = {cell["cell"]: cell for cell in json.loads((run / "cells.json").read_text())}
    assert {name: cell["status"] for name, cell in cells.items()} == dict.fromkeys(
        (baseline, "dmd2", "fastlightgen"), "done"
    )
    assert all(cell["card"]["dtype"] == "bfloat16" for cell in cells.values()), "as real scales run"
    table = pd.read_parquet(run / "results.parquet")
    assert (table[table["metric"] == "first_frame_psnr"]["status"] == "ok").sum() == 2 * len(cells)
    assert (run / "report" / "index.html").exists()
    weights = next((tmp_path / "out" / "store").glob("train-match-*/transformer/*.safetensors"))
    with safe_open(weights, "pt") as file:
        assert {file.get_tensor(name).isfinite().all().item() for name in file.keys()} == {True}  # noqa: SIM118
    return run


@pytest.mark.parametrize("layout", [WAN_21, WAN_22])
def test_from_clips_to_an_exported_student(layout: str, flgbench: Flgbench, tmp_path: Path) -> None:
    teacher = ["--scale", SCALE[layout], "--checkpoint", str(build_folder(tmp_path / "teacher", layout))]
    run = train_students(teacher, flgbench, tmp_path, "euler" if layout == WAN_21 else "euler-4")
    code, printed, told = flgbench("export", f"out/runs/{run.name}/fastlightgen", "student")
    assert code == 0, printed + told
    kept = json.loads((tmp_path / "student" / "transformer" / "config.json").read_text())["num_layers"]
    assert kept == len(json.loads((tmp_path / "student" / "flgbench.json").read_text())["kept_blocks"]) == 3


def test_from_clips_to_a_clip_of_a_student_with_two_kinds_of_block(flgbench: Flgbench, tmp_path: Path) -> None:
    folder = hunyuan_folders.build_folder(tmp_path / "teacher")
    teacher = ["--model", "hunyuan", "--scale", hunyuan_folders.SCALE, "--checkpoint", str(folder)]
    run = train_students(teacher, flgbench, tmp_path)
    Image.new("RGB", (80, 64), "red").save(tmp_path / "first.png")
    line = ["sample", "--student", f"out/runs/{run.name}/fastlightgen", "--image", "first.png", "-o", "made.mp4"]
    code, printed, told = flgbench(*line, "--prompt", "a small red star moves down")
    assert code == 0, printed + told
    assert (tmp_path / "made.mp4").stat().st_size > 0
    student = next((tmp_path / "out" / "store").glob("train-match-*/transformer/kept_blocks.json")).parent
    loaded = HunyuanVideoTransformer3DModel.from_pretrained(student)
    left = len(loaded.transformer_blocks) + len(loaded.single_transformer_blocks)
    assert left == len(json.loads((student / "kept_blocks.json").read_text()))


def test_no_room_on_the_disk(flgbench: Flgbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = ["--scale", SCALE[WAN_21], "--checkpoint", str(build_folder(tmp_path / "teacher", WAN_21))]
    disk = namedtuple("disk", "total used free")(10**9, 10**9 - 1000, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: disk)
    refused = flgbench("run", "--methods", "dmd2", "--baselines", "euler", *teacher, "--executor", "inline", "--out", "out")
    assert_refused(refused, "--out out: 0.0 MB are free", "this run takes up to", "choose another disk")
    assert not (tmp_path / "out" / "runs").exists()


def test_a_sweep_of_a_real_scale_is_planned(flgbench: Flgbench, tmp_path: Path) -> None:
    """Table 7's sweep, before anything is downloaded and from a checkpoint's folder."""
    sweep = ["ablate", "keep", "--dry-run", "--recipe", "fastlightgen-paper"]
    code, printed, told = flgbench(*sweep, "--scale", "14b")
    assert code == 0, told
    assert printed.count(" match ") >= 3 and "GPU-h" in printed
