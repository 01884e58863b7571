"""Measures of generated clips against the procedural truth, one value per clip.

They need no learned network: background, palette and sprites are known. All rules tolerate what a small VAE and a small
transformer do to a clip (soft edges, colours some grey levels off, slight noise); the tests hold real clips to scores
of at least 0.99 and every kind of damage to the measure that must notice it.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from flgbench.data import shapes
from flgbench.metrics import alignment
from flgbench.metrics.descriptive import against_truth, drifts, psnr
from flgbench.metrics.second import measure_second
from flgbench.metrics.table import METRICS, SOUNDING, MetricInfo
from flgbench.metrics.tracking import Track, core_colour, overlap, patches, templates, track_main

__all__ = ["METRICS", "MetricInfo", "measure"]

_COLOUR_DISTANCE = 60.0  # RGB; palette entries are at least 85 apart, greyed or faded colours are farther off
_COLOUR_FRAMES = 0.9  # share of frames that must have the true colour
_IOU = 0.5
_DIRECTION_DEGREES = 20.0
_TURN_DEGREES = 30.0  # the turns are 90 degrees apart: 45 would always hit one
_MOVED = 0.3  # share of the true path that counts as having moved
_STRIDE = 4  # frames; long against the tracking noise, and it falls on the turn
_CHUNK = 32  # clips at a time: keeps memory below 200 MB


def measure(video: torch.Tensor, factors: shapes.Factors) -> dict[str, np.ndarray]:
    """Every metric of `METRICS` for `video` (N, 17, 64, 64, 3) uint8, each float64 (N,); NaN = not observable.

    Of clips with a sound also those of `SOUNDING`. The others take a size that follows it as they take that of real clips.
    """
    if video.dtype != torch.uint8 or video.shape[1:] != (shapes.FRAMES, shapes.SIZE, shapes.SIZE, 3):
        raise ValueError(f"expected uint8 video (N, 17, 64, 64, 3), got {video.dtype} {tuple(video.shape)}")
    if len(video) != len(factors):
        raise ValueError(f"{len(video)} videos but factors of {len(factors)}")
    if not len(video):
        return {name: np.zeros(0) for name in (METRICS if factors.growth() is None else METRICS | SOUNDING)}
    parts = [
        _measure_chunk(video[i : i + _CHUNK].cpu(), factors.select(slice(i, i + _CHUNK)))
        for i in range(0, len(video), _CHUNK)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in (METRICS | SOUNDING) if name in parts[0]}


def _measure_chunk(video: torch.Tensor, factors: shapes.Factors) -> dict[str, np.ndarray]:
    background = shapes.backgrounds(factors)
    track = track_main(video, background, factors)
    result = {
        "presence": track.found.all(1).astype(np.float64),
        "colour": _colour(video, track, factors),
        "shape": _shape(track, factors),
        "first_frame_psnr": _first_frame_psnr(video, factors),
        "sharpness_ratio": _sharpness_ratio(track, factors),
        "flicker": _flicker(video, background),
        **drifts(video, track, factors),
        **against_truth(video, shapes.render(factors)),
        **_motion(track, factors),
        **measure_second(video, background, track, factors.colour, factors.size),
    }
    if (due := factors.growth()) is not None:
        result |= alignment.follows(alignment.sizes(track, factors), due)
    parts = [result[name] for name in ("presence", "colour", "shape", "direction", "second_present")]
    return {**result, "joint": np.stack(parts).min(0)}


def _colour(video: torch.Tensor, track: Track, factors: shapes.Factors) -> np.ndarray:
    """1 where the core's mean colour is right in at least 90 % of all frames; one without the object is not right."""
    away = np.linalg.norm(core_colour(video, track.centre, factors.size)[:, :, None] - shapes.PALETTE, axis=-1)
    away = np.nan_to_num(away, nan=np.inf)
    right = (away.argmin(-1) == factors.colour[:, None]) & (away.min(-1) <= _COLOUR_DISTANCE)
    return (right.mean(1) >= _COLOUR_FRAMES).astype(np.float64)


def _shape(track: Track, factors: shapes.Factors) -> np.ndarray:
    """1 where the true silhouette of the true size fits best, in frames 1-8 and in 9-16, with a mean IoU >= 0.5.

    A frame without the object fits nothing (IoU 0). Both halves must hold, so a shape that melts later is noticed.
    """
    n, frames = track.found.shape
    fit = overlap(track.weight.flatten(0, 1), track.centre.reshape(-1, 2), factors.size.repeat(frames))
    fit = fit.view(n, frames, 4) * torch.from_numpy(track.found)[..., None]
    right = np.ones(n, bool)
    for half in (fit[:, 1:9], fit[:, 9:]):
        best, index = half.mean(1).max(1)
        right &= (index.numpy() == factors.shape) & (best.numpy() >= _IOU)
    return right.astype(np.float64)


def _angle(displacement: np.ndarray) -> np.ndarray:
    """Degrees clockwise from 'right'."""
    return np.rad2deg(np.arctan2(displacement[..., 1], displacement[..., 0]))


def _away(degrees: np.ndarray) -> np.ndarray:
    """Absolute angle in [0, 180]."""
    return np.abs((degrees + 180) % 360 - 180)


def _motion(track: Track, factors: shapes.Factors) -> dict[str, np.ndarray]:
    """direction, turn_error, motion_ratio and observed_turn of the tracked centroid."""
    truth, turn = shapes.trajectory(factors), shapes.TURN_FRAME
    half_path = turn * np.asarray(shapes.PIXELS_PER_FRAME)[factors.speed]
    first, then = track.centre[:, turn] - track.centre[:, 0], track.centre[:, -1] - track.centre[:, turn]
    caption = 45.0 * factors.direction
    moved = np.linalg.norm(first, axis=1) >= _MOVED * half_path  # False where missing
    direction = moved & (_away(_angle(first) - caption) <= _DIRECTION_DEGREES)

    off = _away(_angle(then)[:, None] - caption[:, None] - np.asarray(shapes.TURNS))
    turned = (np.linalg.norm(then, axis=1) >= _MOVED * half_path) & (off.min(1) <= _TURN_DEGREES)

    # Only stretches with the object found at both ends count, on both sides of the ratio; at least half of them.
    made, due = (np.linalg.norm(np.diff(path[:, ::_STRIDE], axis=1), axis=-1) for path in (track.centre, truth))
    known = np.isfinite(made)
    ratio = np.where(known, made, 0).sum(1) / np.maximum((due * known).sum(1), 1e-9)
    return {
        "direction": direction.astype(np.float64),
        "turn_error": np.linalg.norm(track.centre[:, turn] - truth[:, turn], axis=1),
        "motion_ratio": np.where(known.mean(1) >= 0.5, ratio, np.nan),
        "observed_turn": np.where(turned, off.argmin(1), np.nan),
    }


def _first_frame_psnr(video: torch.Tensor, factors: shapes.Factors) -> np.ndarray:
    """PSNR in dB against the true first frame."""
    return psnr(video[:, 0], shapes.render(factors)[:, 0])


def _edge_energy(window: torch.Tensor) -> torch.Tensor:
    """Sum of squared differences of neighbouring pixels in windows (..., H, W): halves when edges get twice as wide."""
    return window.diff(dim=-1).square().sum((-2, -1)) + window.diff(dim=-2).square().sum((-2, -1))


@lru_cache(maxsize=1)
def _true_energy() -> np.ndarray:
    return _edge_energy(templates()).numpy().astype(np.float64)


def _sharpness_ratio(track: Track, factors: shapes.Factors) -> np.ndarray:
    """Root of edge energy in the main object's mask over that of the true sprite at the same sub-pixel place.

    The mask rather than the picture, so that it does not matter what the object passes in front of. Energies are
    summed over the frames that show the object; NaN when those are fewer than half.
    """
    window, sub = patches(track.weight, track.centre)
    seen = _edge_energy(window).numpy().astype(np.float64)
    due = _true_energy()[factors.shape[:, None], factors.size[:, None], sub[..., 1], sub[..., 0]]
    share = np.sqrt((seen * track.found).sum(1) / np.maximum((due * track.found).sum(1), 1e-9))
    return np.where(track.found.mean(1) >= 0.5, share, np.nan)


def _flicker(video: torch.Tensor, background: torch.Tensor) -> np.ndarray:
    """Mean |L(t+1) - 2 L(t) + L(t-1)| in grey levels of the luminance L of 16x16-pixel blocks of background.

    Background is what is never saturated in the clip (its own tint stays below 15 levels), so a flickering background
    does not hide itself by looking like an object. NaN when less than 5 % of the frame is left.
    """
    red, green, blue = video.unbind(-1)
    top, bottom = torch.maximum(torch.maximum(red, green), blue), torch.minimum(torch.minimum(red, green), blue)
    object_ever = (top - bottom).amax(1) > 40
    near_object = torch.nn.functional.max_pool2d(object_ever[:, None].float(), 5, 1, 2)[:, 0]
    keep = 1 - near_object
    luminance = 0.299 * red.float() + 0.587 * green.float() + 0.114 * blue.float()

    def blocks(x: torch.Tensor) -> torch.Tensor:
        return x.view(*x.shape[:-2], 4, 16, 4, 16).sum((-3, -1))

    count = blocks(keep)
    level = blocks(luminance * keep[:, None]) / count.clamp(min=1)[:, None]
    change = (level[:, 2:] - 2 * level[:, 1:-1] + level[:, :-2]).abs().mean(1)
    share = keep.mean((1, 2)).numpy()
    value = ((change * count).sum((1, 2)) / count.sum((1, 2)).clamp(min=1)).numpy().astype(np.float64)
    return np.where(share >= 0.05, value, np.nan)
