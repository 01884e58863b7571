"""Run one stage of a method: the training loop for a trained one, `compute` for a training-free one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flgbench import distributed
from flgbench.models.base import VideoModel
from flgbench.plan import Step
from flgbench.registry import resolve
from flgbench.stage import ComputedStage, Roles, TrainedStage
from flgbench.steps.loading import load_clips, load_teacher
from flgbench.store import Store
from flgbench.training import LoopSettings, train


def run(step: Step, store: Store, folder: Path) -> dict[str, Any]:
    cls = resolve(step.settings["stage"])
    teacher = load_teacher(step)
    data = load_clips(store.path(step.inputs["data"]))
    teacher.tally.passes = 0.0
    roles = Roles(teacher, data, {role: store.path(key) for role, key in step.inputs.items()})
    stage = cls(cls.Settings.model_validate(step.settings["settings"]), roles)
    first = distributed.rank() == 0
    if isinstance(stage, ComputedStage):
        if not first:
            return {}
        stage.compute(folder)
        facts = {"passes": teacher.tally.passes}
        made = folder / "transformer"  # a training-free method's student; other computed stages leave none
        return facts | (_size(teacher.with_transformer(made)) if made.exists() else {})
    assert isinstance(stage, TrainedStage)

    def log(**line: float) -> None:
        with (folder / "curve.jsonl").open("a") as file:
            file.write(json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in line.items()}) + "\n")
        store.event(step.key, "progress", fraction=line["fraction"], loss=round(line["loss"], 5))

    settings = LoopSettings.model_validate(step.settings["loop"])
    facts = train(stage, data, settings, teacher.tally, folder / "work", log)
    if not first:
        return {}
    student = stage.student()
    student.save(folder / "transformer")
    _drop_repeated_lines(folder / "curve.jsonl")
    return facts | _size(student)


def _size(student: VideoModel) -> dict[str, int]:
    return {"parameters": student.n_parameters, "blocks": len(student.blocks)}


def _drop_repeated_lines(path: Path) -> None:
    """A resumed run logs again what came after its checkpoint: keep the last line of each iteration."""
    lines = {}
    for line in path.read_text().splitlines():
        try:
            lines[json.loads(line)["iteration"]] = line
        except json.JSONDecodeError:  # cut by a kill; the resumed run wrote it again
            continue
    path.write_text("\n".join(lines[i] for i in sorted(lines)) + "\n")
