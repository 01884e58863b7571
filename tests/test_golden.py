"""Golden curves: twenty iterations of every trained stage at its defaults. Any change of mathematics or defaults shows.

After a deliberate change, write them again with `python tests/test_golden.py [METHOD ...]` and look at the difference.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from stages import Lines, preset, run_stages

from flgbench import training
from flgbench.models.wanx import WanX
from flgbench.registry import resolve
from flgbench.stage import TrainingData

METHODS = {
    "dmd2": "methods.dmd2:DMD2",
    "fastlightgen": "methods.fastlightgen:FastLightGen",
    "icmd": "methods.icmd:ICMD",
    "lcm": "methods.lcm:LCM",
    "magic_distillation": "methods.magic_distillation:MagicDistillation",
}
GOLDEN = Path(__file__).parent / "golden"
ITERATIONS = 20
NOT_PINNED = ("iteration", "fraction", "seconds")


def curves_of(name: str, teacher: WanX, data: TrainingData, folder: Path) -> dict[str, Lines]:
    """The curves of a method at its defaults, in single-threaded arithmetic."""
    cls = resolve(METHODS[name])
    threads, every = torch.get_num_threads(), training.LOG_EVERY
    torch.set_num_threads(1)
    training.LOG_EVERY = 1
    try:
        curves = run_stages(cls(cls.Settings(), preset(teacher)), teacher, data, folder, ITERATIONS)
    finally:
        torch.set_num_threads(threads)
        training.LOG_EVERY = every
    return {
        stage: [{k: float(f"{v:.7g}") for k, v in line.items() if k not in NOT_PINNED} for line in lines]
        for stage, lines in curves.items()
    }


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_curve_is_the_golden_one(name: str, tiny_model: WanX, tiny_data: TrainingData, tmp_path: Path) -> None:
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    found = curves_of(name, tiny_model, tiny_data, tmp_path)
    assert found.keys() == golden.keys()
    for stage, lines in golden.items():
        assert len(found[stage]) == len(lines) == ITERATIONS
        for i, (line, expected) in enumerate(zip(found[stage], lines, strict=True)):
            assert line == pytest.approx(expected, rel=1e-3, abs=1e-6), (stage, i)


def test_every_golden_curve_has_its_method() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == METHODS.keys()


if __name__ == "__main__":
    from conftest import build_tiny_data, build_tiny_model

    model = build_tiny_model()
    clips = build_tiny_data(model)
    GOLDEN.mkdir(exist_ok=True)
    for chosen in sys.argv[1:] or METHODS:
        with tempfile.TemporaryDirectory() as scratch:
            curves = curves_of(chosen, model, clips, Path(scratch))
        text = ",\n".join(
            f' "{stage}": [\n' + ",\n".join(f"  {json.dumps(line)}" for line in lines) + "\n ]"
            for stage, lines in curves.items()
        )
        (GOLDEN / f"{chosen}.json").write_text("{\n" + text + "\n}\n")
        print(f"{chosen}: {', '.join(curves)}")
