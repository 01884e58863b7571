"""A trained student: sampled, exported, and run by the stock pipeline; every wrong input is one line.

The run is the README's example, really made: a dmd2 student of few updates and 4 guided Euler steps of the teacher.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import Flgbench, assert_refused
from diffusers import WanImageToVideoPipeline
from PIL import Image

import flgbench as package
from flgbench.data import shapes
from flgbench.data.captions import captions_of
from flgbench.errors import UsageError
from flgbench.export import check_exportable
from flgbench.inputs import clean_prompt, fit, read_image
from flgbench.models.stock import scheduler_for
from flgbench.sampling import SamplerSettings
from flgbench.store import Store
from flgbench.students import Student, find_student, load, load_student
from flgbench.sweeps import Variant
from reports.model_card import _flat, model_card
from reports.tables import md

PROMPT = "a large red circle moves slowly to the right over a plain background"
README = Path(__file__).parent.parent / "README.md"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the README's Python example leaves behind, and the folder it ran in."""
    folder = tmp_path_factory.mktemp("students")
    first = shapes.render(shapes.draw_factors("validation", np.arange(1)))[0, 0].numpy()
    Image.fromarray(first).resize((96, 64)).save(folder / "first.png")
    source = next(b for b in code_blocks(README.read_text()) if "flgbench.run(" in b)
    names: dict[str, Any] = {}
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(source, names)
    torch.set_num_threads(threads)
    return names | {"folder": folder, "out": folder / "small"}


def code_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_example_of_the_readme(made: dict[str, Any]) -> None:
    run = made["run"]
    assert not run.failed and run.report.exists()
    assert set(run.main["cell"]) == {"dmd2", "euler-4", "real"}
    assert run.table[run.table["metric"] == "joint"].groupby("cell")["value"].count().to_dict() == {
        "dmd2": 2, "euler-4": 2, "real": 2
    }  # fmt: skip
    assert made["video"].shape == (17, 64, 64, 3) and made["video"].dtype == np.uint8
    assert package.results("latest", made["out"]).folder == made["out"] / "runs" / run.folder.name
    again = package.load_student(f"{run.folder.name}/dmd2", out=made["out"]).sample(made["folder"] / "first.png", PROMPT)
    assert np.array_equal(again, made["video"])
    assert run.student("dmd2").record == package.load_student(f"{run.folder}/dmd2").record


@pytest.mark.parametrize("kind", ["euler", "renoise", "unipc"])
@pytest.mark.parametrize("steps", [1, 2, 4, 8, 50])
@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 12.0])
def test_stock_schedulers_have_our_times(kind: str, steps: int, shift: float) -> None:
    settings = SamplerSettings.model_validate({"kind": kind, "num_inference_steps": steps, "shift": shift})
    scheduler = scheduler_for(settings)
    scheduler.set_timesteps(steps)
    torch.testing.assert_close(scheduler.sigmas, settings.schedule(), atol=2e-6, rtol=0)
    rounding = 1.01 if kind == "unipc" else 1e-3  # the stock UniPC cuts its times to whole thousandths
    torch.testing.assert_close(scheduler.timesteps.float(), 1000 * settings.schedule()[:-1], atol=rounding, rtol=0)


def test_times_that_no_stock_scheduler_has() -> None:
    with pytest.raises(UsageError, match="no stock scheduler has the times of 4 steps with shift 1000"):
        scheduler_for(SamplerSettings(num_inference_steps=4, shift=1000.0))


@pytest.mark.parametrize("cell", ["dmd2", "euler-4"])
def test_exported_folder_makes_the_same_clip(
    cell: str, made: dict[str, Any], flgbench: Flgbench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The card's own code, run in the exported folder, against `flgbench sample`: a renoising and a guided sampler."""
    target = tmp_path / "exported"
    code, printed, err = flgbench("export", f"latest/{cell}", str(target), "--out", str(made["out"]))
    assert code == 0 and str(target) in printed, err
    Image.open(made["folder"] / "first.png").save(target / "first.png")
    source = code_blocks((target / "README.md").read_text())[0]
    monkeypatch.chdir(target)
    names: dict[str, Any] = {}
    exec(source, names)
    assert (target / "out.mp4").stat().st_size > 1000

    student = load_student(f"latest/{cell}", made["out"])
    ours = student.sample("first.png", PROMPT, seed=0)
    # Ours are rounded to 8 bits: nothing beyond that rounding may differ.
    beyond = np.abs(names["video"] * 255 - ours).max() / 255 - 0.5 / 255
    assert beyond < 1e-4

    torch.manual_seed(0)
    stock = names["pipe"](
        names["image"], PROMPT, negative_prompt="", height=64, width=64, num_frames=17, output_type="latent",
        num_inference_steps=student.sampler.num_inference_steps, guidance_scale=student.sampler.guidance_scale,
        max_sequence_length=20,
    ).frames  # fmt: skip
    torch.testing.assert_close(student.latents("first.png", PROMPT, 0), stock, atol=1e-4, rtol=1e-4)


def test_exported_folder_tells_nothing_of_this_machine(made: dict[str, Any], flgbench: Flgbench, tmp_path: Path) -> None:
    flgbench("export", "latest/dmd2", str(tmp_path / "exported"), "--out", str(made["out"]))
    texts = [p for p in (tmp_path / "exported").rglob("*") if p.suffix in (".json", ".md")]
    for path in texts:
        assert str(tmp_path.parent.parent) not in path.read_text(), path
    assert isinstance(WanImageToVideoPipeline.load_config(tmp_path / "exported"), dict)
    facts = json.loads((tmp_path / "exported" / "flgbench.json").read_text())
    assert facts["kept_blocks"] == list(range(10)) and facts["sampler"]["kind"] == "renoise"


def test_card_tells_what_was_measured(made: dict[str, Any], tmp_path: Path) -> None:
    """The run with euler-4 as the reference, known latencies and a label that tries to be more than text."""
    student = measured_copy(made, tmp_path)
    text = model_card(student, student.model)  # type: ignore[arg-type]
    front = yaml.safe_load(text.split("---")[1])
    assert front["license"] == "apache-2.0" and front["pipeline_tag"] == "image-to-video"
    assert front["base_model"] == "wanx-tiny" and front["library_name"] == "diffusers"
    assert "| speed-up, denoise | 8.00× \\[8.00, 8.00\\] | 1 |" in text
    assert "| Denoise (s) ↓ | 0.125" in text
    assert "| kept blocks | 10 of 10: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 |" in text
    assert "| steps | 4, estimates of the clean clip" in text and "| shift | 3 |" in text and "| guidance | none |" in text
    assert "| lr | 0.0001 | INFERRED" in text
    assert "2405.14867" in text and "Apache License 2.0" in text
    assert "<script>" not in text and "\\[click\\](javascript:x) \\| &lt;script&gt; second line" in text
    joint = re.search(r"\| Joint \(%\) ↑ \| (\d+\.\d) \\\[", text)
    assert joint


def measured_copy(made: dict[str, Any], tmp_path: Path) -> Student:
    import shutil

    student = load_student("latest/dmd2", made["out"])
    folder = tmp_path / "runs" / "copied"
    shutil.copytree(student.record.run, folder)
    cells = json.loads((folder / "cells.json").read_text())
    for cell in cells:
        if cell["cell"] == "euler-4":
            cell["kind"] = "reference"
        if cell["cell"] == "dmd2":
            cell["label"] = "[click](javascript:x) | <script>\nsecond line"
    (folder / "cells.json").write_text(json.dumps(cells))
    table = pd.read_parquet(folder / "results.parquet")
    table = table[~table["metric"].isin(["text_s", "denoise_s", "decode_s", "end_to_end_s"])]
    pattern = table[table["status"] == "ok"].iloc[0]
    rows = [
        pattern.to_dict() | {"cell": cell, "metric": metric, "condition": c, "sample": 0, "value": value, "unit": "s"}
        for cell, value in (("dmd2", 0.125), ("euler-4", 1.0))
        for metric in ("text_s", "denoise_s", "decode_s", "end_to_end_s")
        for c in range(8)
    ]
    pd.concat([table, pd.DataFrame(rows)]).to_parquet(folder / "results.parquet")
    return replace(student, record=replace(student.record, run=folder))


def test_escaped_text_is_text_only() -> None:
    assert md("a|b\n<i> & `c` [d](e) $x$ *y*") == r"a\|b &lt;i&gt; &amp; \`c\` \[d\](e) \$x\$ \*y\*"
    assert dict(_flat({"a": 1, "b": {"c": {"d": None}}})) == {"a": 1, "b.c.d": None}


def test_sample_writes_a_clip(made: dict[str, Any], flgbench: Flgbench, tmp_path: Path) -> None:
    image = made["folder"] / "first.png"
    arguments = ["--student", "dmd2", "--out", str(made["out"]), "--image", str(image)]
    code, printed, err = flgbench("sample", *arguments, "--prompt", PROMPT + " and a zebra", "-o", "new/clip.mp4", "--json")
    assert code == 0, err
    assert json.loads(printed)["files"] == ["new/clip.mp4"]
    assert "the model does not know: zebra" in err
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["clip.mp4"]
    assert decoded(tmp_path / "new" / "clip.mp4").shape == (17, 64, 64, 3)


def test_sample_of_a_folder(made: dict[str, Any], flgbench: Flgbench, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.jpg"):
        Image.open(made["folder"] / "first.png").save(tmp_path / "images" / name)
    caption = captions_of(shapes.draw_factors("validation", np.arange(1)))[0]
    # The byte order mark and a further column are what spreadsheets add.
    (tmp_path / "p.csv").write_text(f'\ufeffprompt,image,note\n"{caption}",a.png,x\n"{PROMPT}",b.jpg,\n"{PROMPT}",a.png,\n')
    arguments = ["--student", "latest/dmd2", "--out", str(made["out"]), "--image", "images", "--prompts", "p.csv", "-o", "c"]
    code, printed, err = flgbench("sample", *arguments)
    assert code == 0 and "3 clips" in printed, err
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["0001-a.mp4", "0002-b.mp4", "0003-a.mp4"]
    alone = load_student("dmd2", made["out"]).sample(tmp_path / "images" / "a.png", PROMPT)
    difference = np.abs(decoded(tmp_path / "c" / "0003-a.mp4").astype(int) - alone)
    assert difference.mean() < 4, "a clip does not depend on the others; H.264 costs a few grey levels"


def decoded(path: Path) -> np.ndarray:
    import av

    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_images_are_covered_and_cropped(tmp_path: Path) -> None:
    wide = np.zeros((64, 192, 3), np.uint8)
    wide[:, 64:128] = 200
    assert (fit(Image.fromarray(wide), (64, 64))[:, 4:-4] == 200).all()
    image = Image.fromarray(np.full((8, 16, 3), 9, np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6  # taken with the camera turned
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (8, 16)
    Image.new("LA", (4, 4)).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png").mode == "RGB"


def test_prompts_are_read_as_the_stock_pipeline_does() -> None:
    from diffusers.pipelines.wan.pipeline_wan_i2v import prompt_clean

    for prompt in ("  a\n red\tcircle ", "a &amp;amp; b", "caf\u00c3\u00a9"):
        assert clean_prompt(prompt) == prompt_clean(prompt)


Wrong = Callable[[Path], list[str]]


def with_csv(text: str) -> Wrong:
    def arguments(folder: Path) -> list[str]:
        (folder / "images").mkdir()
        Image.new("RGB", (8, 8)).save(folder / "images" / "a.png")
        (folder / "p.csv").write_text(text)
        return ["--image", "images", "--prompts", "p.csv", "-o", "clips"]

    return arguments


WRONG: dict[str, tuple[list[str] | Wrong, list[str]]] = {
    "no such image": (["--image", "none.png", "--prompt", "x", "-o", "a.mp4"], ["--image none.png", "no such file"]),
    "not an image": (["--image", "text.png", "--prompt", "x", "-o", "a.mp4"], ["text.png", "not an image"]),
    "cut image": (["--image", "cut.png", "--prompt", "x", "-o", "a.mp4"], ["cut.png", "cannot be read"]),
    "empty prompt": (["--image", "a.png", "--prompt", " \n", "-o", "a.mp4"], ["the prompt is empty"]),
    "no prompt": (["--image", "a.png", "-o", "a.mp4"], ["give --prompt"]),
    "no output": (["--image", "a.png", "--prompt", "x"], ["--output"]),
    "not mp4": (["--image", "a.png", "--prompt", "x", "-o", "a.gif"], ["-o a.gif", ".mp4"]),
    "output is a folder": (["--image", "a.png", "--prompt", "x", "-o", "folder.mp4"], ["folder.mp4", "is a folder"]),
    "unwritable": (["--image", "a.png", "--prompt", "x", "-o", "text.png/a.mp4"], ["-o text.png/a.mp4", "cannot write"]),
    "negative seed": (["--image", "a.png", "--prompt", "x", "-o", "a.mp4", "--seed", "-1"], ["--seed"]),
    "csv for one": (["--image", "a.png", "--prompts", "p.csv", "-o", "a.mp4"], ["is one image", "--prompt TEXT"]),
    "folder without csv": (["--image", "folder.mp4", "--prompt", "x", "-o", "clips"], ["is a folder", "--prompts"]),
    "no such csv": (["--image", "folder.mp4", "--prompts", "no.csv", "-o", "clips"], ["--prompts no.csv", "no such file"]),
    "csv is binary": (["--image", "folder.mp4", "--prompts", "a.png", "-o", "clips"], ["a.png", "cannot be read as text"]),
    "csv to mp4": (["--image", "folder.mp4", "--prompts", "no.csv", "-o", "a.mp4"], ["folder, not one .mp4"]),
    "columns": (with_csv("file,prompt\na.png,x\n"), ["no column 'image'", "image and prompt"]),
    "empty csv": (with_csv(""), ["no column 'image'"]),
    "no rows": (with_csv("image,prompt\n"), ["no rows"]),
    "image of csv": (with_csv("image,prompt\na.png,x\nb.png,y\n"), ["line 3", "images/b.png", "no such file"]),
    "prompt of csv": (with_csv("image,prompt\na.png,\n"), ["line 2", "the prompt is empty"]),
    "image left out": (with_csv("image,prompt\n,x\n"), ["line 2", "cannot be read"]),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_of_sample(case: str, made: dict[str, Any], flgbench: Flgbench, tmp_path: Path) -> None:
    arguments, words = WRONG[case]
    Image.effect_noise((64, 64), 50).save(tmp_path / "a.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:900])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "folder.mp4").mkdir()
    given = arguments(tmp_path) if callable(arguments) else arguments
    assert_refused(flgbench("sample", "--student", "latest/dmd2", "--out", str(made["out"]), *given), *words)
    assert not list(tmp_path.rglob("*.partial*"))


STUDENTS = {
    "no run": ("nothing/dmd2", ["no run 'nothing'", "Runs there: wanx-tiny-"]),
    "no cell": ("latest/dmd", ["no cell 'dmd'", "did you mean 'dmd2'", "Cells:"]),
    "no network": ("latest/real", ["cell 'real' has no network"]),
    "the whole run": ("RUN", ["is a whole run", "/CELL", "dmd2"]),
}


@pytest.mark.parametrize("case", STUDENTS)
def test_wrong_students(case: str, made: dict[str, Any], flgbench: Flgbench, tmp_path: Path) -> None:
    name, words = STUDENTS[case]
    name = str(made["out"] / "runs" / made["run"].folder.name) if name == "RUN" else name
    assert_refused(flgbench("export", name, "new", "--out", str(made["out"])), *words)
    assert not (tmp_path / "new").exists()


def test_students_that_are_not_there(flgbench: Flgbench, tmp_path: Path) -> None:
    """By their files: one still to be trained, one whose first stage failed."""
    steps = [
        {"key": "t", "kind": "teacher", "name": "wanx", "inputs": {}},
        {"key": "m", "kind": "train", "name": "match", "inputs": {"teacher": "t"}},
        {"key": "n", "kind": "train", "name": "next", "inputs": {"start": "m"}},
        {"key": "s", "kind": "sample", "name": "dmd2", "inputs": {"teacher": "t", "student": "n"}},
    ]
    folder = tmp_path / "out" / "runs" / "some-run"
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text(json.dumps({"settings": {}, "steps": steps, "cells": {"dmd2": "s"}}))
    call = ["export", "some-run/dmd2", "new", "--out", "out"]
    assert_refused(flgbench(*call), "cell 'dmd2' of run some-run is not trained yet", "flgbench status")
    store = Store(tmp_path / "out" / "store")
    store.start("m")
    store.event("m", "failed", reason="NaN: loss is not a number")
    assert_refused(flgbench(*call), "failed in train match", "NaN: loss is not a number")
    assert_refused(flgbench("export", "latest/dmd2", "new", "--out", "none"), "no runs in none")


def test_a_point_of_a_sweep_is_a_student_too(tmp_path: Path) -> None:
    """Its steps bear the method's name, and so do those of every other point."""
    method = "control_delete_middle"
    half = Variant(sweep="keep", method=method, point={"keep": 0.5}, settings={"keep": 0.5})
    small = {"conditions": 2, "repeated_conditions": 0, "training_clips": 16}
    run = package.run(method, "real", out=tmp_path, variants=(half,), **small)
    assert not run.failed
    kept = {cell: len(load_student(f"latest/{cell}", tmp_path).model.kept_blocks) for cell in (half.name, method)}
    assert kept == {f"{method}@keep=0.5": 5, method: 7}


def test_damaged_student(made: dict[str, Any], flgbench: Flgbench, tmp_path: Path) -> None:
    record = find_student("dmd2", made["out"])
    assert record.transformer is not None
    kept = record.transformer / "kept_blocks.json"
    whole = kept.read_text()
    kept.write_text("[]")
    try:
        refused = flgbench("export", "dmd2", "new", "--out", str(made["out"]))
    finally:
        kept.write_text(whole)
    assert_refused(refused, "is damaged", "kept_blocks.json has changed")


def test_other_teacher(made: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="had another teacher than the installed wanx"):
        load(replace(find_student("dmd2", made["out"]), teacher_key="teacher-wanx-v1-0123456789ab"))


def test_what_cannot_be_exported(made: dict[str, Any], flgbench: Flgbench, tmp_path: Path) -> None:
    record = find_student("dmd2", made["out"])
    with pytest.raises(UsageError, match=r"blocks 1, 2 have no full self-attention.*stock class"):
        check_exportable(replace(record, self_attention=("full", "frame", "none")), tmp_path / "new")
    with pytest.raises(UsageError, match="has no results yet"):
        check_exportable(replace(record, run=tmp_path), tmp_path / "new")
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("")
    call = ["--out", str(made["out"])]
    assert_refused(flgbench("export", "dmd2", "there", *call), "there exists", "new folder")
    assert_refused(flgbench("export", "dmd2", "file/below", *call), "file/below", "cannot be made")
    assert list((tmp_path / "there").iterdir()) == []


def test_wrong_use_from_python(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'dmd2'"):
        package.run("dmd3", out=tmp_path)
    with pytest.raises(UsageError, match="inline or local"):
        package.run("dmd2", out=tmp_path, executor="slurm")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="dmd2 has no setting 'lrr'"):
        package.run(["dmd2"], ["euler"], out=tmp_path, settings={"dmd2": {"lrr": 1}})
    with pytest.raises(UsageError, match="no runs in"):
        package.results(out=tmp_path)
    with pytest.raises(AttributeError, match="no attribute 'runn'"):
        package.runn  # noqa: B018


def test_refusals_and_the_package_import_no_torch(tmp_path: Path) -> None:
    code = f"""
import sys
import flgbench
from flgbench import cli
for line in ("sample --student latest/dmd2 --image {__file__} --prompt x -o a.mp4 --out none", "export a/b new --out none"):
    sys.argv = ["flgbench", *line.split()]
    try:
        cli.main()
    except SystemExit as end:
        assert end.code == 2
for heavy in ("torch", "diffusers", "pandas"):
    assert heavy not in sys.modules, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=README.parent)
    assert done.returncode == 0, done.stderr
