"""Finding the second object: whether it came, from where, when, and what it is. No true hidden factor is used."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from flgbench.data import shapes
from flgbench.metrics.tracking import Track, areas, core_colour, extent, harden, mean_shift, overlap

_COLOUR_DISTANCE = 75.0  # RGB distance to a palette entry that still counts as that colour
_CORE_DISTANCE = 60.0  # the same for the mean of its core, as for the main object
_COLOUR_FRAMES = 0.8  # share of the frames that show it; it is small, and its first and last ones are cut
_EXTENT = float(extent(np.zeros(1, np.int64))[0])  # pixels from its centre to its farthest corner
_BEYOND = 4.0  # pixels from the main object's farthest corner where nothing can belong to it
_COMPANY = 3  # of a pixel's 8 neighbours that must have its colour
_FIRST_PIXELS = 8  # pixels that make a first appearance
_FIRST_DELAY = 2  # frames between the start of the entry and a first appearance of that many pixels
_LAST = 3  # last frames in which it must be seen (in the largest of them: it can pass behind the main object)


@lru_cache(maxsize=1)
def _enough() -> float:
    """Pixels that must be seen: 40 % of the area of the smallest small object."""
    return 0.4 * float(areas()[:, 0].min())


def _blobs(video: torch.Tensor, track: Track, colour: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, T, 8) and centroid (N, T, 8, 2) of each palette colour in what is not the main object.

    Near the main object its own colour does not count, for it may be its edge. Farther off it does: models mix colours,
    and an orange-red second object beside an orange one is there, though its nearest palette entry may be orange.
    """
    frames, colours = video.shape[1], len(shapes.PALETTE)
    n, t, y, x = torch.nonzero(track.foreign, as_tuple=True)
    away, nearest = torch.cdist(video[n, t, y, x].float(), torch.from_numpy(shapes.PALETTE)).min(1)
    followed = np.linalg.norm(track.reference[:, :, None] - shapes.PALETTE, axis=-1).argmin(-1)
    other = (nearest != torch.from_numpy(colour)[n]) & (nearest != torch.from_numpy(followed)[n, t])
    from_main = torch.stack([x, y], 1) + 0.5 - torch.from_numpy(track.centre).float()[n, t]
    reach = torch.from_numpy(extent(size) + _BEYOND).float()[n]
    keep = (away < _COLOUR_DISTANCE) & (other | (from_main.norm(dim=1) > reach))  # NaN, where it is lost, is not beyond
    n, t, y, x, nearest = n[keep], t[keep], y[keep], x[keep], nearest[keep]
    # Only pixels with company of their own colour: random coloured noise is no object. The border of -1 saves a check.
    label = torch.full((len(video), frames, shapes.SIZE + 2, shapes.SIZE + 2), -1, dtype=torch.int8)
    label[n, t, y + 1, x + 1] = nearest.to(torch.int8)
    around = [(dy, dx) for dy in range(3) for dx in range(3) if (dy, dx) != (1, 1)]
    company = torch.stack([label[n, t, y + dy, x + dx] == nearest for dy, dx in around]).sum(0)
    keep = company >= _COMPANY
    bins, count = ((n * frames + t) * colours + nearest)[keep].numpy(), len(video) * frames * colours
    points = torch.stack([x, y], 1)[keep].numpy() + 0.5

    def centroid(index: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pixels = np.bincount(index, minlength=count).astype(np.float64)
        total = np.stack([np.bincount(index, at[:, axis], minlength=count) for axis in (0, 1)], 1)
        return pixels, total / np.maximum(pixels, 1)[:, None]

    # Twice: the second time only what lies together, so that scattered pixels are no object.
    _, mean = centroid(bins, points)
    together = np.linalg.norm(points - mean[bins], axis=1) <= _EXTENT + 2
    pixels, mean = centroid(bins[together], points[together])
    return pixels.reshape(len(video), frames, colours), mean.reshape(len(video), frames, colours, 2)


def _keeps_colour(
    video: torch.Tensor, pixels: np.ndarray, centre: np.ndarray, colour2: np.ndarray, colour: np.ndarray
) -> np.ndarray:
    """Whether the second object has one palette colour, not the main one's, in nearly all frames that show enough of it.

    `pixels` (N, T, 8) and `centre` (N, T, 8, 2) are of all colours; `colour2` (N,) is what it ends as, `colour` (N,) the
    main object's.
    """
    most = pixels.argmax(-1)
    there = np.take_along_axis(centre, most[..., None, None], 2)[:, :, 0]
    shown = pixels.max(-1) >= _enough()
    core = core_colour(video, there, np.zeros(len(video), np.int64))
    away = np.linalg.norm(core - shapes.PALETTE[colour2][:, None], axis=-1)
    right = shown & (most == colour2[:, None]) & (away <= _CORE_DISTANCE)  # NaN is not right
    return (colour2 != colour) & (right.sum(1) >= _COLOUR_FRAMES * np.maximum(shown.sum(1), 1))


def _shape(
    video: torch.Tensor,
    background: torch.Tensor,
    track: Track,
    size: np.ndarray,
    colour: np.ndarray,
    pixels: np.ndarray,
    centre: np.ndarray,
) -> np.ndarray:
    """Shape index (N,) from all frames that show the whole object clear of border and main object, else NaN.

    `colour` (N,), `pixels` (N, T) and `centre` (N, T, 2) are those of the object as it was seen.
    """
    border = np.minimum(centre, shapes.SIZE - centre).min(-1)
    apart = np.linalg.norm(centre - track.centre, axis=-1) > (extent(size) + _EXTENT + 1)[:, None]
    n, t = np.nonzero((pixels >= _enough()) & (border > _EXTENT) & (apart | ~track.found))
    under = background[n]
    line = torch.from_numpy(shapes.PALETTE)[colour[n]][:, None, None] - under
    coverage = ((video[n, t].float() - under) * line).sum(-1) / (line * line).sum(-1)
    mask = harden(coverage)
    middle, _ = mean_shift(mask, centre[n, t], np.full(len(n), _EXTENT + 1))
    fit = np.zeros((len(video), len(shapes.SHAPES)))
    np.add.at(fit, n, overlap(mask, middle, np.zeros(len(n), np.int64)).numpy())
    return np.where(fit.max(1) > 0, fit.argmax(1), np.nan)


def measure_second(
    video: torch.Tensor, background: torch.Tensor, track: Track, colour: np.ndarray, size: np.ndarray
) -> dict[str, np.ndarray]:
    """`second_present`, `second_colour` and what is observed of it, each float64 (N,); NaN where it cannot be told.

    `colour` and `size` (N,) are the main object's. The entry is dated by the first two frames in a row that show it,
    its side is the frame's nearest edge then; what appears in the middle of the frame came from no side.
    """
    rows = np.arange(len(video))
    pixels_all, centre_all = _blobs(video, track, colour, size)
    colour2 = pixels_all[:, -_LAST:].max(1).argmax(1)
    pixels, centre = pixels_all[rows, :, colour2], centre_all[rows, :, colour2]
    present = pixels[:, -_LAST:].max(1) >= _enough()

    shown = pixels >= _FIRST_PIXELS
    shown[:, :-1] &= shown[:, 1:]
    first = shown.argmax(1)
    entries = np.asarray(shapes.ENTRY_FRAMES, np.float64)
    entry = np.abs(first[:, None] - _FIRST_DELAY - entries).argmin(1)
    x, y = centre[rows, first].T
    depth = np.stack([x, shapes.SIZE - x, y, shapes.SIZE - y], 1)  # in the order of shapes.SIDES
    visible = present & shown.any(1)
    return {
        "second_present": present.astype(np.float64),
        "second_colour": (present & _keeps_colour(video, pixels_all, centre_all, colour2, colour)).astype(np.float64),
        "observed_side": np.where(visible & (depth.min(1) <= 2 * _EXTENT), depth.argmin(1), np.nan),
        "observed_entry": np.where(visible, entry, np.nan),
        "observed_colour2": np.where(present, colour2, np.nan),
        "observed_shape2": np.where(present, _shape(video, background, track, size, colour2, pixels, centre), np.nan),
    }
