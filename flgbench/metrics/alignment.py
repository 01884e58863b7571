"""Does the main object's size follow the sound? Measured from pixels against the size that the sound asks for.

    size(k) = sqrt(area of the tracked object in frame k / its own area),   due(k) = 1 + GROWTH * loudness(k)

Pearson's correlation takes neither scale nor offset into account, the gain and the lag say the rest.
"""

from __future__ import annotations

import numpy as np
import torch

from flgbench.data import shapes
from flgbench.metrics.tracking import Track, areas, extent

LAGS = np.arange(-4, 5)  # frames
STILL = 0.02  # a size that varies less than this follows nothing: its noise would correlate with anything
_FRAMES = 10  # frames in which the object must be found for its size to tell anything
_FOLLOWS = 0.5  # correlation at the best lag below which no lag can be told


def sizes(track: Track, factors: shapes.Factors) -> np.ndarray:
    """(N, T) measured size of the main object over its own; NaN where it is not found."""
    own = areas()[factors.shape, factors.size]
    reach = torch.from_numpy((1.45 * extent(factors.size)) ** 2).float()[:, None, None, None]
    ticks = torch.arange(shapes.SIZE) + 0.5
    centre = torch.from_numpy(np.nan_to_num(track.centre)).float()[..., None, None, :]
    away = (ticks - centre[..., 0]) ** 2 + (ticks[:, None] - centre[..., 1]) ** 2
    area = (track.weight * (away <= reach)).sum((2, 3)).numpy().astype(np.float64)
    return np.where(track.found, np.sqrt(area / own[:, None]), np.nan)


def follows(size: np.ndarray, due: np.ndarray) -> dict[str, np.ndarray]:
    """`audio_correlation`, `audio_gain` and `audio_lag` of `size` (N, T) against `due` (N, T), each (N,).

    NaN: not observable, as where `due` never changes (silence). A size that keeps still correlates 0 with everything and
    has no lag; a positive lag is behind the sound.
    """
    known = np.isfinite(size)
    seen = (known.sum(1) >= _FRAMES) & (due.std(1) > 0)
    at_lag = np.stack([_correlation(*_shifted(size, due, int(lag))) for lag in LAGS])
    best = at_lag.argmax(0)
    dx, dy, _ = _centred(due, size)
    gain = (dx * dy).sum(1) / np.maximum((dx**2).sum(1), 1e-9)
    told = seen & (at_lag.max(0) >= _FOLLOWS)
    return {
        "audio_correlation": np.where(seen, _correlation(size, due), np.nan),
        "audio_gain": np.where(seen, gain, np.nan),
        "audio_lag": np.where(told, LAGS[best].astype(np.float64), np.nan),
    }


def _shifted(size: np.ndarray, due: np.ndarray, lag: int) -> tuple[np.ndarray, np.ndarray]:
    """The frames of `size` beside those of `due` that were `lag` before."""
    frames = size.shape[1]
    return size[:, max(lag, 0) : frames + min(lag, 0)], due[:, max(-lag, 0) : frames - max(lag, 0)]


def _centred(due: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both around their means over the frames with a size, 0 in the others, and the number of frames."""
    known = np.isfinite(size)
    count = np.maximum(known.sum(1), 1)[:, None]
    made = [np.where(known, values, 0) for values in (due, size)]
    dx, dy = (np.where(known, values - values.sum(1, keepdims=True) / count, 0) for values in made)
    return dx, dy, count[:, 0]


def _correlation(size: np.ndarray, due: np.ndarray) -> np.ndarray:
    dx, dy, count = _centred(due, size)
    spread_x, spread_y = (np.sqrt((d**2).sum(1) / count) for d in (dx, dy))
    return (dx * dy).sum(1) / count / (np.maximum(spread_x, 1e-9) * np.maximum(spread_y, STILL))
