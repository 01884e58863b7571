"""What several steps load: the teacher, encoded clips, students. Cached per process, because workers run many steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from flgbench.data import shapes
from flgbench.metrics.truth import select
from flgbench.models.base import Condition, VideoModel
from flgbench.plan import Step
from flgbench.registry import family_of
from flgbench.stage import TrainingData
from flgbench.store import Store

TEST = "test"  # the split that everything is evaluated on, but for a search


@lru_cache(maxsize=1)
def _teacher(**place: str) -> VideoModel:
    return family_of(place).load(place["scale"])


def load_teacher(step: Step) -> VideoModel:
    return _teacher(**{k: step.settings[k] for k in ("model", "scale", "checkpoint", "revision") if k in step.settings})


@lru_cache(maxsize=2)
def load_clips(folder: Path) -> TrainingData:
    tensors = load_file(folder / "clips.safetensors")
    return TrainingData(tensors["latents"], Condition.from_tensors(tensors))


def load_denoiser(step: Step, store: Store, role: str) -> VideoModel:
    """The student in `role`, or the teacher when the step has no such input."""
    teacher = load_teacher(step)
    return teacher.with_transformer(store.path(step.inputs[role]) / "transformer") if role in step.inputs else teacher


def evaluation_factors(count: int, split: str = TEST) -> shapes.Factors:
    """Factors of the first `count` conditions of a split: 'test', or 'validation' for a search."""
    return shapes.draw_factors(split, np.arange(count))


def true_outcomes(ids: Sequence[tuple[int, int]], split: str = TEST) -> shapes.Factors:
    """Factors of the true clip of every (condition, sample): for samples after the first the hidden turn is drawn anew."""
    conditions, samples = (np.array(column) for column in zip(*ids, strict=True))
    own = select(evaluation_factors(int(conditions.max()) + 1, split), conditions)
    fresh = shapes.draw_factors("validation", conditions * 1_000 + samples).turn
    return replace(own, turn=np.where(samples > 0, fresh, own.turn))


def identities(conditions: int, repeated_conditions: int, seeds: int = 8) -> list[tuple[int, int]]:
    """(condition, sample) of every clip: each condition once, the first `repeated_conditions` with `seeds` noises."""
    once = [(c, 0) for c in range(conditions)]
    return once + [(c, s) for c in range(min(repeated_conditions, conditions)) for s in range(1, seeds)]
