"""Where a family's clips come from: what they show, and what a model is told of them besides first frame and caption."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from flgbench.data import shapes, sound

if TYPE_CHECKING:
    import torch


class ClipSource:
    """Procedural clips, of which a model is told nothing else."""

    sounding: ClassVar[bool] = False

    def draw(self, split: str, indices: Sequence[int] | np.ndarray) -> shapes.Factors:
        """Factors of the clips `indices` of `split`, as `shapes.draw_factors`; `shapes.render` shows them."""
        return shapes.draw_factors(split, indices)

    def inputs(self, factors: shapes.Factors) -> dict[str, torch.Tensor]:
        """What `VideoModel.with_inputs` takes, (N, ...) each, of N clips that `draw` drew."""
        return {}


class SoundingClips(ClipSource):
    """The same clips with a sound that drives the main object's size."""

    sounding = True

    def draw(self, split: str, indices: Sequence[int] | np.ndarray) -> sound.SoundingFactors:
        return sound.draw_factors(split, indices)

    def inputs(self, factors: shapes.Factors) -> dict[str, torch.Tensor]:
        """`sound` (N, 34000) at 16 kHz."""
        import torch

        assert isinstance(factors, sound.SoundingFactors)
        return {"sound": torch.from_numpy(sound.waveforms(factors))}
