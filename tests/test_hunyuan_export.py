"""A hunyuan student, exported: the stock pipeline makes from the folder, by its card's code, the clips of `flgbench sample`.

The students are of a toy teacher with random weights: a dmd2 of few updates, which renoises, and 4 Euler steps at the
embedded scale.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Flgbench
from diffusers import HunyuanVideoImageToVideoPipeline
from PIL import Image
from toy_hunyuan import build, installed

import flgbench as package
from flgbench.data import shapes
from flgbench.errors import UsageError
from flgbench.export import export
from flgbench.students import find_student

PROMPT = "a large red circle moves slowly to the right over a plain background"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a run, with a first frame beside it."""
    folder, threads = tmp_path_factory.mktemp("hunyuan"), torch.get_num_threads()
    Image.fromarray(shapes.render(shapes.draw_factors("validation", np.arange(1)))[0, 0].numpy()).save(folder / "first.png")
    small = {"budget": 24, "training_clips": 16, "conditions": 2, "repeated_conditions": 0}
    with installed(build(), folder / "weights"):
        run = package.run("dmd2", "euler-4", model="hunyuan", out=folder / "out", **small)
        torch.set_num_threads(threads)
        assert not run.failed
        yield folder


@pytest.mark.parametrize("cell", ["dmd2", "euler-4"])
def test_the_stock_pipeline_makes_the_same_clip(
    cell: str, made: Path, flgbench: Flgbench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    target = tmp_path / "exported"
    code, printed, err = flgbench("export", f"latest/{cell}", str(target), "--out", str(made / "out"))
    assert code == 0 and str(target) in printed, err
    card = (target / "README.md").read_text()
    source = next(b for b in re.findall(r"```python\n(.*?)```", card, re.DOTALL))
    assert "HunyuanVideoImageToVideoPipeline" in source and str(made.parent) not in card
    told = "| guidance | none |" if cell == "dmd2" else "| guidance | embedded scale 2 |"
    assert told in card and "| kept blocks | 5 of 5: 0, 1, 2, 3, 4 |" in card
    (target / "first.png").write_bytes((made / "first.png").read_bytes())
    monkeypatch.chdir(target)
    names: dict = {}
    exec(source, names)
    assert (target / "out.mp4").stat().st_size > 1000 and isinstance(names["pipe"], HunyuanVideoImageToVideoPipeline)
    student = package.load_student(f"latest/{cell}", made / "out")
    assert student.sampler.embedded_guidance == (None if cell == "dmd2" else 2.0)
    ours = student.sample("first.png", PROMPT, seed=0)
    assert np.abs(np.stack(names["video"]).astype(int) - ours).max() <= 1  # pictures, rounded as ours are
    torch.manual_seed(0)
    arguments = student.model.stock_call(student.sampler).arguments
    exact = names["pipe"](names["image"], PROMPT, output_type="np", **arguments).frames[0]
    # Ours are rounded to 8 bits: nothing beyond that rounding may differ.
    assert np.abs(exact * 255 - ours).max() / 255 - 0.5 / 255 < 1e-4
    facts = json.loads((target / "flgbench.json").read_text())
    assert facts["kept_blocks"] == [0, 1, 2, 3, 4] and facts["call"]["max_sequence_length"] == facts["text_length"] + 4


def test_what_the_stock_pipeline_reads_otherwise_is_refused(made: Path, tmp_path: Path) -> None:
    record = find_student("latest/euler-4", made / "out")
    guided = replace(record, sampler={**record.sampler, "guidance_scale": 2.0})
    with pytest.raises(UsageError, match="with CFG cannot be exported"):
        export(guided, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
