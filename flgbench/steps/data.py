"""Encode procedural clips once: latents, first-frame latents and caption embeddings in one safetensors file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from flgbench.data import shapes
from flgbench.data.captions import captions_of
from flgbench.models.base import Condition
from flgbench.plan import Step
from flgbench.steps.loading import load_teacher
from flgbench.store import Store

CLIPS_AT_ONCE = 16


def run(step: Step, store: Store, folder: Path) -> dict[str, Any]:
    model, split, count = load_teacher(step), step.settings["split"], step.settings["count"]
    latents, conditions = [], []
    for start in range(0, count, CLIPS_AT_ONCE):
        factors = shapes.draw_factors(split, np.arange(start, min(start + CLIPS_AT_ONCE, count)))
        video = shapes.render(factors)
        latents.append(model.encode_video(video))
        conditions.append(model.condition(video[:, 0], captions_of(factors)))
        store.event(step.key, "progress", fraction=min(1.0, (start + CLIPS_AT_ONCE) / count))
    model.release_encoders()  # the process goes on to other steps, which read what is written here
    condition = Condition.concatenate(conditions)
    content = {"latents": torch.cat(latents), **condition.tensors()}
    save_file({k: v.contiguous() for k, v in content.items()}, folder / "clips.safetensors")
    return {"clips": count}
