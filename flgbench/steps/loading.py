"""What several steps load: the teacher, encoded clips, students. Cached per process, because workers run many steps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from flgbench.cells import Step
from flgbench.contracts import FamilyPreset
from flgbench.data import shapes
from flgbench.data.captions import captions_of
from flgbench.data.source import PLAIN, ClipSource
from flgbench.errors import UsageError
from flgbench.models.base import Condition, VideoModel
from flgbench.registry import family_of
from flgbench.stage import TrainingData
from flgbench.store import Store, sha256

ENCODED = "encoded.json"  # of a verified encoded set: its manifest's hash
CAPTIONS = "captions.json"  # of a suite, beside its first frames
TEST = "test"  # the split that everything is evaluated on, but for a search


@lru_cache(maxsize=1)
def _teacher(**place: str) -> VideoModel:
    return family_of(place).load(place["scale"])


def load_teacher(step: Step) -> VideoModel:
    return _teacher(**{k: step.settings[k] for k in ("model", "scale", "checkpoint", "revision") if k in step.settings})


def forget_teacher() -> None:
    """The next step loads it again: for one that leaves it changed."""
    _teacher.cache_clear()


def clips_of(step: Step) -> ClipSource:
    return family_of(step.settings).clips


def preset_of(step: Step) -> FamilyPreset:
    return family_of(step.settings).preset(step.settings["scale"])


@lru_cache(maxsize=2)
def load_clips(folder: Path) -> TrainingData:
    tensors = load_file(folder / "clips.safetensors")
    return TrainingData(tensors["latents"], Condition.from_tensors(tensors))


def load_encoded(step: Step, source: Path) -> TrainingData:
    """The encoded set at the step's place, read as it is drawn from. `source` is the artifact of the step that verified it.

    Raises UsageError where the set is no longer the verified one.
    """
    from flgbench.data import encoded

    place = Path(step.location)
    found = sha256(place / encoded.MANIFEST) if (place / encoded.MANIFEST).exists() else None
    if found != json.loads((source / ENCODED).read_text())["manifest"]:
        raise UsageError(f"--data {place}: is no longer what this run was planned with: run again")
    return encoded.training_data(place)


@dataclass(frozen=True)
class Evaluated:
    """What clips are made from: first frames (N, H, W, 3) uint8 and captions, and what else a family's clips tell.

    `factors` are the procedural truth, None for a suite; `condition` is a suite's, encoded with it.
    """

    first_frames: torch.Tensor
    captions: list[str]
    factors: shapes.Factors | None
    condition: Condition | None = None
    inputs: Mapping[str, torch.Tensor] = field(default_factory=dict)  # see `ClipSource.inputs`


@lru_cache(maxsize=1)
def load_suite(folder: Path) -> Evaluated:
    """The conditions of a suite, from the artifact that holds them."""
    tensors = load_file(folder / "clips.safetensors")
    captions = json.loads((folder / CAPTIONS).read_text())
    return Evaluated(tensors["images"], captions, None, Condition.from_tensors(tensors))


def evaluated(step: Step, store: Store, count: int) -> Evaluated:
    """The first `count` conditions of the step's suite, from the beginning again where it has fewer; or of its split."""
    if "suite" not in step.settings:
        clips = clips_of(step)
        factors = evaluation_factors(count, step.settings.get("split", TEST), clips)
        return Evaluated(shapes.render(factors)[:, 0], captions_of(factors), factors, inputs=clips.inputs(factors))
    whole = load_suite(store.path(step.inputs["data"]))
    index = torch.arange(count) % len(whole.captions)
    return replace(whole, first_frames=whole.first_frames[index], captions=[whole.captions[i] for i in index.tolist()])


def load_denoiser(step: Step, store: Store, role: str) -> VideoModel:
    """The student in `role`, or the teacher when the step has no such input."""
    teacher = load_teacher(step)
    return teacher.with_transformer(store.path(step.inputs[role]) / "transformer") if role in step.inputs else teacher


def evaluation_factors(count: int, split: str = TEST, clips: ClipSource = PLAIN) -> shapes.Factors:
    """Factors of the first `count` conditions of a split: 'test', or 'validation' for a search."""
    return clips.draw(split, np.arange(count))


def true_outcomes(ids: Sequence[tuple[int, int]], split: str = TEST, clips: ClipSource = PLAIN) -> shapes.Factors:
    """Factors of the true clip of every (condition, sample): for samples after the first the hidden turn is drawn anew."""
    conditions, samples = (np.array(column) for column in zip(*ids, strict=True))
    own = evaluation_factors(int(conditions.max()) + 1, split, clips).select(conditions)
    fresh = shapes.draw_factors("validation", conditions * 1_000 + samples).turn
    return replace(own, turn=np.where(samples > 0, fresh, own.turn))


def identities(conditions: int, repeated_conditions: int, seeds: int = 8) -> list[tuple[int, int]]:
    """(condition, sample) of every clip: each condition once, the first `repeated_conditions` with `seeds` noises."""
    once = [(c, 0) for c in range(conditions)]
    return once + [(c, s) for c in range(min(repeated_conditions, conditions)) for s in range(1, seeds)]
