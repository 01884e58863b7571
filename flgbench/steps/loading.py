"""What several steps load: the teacher, encoded clips, students. Cached per process, because workers run many steps."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from flgbench.data import shapes
from flgbench.models.base import Condition, VideoModel
from flgbench.plan import Step
from flgbench.registry import registry
from flgbench.stage import TrainingData
from flgbench.store import Store


@lru_cache(maxsize=1)
def _teacher(model: str, scale: str) -> VideoModel:
    return registry("families").get(model)().load(scale)


def load_teacher(step: Step) -> VideoModel:
    return _teacher(step.settings["model"], step.settings["scale"])


@lru_cache(maxsize=2)
def load_clips(folder: Path) -> TrainingData:
    tensors = load_file(folder / "clips.safetensors")
    condition = Condition(tensors["text"], tensors["negative_text"], tensors["image"])
    return TrainingData(tensors["latents"], condition)


def load_denoiser(step: Step, store: Store, role: str) -> VideoModel:
    """The student in `role`, or the teacher when the step has no such input."""
    teacher = load_teacher(step)
    return teacher.with_transformer(store.path(step.inputs[role]) / "transformer") if role in step.inputs else teacher


def test_factors(count: int) -> shapes.Factors:
    return shapes.draw_factors("test", np.arange(count))


def identities(conditions: int, repeated_conditions: int, seeds: int = 8) -> list[tuple[int, int]]:
    """(condition, sample) of every clip: each condition once, the first `repeated_conditions` with `seeds` noises."""
    once = [(c, 0) for c in range(conditions)]
    return once + [(c, s) for c in range(min(repeated_conditions, conditions)) for s in range(1, seeds)]
