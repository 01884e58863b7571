"""A family's clips, procedural or real: what a model is told of them besides first frame and caption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from flgbench.data import shapes, sound, sound_file
from flgbench.data.videos import BadClipError

if TYPE_CHECKING:
    import torch


class ClipSource:
    """Clips of which a model is told nothing else."""

    sounding: ClassVar[bool] = False
    rules: ClassVar[Mapping[str, str]] = {}  # how `read` reads

    def draw(self, split: str, indices: Sequence[int] | np.ndarray) -> shapes.Factors:
        """Factors of the clips `indices` of `split`, as `shapes.draw_factors`; `shapes.render` shows them."""
        return shapes.draw_factors(split, indices)

    def inputs(self, factors: shapes.Factors) -> dict[str, torch.Tensor]:
        """What `VideoModel.with_inputs` takes, (N, ...) each, of N clips that `draw` drew."""
        return {}

    def read(self, path: Path, seconds: Fraction) -> dict[str, np.ndarray]:
        """The same, without N, of a real clip: the first `seconds` of the video in `path`.

        Raises BadClipError with the reason for a clip that does not have it.
        """
        return {}


PLAIN = ClipSource()


class SoundingClips(ClipSource):
    """Clips with a sound; that of procedural ones drives the main object's size."""

    sounding = True
    rules = {"sound": sound_file.RULE}

    def draw(self, split: str, indices: Sequence[int] | np.ndarray) -> sound.SoundingFactors:
        return sound.draw_factors(split, indices)

    def inputs(self, factors: shapes.Factors) -> dict[str, torch.Tensor]:
        """`sound` (N, 34000) at 16 kHz."""
        import torch

        assert isinstance(factors, sound.SoundingFactors)
        return {"sound": torch.from_numpy(sound.waveforms(factors))}

    def read(self, path: Path, seconds: Fraction) -> dict[str, np.ndarray]:
        """`sound` (16000 seconds,)."""
        try:
            return {"sound": sound_file.read_track(path, round(seconds * sound.RATE))}
        except sound_file.NoSoundError as error:
            raise BadClipError(str(error)) from None
