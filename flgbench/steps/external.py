"""Bring a student from elsewhere in: its files as they are, or the teacher with a LoRA added to its weights."""

from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any

from flgbench.cells import Step
from flgbench.errors import UsageError
from flgbench.external import CONFIG, KEPT_BLOCKS
from flgbench.models.outside import with_lora
from flgbench.steps.loading import load_teacher
from flgbench.store import Store, sha256, write_json


def run(step: Step, store: Store, folder: Path) -> dict[str, Any]:
    place, target = Path(step.location), folder / "transformer"
    shutil.rmtree(target, ignore_errors=True)  # of a run that was stopped
    if step.settings["brought"] == "folder":
        _bring(place, target, step.settings["files"])
        student = load_teacher(step).with_transformer(target)
    else:
        _unchanged(place, step.settings["files"][place.name])
        teacher = load_teacher(step)
        student = copy.copy(teacher)
        student.transformer = with_lora(teacher.transformer, place, step.settings["lora_scale"])
        student.save(target)
    return {"parameters": student.n_parameters, "blocks": len(student.blocks)}


def _bring(place: Path, target: Path, files: dict[str, str]) -> None:
    """Link or copy `files` (name -> sha256) of the folder `place` into the new folder `target`."""
    target.mkdir()
    for name, expected in files.items():
        _unchanged(place / name, expected)
        try:
            os.link((place / name).resolve(), target / name)  # a large student needs no second copy
        except OSError:  # another file system
            shutil.copyfile(place / name, target / name)
    if not (target / KEPT_BLOCKS).exists():  # which of the teacher's they are is not told: they are numbered anew
        write_json(target / KEPT_BLOCKS, list(range(json.loads((target / CONFIG).read_text())["num_layers"])))


def _unchanged(file: Path, expected: str) -> None:
    """Raise UsageError unless the file is still the one of the plan."""
    if not file.exists():
        raise UsageError(f"{file} is gone since the run was planned")
    if sha256(file) != expected:
        raise UsageError(f"{file} has changed since the run was planned: start the run again")
