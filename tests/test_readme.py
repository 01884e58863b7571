"""The README's method is a working method."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest

from flgbench.loop_settings import LoopSettings
from flgbench.models.wanx import WanX
from flgbench.plan import plan
from flgbench.registry import registry
from flgbench.run_settings import RunSettings
from flgbench.stage import Roles, TrainingData
from flgbench.training import train
from reports import BUILT_IN

README = Path(__file__).parent.parent / "README.md"


def test_readme_method_is_planned_and_trained(
    tiny_model: WanX, tiny_data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    source = next(b for b in blocks if "class Guided(Method)" in b)
    assert len([line for line in source.splitlines() if line.strip()]) <= 60
    module = types.ModuleType("readme_method")
    monkeypatch.setitem(sys.modules, "readme_method", module)
    exec(source, module.__dict__)
    # exec leaves classes with the name of the namespace they were made in
    methods = registry("methods")
    monkeypatch.setitem(methods._targets, "guided", "readme_method:Guided")
    monkeypatch.setitem(methods._owners, "guided", "the README")

    steps = plan(RunSettings(methods=("guided",), baselines=("euler",)), {})
    assert [s.name for s in steps.steps.values() if s.kind == "train"] == ["distil"]

    stage = module.GuidanceDistillation(module.GuidedSettings(), Roles(tiny_model, tiny_data, {}))
    seen: list[float] = []
    tiny_model.tally.passes = 0
    settings = LoopSettings(budget=60, batch=2)
    facts = train(stage, tiny_data, settings, tiny_model.tally, tmp_path, lambda **line: seen.append(line["loss"]))
    assert facts["passes"] >= 60 and seen


def test_reports_are_listed_with_pictures_that_exist() -> None:
    folder = README.parent / "reports"
    text = (folder / "README.md").read_text()
    listed = re.findall(r"^\| `(\w+)` \| `(\w+\.py)`", text, re.MULTILINE)
    assert {name for name, _ in listed} >= set(BUILT_IN) - {"summary"} and all(
        (folder / file).exists() for _, file in listed
    )
    pictures = re.findall(r'<img src="([^"]+)"', text)
    assert len(pictures) > 5 and all((folder / picture).exists() for picture in pictures)
