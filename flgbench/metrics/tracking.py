"""Finding the main object in generated clips, with the known background and the true first position.

A pixel is a mixture of the static background b and an object's colour c: p = b + a (c - b). The coverage `a` is the
projection on the line from b to c, the rest is the residual; pixels of another colour lie far from that line. So the
second object, which has another palette colour and passes behind, does not pull the track.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from flgbench.data import shapes
from flgbench.data.shapes import PATCH, SUB

AREA_RANGE = (0.4, 2.0)  # accepted area as a multiple of the true one
_RESIDUAL = 40.0  # RGB distance from the line at which a pixel counts half
_FOREGROUND = 50.0  # RGB distance from the background that makes a pixel foreground


@dataclass(frozen=True)
class Track:
    """The main object in N clips of T frames."""

    weight: torch.Tensor  # (N, T, 64, 64) soft mask of the main object's colour in [0, 1]
    foreign: torch.Tensor  # (N, T, 64, 64) bool: foreground whose colour is not the main object's
    reference: np.ndarray  # (N, T, 3) RGB looked for in each frame
    centre: np.ndarray  # (N, T, 2) x, y in pixels, NaN where missing
    found: np.ndarray  # (N, T) bool


def harden(coverage: torch.Tensor) -> torch.Tensor:
    """Coverage with its ends cut off: noise of some grey levels on background and object then counts nothing."""
    return ((coverage - 0.1) / 0.8).clamp_(0, 1)


@lru_cache(maxsize=1)
def templates() -> torch.Tensor:
    """(4 shapes, 3 sizes, 8, 8, PATCH, PATCH) the atlas as `harden` shows it."""
    return harden(shapes.atlas())


@lru_cache(maxsize=1)
def areas() -> np.ndarray:
    """(4 shapes, 3 sizes) true area in pixels."""
    return shapes.atlas().sum((-2, -1)).mean((-2, -1)).numpy().astype(np.float64)


def extent(size: np.ndarray) -> np.ndarray:
    """Largest distance of any shape's corner from its centre, in pixels."""
    return 1.45 * np.asarray(shapes.RADII)[size]


def patches(image: torch.Tensor, centre: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
    """Windows (..., PATCH, PATCH) of `image` (..., 64, 64) around `centre` (..., 2) and their sub-pixel index (..., 2) x, y.

    They lie as the atlas's templates do. Outside of the frame is 0; a NaN centre gives a window of the corner.
    """
    lead, side, half = image.shape[:-2], image.shape[-1], PATCH // 2
    quantised = np.round(np.clip(np.nan_to_num(centre), 0, side) * SUB) / SUB
    corner = np.floor(quantised).astype(np.int64).reshape(-1, 2)
    padded = torch.nn.functional.pad(image, (half, half, half, half)).flatten(0, -3)
    ticks = np.arange(PATCH)
    columns, rows = corner[:, 0, None] + ticks, corner[:, 1, None] + ticks
    which = torch.arange(len(padded))[:, None, None]
    window = padded[which, torch.from_numpy(rows)[:, :, None], torch.from_numpy(columns)[:, None, :]]
    sub = np.round((quantised - np.floor(quantised)) * SUB).astype(np.int64)
    return window.view(*lead, PATCH, PATCH), sub


def core_colour(video: torch.Tensor, centre: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Mean RGB (N, T, 3) within half a radius of `centre` (N, T, 2) in `video` (N, T, 64, 64, 3); NaN where that is."""
    reach = np.arange(-4, 5)
    pixel = np.floor(np.nan_to_num(centre)).astype(np.int64)
    columns = pixel[..., 0, None, None] + reach[None, :]
    rows = pixel[..., 1, None, None] + reach[:, None]
    away = np.hypot(columns + 0.5 - centre[..., 0, None, None], rows + 0.5 - centre[..., 1, None, None])
    inside = (columns >= 0) & (columns < shapes.SIZE) & (rows >= 0) & (rows < shapes.SIZE)
    keep = (inside & (away <= 0.5 * np.asarray(shapes.RADII)[size][:, None, None, None])).astype(np.float64)
    n, t = np.ogrid[: video.shape[0], : video.shape[1]]
    limit = shapes.SIZE - 1
    rgb = video.numpy()[n[..., None, None], t[..., None, None], rows.clip(0, limit), columns.clip(0, limit)]
    count = keep.sum((-2, -1))[..., None]
    mean = (rgb * keep[..., None]).sum((-3, -2)) / np.maximum(count, 1)
    return np.where((count > 0) & np.isfinite(centre[..., :1]), mean, np.nan)


def unmix(frame: torch.Tensor, background: torch.Tensor, reference: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Soft mask of the colour `reference` (N, 3) in `frame` (N, 64, 64, 3), and mask of foreground of other colours."""
    colour = torch.from_numpy(reference.astype(np.float32))
    square, along, length = (torch.zeros(frame.shape[:-1]) for _ in range(3))
    for channel in range(3):  # planes: reducing over an inner axis of 3 is several times slower
        under = background[..., channel]
        change = frame[..., channel].float() - under
        line = colour[:, channel, None, None] - under
        square.addcmul_(change, change)
        along.addcmul_(change, line)
        length.addcmul_(line, line)
    coverage = (along / length).clamp_(0, 1.3)  # above 1: more contrast than in frame 0, still this object
    # |change - coverage * line|^2
    residual = coverage * (coverage * length - 2 * along) + square
    foreign = (square > _FOREGROUND**2) & (residual > 0.5 * _RESIDUAL**2)
    gate = 1 / (1 + (residual.clamp_(min=0) / _RESIDUAL**2) ** 3)
    return harden(coverage).mul_(gate), foreign


def mean_shift(weight: torch.Tensor, start: np.ndarray, reach: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centroid (N, 2) and mass (N,) of `weight` (N, 64, 64) in a disc of radius `reach` (N,) moved to its own centroid.

    Three rounds: an object that the disc first touches at its border is followed up to its centre.
    """
    ticks = torch.arange(shapes.SIZE) + 0.5
    radius = torch.from_numpy(reach**2).float()[:, None, None]
    centre = torch.from_numpy(start).float()
    for _ in range(3):
        away_x, away_y = (ticks - centre[:, :1]) ** 2, (ticks - centre[:, 1:]) ** 2
        near = weight * (away_y[:, :, None] + away_x[:, None, :] <= radius)
        mass = near.sum((1, 2))
        mean = torch.stack([near.sum(1) @ ticks, near.sum(2) @ ticks], 1) / mass.clamp(min=1e-6)[:, None]
        centre = torch.where((mass > 1)[:, None], mean, centre)
    return centre.numpy().astype(np.float64), mass.numpy().astype(np.float64)


def overlap(weight: torch.Tensor, centre: np.ndarray, size: np.ndarray) -> torch.Tensor:
    """Intersection over union (N, 4) of `weight` (N, 64, 64) with each shape's template of the true size."""
    window, sub = patches(weight, centre)
    template = templates()[:, torch.from_numpy(size), torch.from_numpy(sub[:, 1]), torch.from_numpy(sub[:, 0])]
    least, most = torch.minimum(template, window), torch.maximum(template, window)
    return (least.sum((-2, -1)) / most.sum((-2, -1))).T


def track_main(video: torch.Tensor, background: torch.Tensor, factors: shapes.Factors) -> Track:
    """Follow the main object of `video` (N, T, 64, 64, 3) uint8 frame by frame from its true position in frame 0.

    Per frame, mean shift of a colour mask in a disc a little larger than the object. The colour is the one seen in the
    last frame that shows the object, so one of a wrong or slowly drifting colour is followed too (and fails `colour`),
    but scaled to the contrast of frame 0, so one that fades gets lost. A sudden change of colour is another object.
    """
    n, frames = video.shape[:2]
    rows = np.arange(n)

    def under(position: np.ndarray) -> np.ndarray:
        column, row = np.floor(position).astype(np.int64).clip(0, shapes.SIZE - 1).T
        return background.numpy()[rows, row, column]

    here = shapes.trajectory(factors)[:, 0]
    seen = core_colour(video[:, :1], here[:, None], factors.size)[:, 0]
    shown = np.linalg.norm(seen - under(here), axis=1) > _FOREGROUND
    first = np.where(shown[:, None], seen, shapes.PALETTE[factors.colour])
    colour = first

    area, reach = areas()[factors.shape, factors.size], extent(factors.size) + 3.0
    weight = torch.zeros(video.shape[:-1])
    foreign = torch.zeros(video.shape[:-1], dtype=torch.bool)
    reference = np.zeros((n, frames, 3))
    centre = np.full((n, frames, 2), np.nan)
    found = np.zeros((n, frames), bool)
    for t in range(frames):
        reference[:, t] = colour
        weight[:, t], foreign[:, t] = unmix(video[:, t], background, colour)
        there, mass = mean_shift(weight[:, t], here, reach)
        share = mass / area
        found[:, t] = (share >= AREA_RANGE[0]) & (share <= AREA_RANGE[1])
        centre[found[:, t], t] = there[found[:, t]]
        # A lost object is looked for where it was last seen, never at a guessed place.
        here = np.where((share >= AREA_RANGE[0])[:, None], there, here)
        base = under(here)
        change = core_colour(video[:, t : t + 1], centre[:, t : t + 1], factors.size)[:, 0] - base
        contrast = np.linalg.norm(change, axis=1)  # NaN where missing
        scale = np.linalg.norm(first - base, axis=1) / np.where(contrast > _FOREGROUND, contrast, np.nan)
        colour = np.where(np.isfinite(scale)[:, None], base + change * scale[:, None], colour)
    return Track(weight, foreign, reference, centre, found)
