"""Outlines of the procedural objects, and how much of every pixel one covers at any size and place.

Coverage of a pixel is the exact integral of the outline over it: differences of a summed-area table of the outline,
which holds for every radius because the shapes are scaled, not redrawn.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

SHAPES = ("circle", "square", "triangle", "star")
CORNER = 1.45  # distance of the farthest corner of any shape from its centre, in radii

_REACH, _CELLS = 1.5, 480  # the table covers +-1.5 radii


def _polygon(shape: str, radius: float) -> np.ndarray:
    if shape == "square":
        half = 0.886 * radius
        return np.array([(-half, -half), (half, -half), (half, half), (-half, half)])
    corners = 3 if shape == "triangle" else 10
    angles = -np.pi / 2 + 2 * np.pi * np.arange(corners) / corners
    radii = np.full(corners, CORNER * radius)
    if shape == "star":
        radii[1::2] = 0.62 * radius
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], -1)


def inside(shape: str, radius: float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether the points (x, y), any shape, lie in `shape` of `radius` around 0; other shapes have the circle's area."""
    if shape == "circle":
        return x**2 + y**2 <= radius**2
    corners = _polygon(shape, radius)
    found = np.zeros_like(x, bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, 0), strict=True):
        if y0 == y1:
            continue
        crosses = (y0 > y) != (y1 > y)
        found ^= crosses & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return found


@lru_cache(maxsize=1)
def _tables() -> np.ndarray:
    """(shape 4, y, x) area of each shape of radius 1 above and left of the lattice points, in squared radii."""
    cell = 2 * _REACH / _CELLS
    grid = (np.arange(_CELLS) + 0.5) * cell - _REACH
    x, y = np.meshgrid(grid, grid)
    tables = np.zeros((len(SHAPES), _CELLS + 1, _CELLS + 1))
    for i, shape in enumerate(SHAPES):
        tables[i, 1:, 1:] = inside(shape, 1.0, x, y).cumsum(0).cumsum(1) * cell**2
    return tables


def coverage(shape: np.ndarray, radius: np.ndarray, centre: np.ndarray, side: int) -> np.ndarray:
    """Covered share (M, side, side) float32 of every pixel of a window, for M objects.

    `shape` (M,) are indices of SHAPES, `radius` (M,) pixels, `centre` (M, 2) x and y from the window's upper left corner.
    """
    edges = (np.arange(side + 1) - centre[..., None]) / radius[:, None, None]  # (M, 2, side + 1)
    place = np.clip((edges + _REACH) / (2 * _REACH) * _CELLS, 0, _CELLS)
    low = np.minimum(place.astype(np.int64), _CELLS - 1)
    part = place - low
    x, y, which = low[:, 0, None, :], low[:, 1, :, None], shape[:, None, None]
    across, down = part[:, 0, None, :], part[:, 1, :, None]
    table = _tables()
    upper = table[which, y, x] * (1 - across) + table[which, y, x + 1] * across
    lower = table[which, y + 1, x] * (1 - across) + table[which, y + 1, x + 1] * across
    area = upper * (1 - down) + lower * down
    return (np.diff(np.diff(area, axis=1), axis=2) * radius[:, None, None] ** 2).clip(0, 1).astype(np.float32)
