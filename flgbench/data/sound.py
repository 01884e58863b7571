"""Procedural clips with a sound whose loudness drives the size of the main object.

A sound has two or three swells over a tone of random pitch and timbre. Its envelope e(t) in [0, 1] is the largest of them,

    e(t) = max_i h_i (1 + cos(pi (t - c_i) / w_i)) / 2  where |t - c_i| < w_i, else 0,

and in frame k the object is 1 + GROWTH e((k + 1/2) / 8 s) times its own size: in silence it keeps it. The first frame
is drawn by the same rule, so it agrees with how the sound begins; neither it nor the caption tells how it goes on.

Waveforms are mono, 16 kHz, as long as the clip: 2000 samples a frame. Everything is a pure function of (split, index).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flgbench.data import shapes

RATE = 16_000  # Hz
FRAME_SAMPLES = RATE // shapes.FPS
SECONDS = shapes.FRAMES / shapes.FPS
GROWTH = 0.35
LOUDEST = 0.4  # amplitude of e = 1: the root mean square is 0.28, no sample is above 0.8
SWELLS, HEIGHTS, WIDTHS = (2, 3), (0.5, 1.0), (0.4, 0.55)  # widths as shares of a swell's part of the clip
PITCHES, HARMONICS = (150.0, 600.0), 4  # Hz, drawn by octaves
_COLUMNS = slice(28, 40)  # of the uniforms of (split, index); those before decide the picture


@dataclass(frozen=True)
class SoundingFactors(shapes.Factors):
    """`Factors` of N clips with sound."""

    sound: np.ndarray  # (N, 12) uniforms that decide it

    def growth(self) -> np.ndarray:
        return 1 + GROWTH * envelope(self, (np.arange(shapes.FRAMES) + 0.5) / shapes.FPS)


def draw_factors(split: str, indices: Sequence[int] | np.ndarray) -> SoundingFactors:
    """As `shapes.draw_factors`, whose pictures these clips have, with a sound."""
    drawn = shapes.uniforms(split, np.asarray(indices, np.int64), _COLUMNS.stop)[:, _COLUMNS]
    return SoundingFactors(**vars(shapes.draw_factors(split, indices)), sound=drawn)


def envelope(factors: SoundingFactors, seconds: np.ndarray) -> np.ndarray:
    """Loudness (N, S) in [0, 1] at the times `seconds` (S,) from the clip's beginning."""
    u, most = factors.sound[..., None], SWELLS[1]
    count = np.where(u[:, 0] < 0.5, *SWELLS)
    part = SECONDS / count
    width = part * _between(WIDTHS, u[:, 1])
    loud = np.zeros((len(factors), len(seconds)))
    for i in range(most):
        middle, height = part * (i + u[:, 2 + i]), _between(HEIGHTS, u[:, 2 + most + i])
        away = np.abs(seconds - middle) / width
        swell = height * (1 + np.cos(np.pi * np.minimum(away, 1))) / 2
        loud = np.maximum(loud, np.where(i < count, swell, 0))
    return loud


def waveforms(factors: SoundingFactors) -> np.ndarray:
    """Sounds (N, 34000) float32 in [-0.8, 0.8]."""
    seconds = np.arange(shapes.FRAMES * FRAME_SAMPLES) / RATE
    u = factors.sound[..., None]
    pitch = PITCHES[0] * (PITCHES[1] / PITCHES[0]) ** u[:, 8]
    order = np.arange(HARMONICS)
    weights = u[:, 9] ** order + 1e-9
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)  # so that loudness does not depend on the timbre
    tone = np.zeros((len(factors), len(seconds)))
    for k in order:
        tone += weights[:, k, None] * np.sin(2 * np.pi * ((k + 1) * pitch * seconds + u[:, 10]))
    return (LOUDEST * envelope(factors, seconds) * tone).astype(np.float32)


def loudness(waveform: np.ndarray) -> np.ndarray:
    """(N, T) root mean square of `waveform` (N, T * 2000) in every frame, 1 where e is 1 throughout."""
    frames = waveform.reshape(len(waveform), -1, FRAME_SAMPLES).astype(np.float64)
    return np.sqrt((frames**2).mean(-1)) / (LOUDEST / np.sqrt(2))


def _between(limits: tuple[float, float], u: np.ndarray) -> np.ndarray:
    return limits[0] + (limits[1] - limits[0]) * u
