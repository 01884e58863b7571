"""Check the teacher: its weights against their recorded hash, its size, its blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flgbench.cells import Step
from flgbench.steps.loading import load_teacher
from flgbench.store import Store, write_json


def run(step: Step, store: Store, folder: Path) -> dict[str, Any]:
    model = load_teacher(step)
    facts = {"parameters": model.n_parameters, "blocks": len(model.blocks), "latent_shape": list(model.latent_shape)}
    write_json(folder / "teacher.json", facts)
    return facts
