"""Open models in the steps that make and time clips: loaded with the weights of the plan, and one clip timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from flgbench.contracts import FamilyPreset, OpenModel
from flgbench.errors import UsageError
from flgbench.registry import resolve


def load(content: Mapping[str, Any], preset: FamilyPreset) -> OpenModel:
    """The model that a plan describes by `baseline`, `settings` and `weights`. Raises UsageError if the files changed."""
    cls = resolve(content["baseline"])
    model: OpenModel = cls(preset, cls.Settings.model_validate(content["settings"]))
    if dict(model.fingerprint()) != content["weights"]:
        raise UsageError(f"the weights of {cls.label} have changed since the run was planned: start the run again")
    return model


def time_clip(model: OpenModel, image: torch.Tensor, caption: Sequence[str], condition: int, **_: Any) -> dict[str, float]:
    """Seconds of each stage for one clip from image (1, H, W, 3) uint8."""
    return dict(model.make(image[0], caption[0], model.seed_of(condition, 0)).seconds)
