"""Run one stage of a method: the training loop for a trained one, `compute` for a training-free one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flgbench import distributed, environment, peaks
from flgbench.cells import Step
from flgbench.checkpoint import check_saved
from flgbench.loop_settings import LoopSettings
from flgbench.models.base import VideoModel
from flgbench.registry import family_of, resolve
from flgbench.stage import ComputedStage, Roles, TrainedStage
from flgbench.steps.loading import ENCODED, forget_teacher, load_clips, load_encoded, load_teacher
from flgbench.store import Store
from flgbench.training import train


def run(step: Step, store: Store, folder: Path) -> dict[str, Any]:
    cls, first = resolve(step.settings["stage"]), distributed.rank() == 0
    teacher = load_teacher(step)
    source = store.path(step.inputs["data"])
    data = load_encoded(step, source) if (source / ENCODED).exists() else load_clips(source)
    teacher.tally.passes = 0.0
    settings = LoopSettings.model_validate(step.settings["loop"]) if "loop" in step.settings else None
    if settings and settings.sized:
        # What is trained are copies of it: whole they fit no GPU, and in the memory of a node only once.
        teacher.transformer = teacher.transformer.to("cpu" if first else "meta")
    roles = Roles(teacher, data, {role: store.path(key) for role, key in step.inputs.items()})
    stage = cls(cls.Settings.model_validate(step.settings["settings"]), roles)
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

    assert settings is not None
    network = family_of(step.settings).network(step.settings["scale"])
    flops, peak = network.flops if network else None, peaks.peak(environment.gpu(), "bf16")[0]
    try:
        facts = train(stage, data, settings, teacher.tally, folder / "work", log, flops, peak)
    finally:
        if settings.sized:
            forget_teacher()  # its denoiser is in shards now
    if not first:
        return {}
    student = stage.student()
    student.save(folder / "transformer")
    if settings.sized:
        check_saved(folder / "transformer", student.transformer)
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
