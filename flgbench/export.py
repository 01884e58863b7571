"""A student as an ordinary diffusers folder, with the scheduler that has its times and a model card."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from flgbench.errors import UsageError
from flgbench.students import StudentRecord


def check_exportable(record: StudentRecord, folder: Path) -> None:
    """Raise UsageError, before anything heavy is imported, when `record` cannot be exported into the new `folder`."""
    restricted = [i for i, kind in enumerate(record.self_attention) if kind != "full"]
    if restricted:
        shown = ", ".join(map(str, restricted))
        raise UsageError(
            f"'{record.cell}' cannot be exported: blocks {shown} have no full self-attention, which the stock class does "
            f"not know; `flgbench sample` can use it"
        )
    if not (record.run / "cells.json").exists():
        raise UsageError(f"run {record.run.name} has no results yet, which the model card tells: let `flgbench run` finish")
    kinds = {cell["cell"]: cell["kind"] for cell in json.loads((record.run / "cells.json").read_text())}
    if kinds.get(record.cell) == "external":
        raise UsageError(f"'{record.cell}' was made elsewhere: it is to be had there, under its own licence")
    if folder.exists():
        raise UsageError(f"{folder} exists: name a new folder")


def export(record: StudentRecord, folder: Path) -> None:
    """Write the new `folder`, whole or not at all.

    Raises UsageError for a student whose network, times or guidance no stock class has, and for a folder that exists or
    cannot be made.
    """
    check_exportable(record, folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise UsageError(f"{folder}: cannot be made ({error.strerror}): choose another folder") from None
    try:
        from flgbench.models.stock import save_pipeline, scheduler_for, tidy_folder
        from flgbench.students import load
        from reports.model_card import model_card

        student = load(record)
        call = student.model.stock_call(student.sampler)
        save_pipeline(student.model, scheduler_for(student.sampler, call.even_times), work)
        tidy_folder(work)
        facts = {
            "clip_shape": list(student.clip),
            "text_length": student.model.text_length,
            "negative_caption": student.model.negative_caption,
            "call": dict(call.arguments),
            "fps": student.fps,
            "kept_blocks": list(student.model.kept_blocks),
            "sampler": dict(record.sampler),
            "run": record.run.name,
            "cell": record.cell,
        }
        (work / "flgbench.json").write_text(json.dumps(facts, indent=1) + "\n")
        (work / "README.md").write_text(model_card(student, student.model))
        work.chmod(0o755)
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
