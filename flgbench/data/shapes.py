"""Procedural image+text-to-video clips whose truth is known.

A clip shows one coloured object on a static background. The caption and the first frame tell its shape, colour, size,
direction and speed. Two things they do not tell, because without uncertainty a model needs neither steps nor guidance:

* at frame 8 the object turns by 0, +90, 180 or -90 degrees (`turn`, law `LAWS["turn"]`);
* a second, small object of another colour enters from a random side at a random time (`side`, `entry`, `shape2`, `colour2`).
  It keeps to the half of the frame that the turn does not happen in, so that the two seldom touch.

Everything is a pure function of (split, index): a counter-based hash replaces random state, so any batch of any order
gives the same clips. Objects are composited from an anti-aliased atlas at 1/8 pixel, so stored centroids are exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np
import torch

from flgbench.data.silhouettes import CORNER, SHAPES, coverage, inside

FRAMES, SIZE, FPS = 17, 64, 8
TURN_FRAME = 8
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SIZES = ("small", "medium", "large")
DIRECTIONS = ("right", "lower right", "down", "lower left", "left", "upper left", "up", "upper right")
SPEEDS = ("slow", "steady", "fast")
BACKGROUNDS = ("plain", "gradient", "texture")
SIDES = ("left", "right", "top", "bottom")
TURNS = (0, 90, 180, 270)  # degrees, clockwise on the screen (y points down)
ENTRY_FRAMES = (0, 4, 8)  # it moves from the next frame on, first outside the picture: frame 0 never shows it
RADII = (5.0, 6.75, 8.5)  # pixels; the radius of the circle, other shapes have about the same area
PIXELS_PER_FRAME = (0.75, 1.25, 1.75)
SECOND_SPEED = 2.75  # pixels per frame, straight in
LANE, LANE_WIDTH = 8.0, 8.0  # pixels: distance of its path from the edge of the frame that it runs along
PALETTE = np.array(
    [
        (230, 50, 50),
        (245, 150, 40),
        (245, 230, 70),
        (60, 190, 75),
        (70, 220, 230),
        (60, 90, 230),
        (150, 60, 210),
        (250, 130, 200),
    ],
    dtype=np.float32,
)
# The law of every hidden factor, given everything that is not hidden. `colour2` is uniform over the seven other colours.
LAWS = {
    "turn": (0.25,) * 4,
    "side": (0.25,) * 4,
    "entry": (1 / 3,) * 3,
    "shape2": (0.25,) * 4,
}
SPLITS = {"train": 1, "validation": 2, "test": 3, "held_out": 4}

PATCH, SUB = 28, 8  # pixels of a sprite's side; sub-pixel positions per pixel


@dataclass(frozen=True)
class Factors:
    """All factors of N clips, each an array of N. Indices point into the module's tuples; positions are pixels."""

    index: np.ndarray
    shape: np.ndarray
    colour: np.ndarray
    size: np.ndarray
    direction: np.ndarray
    speed: np.ndarray
    background: np.ndarray
    turn: np.ndarray
    side: np.ndarray
    entry: np.ndarray
    shape2: np.ndarray
    colour2: np.ndarray
    start: np.ndarray  # (N, 2) x, y of the main object in frame 0
    offset2: np.ndarray  # (N,) position of the second object along its side
    look: np.ndarray  # (N, 6) uniforms that decide grey levels, angles and phases of the background
    words: np.ndarray  # (N, 8) uniforms that decide the caption's wording

    def __len__(self) -> int:
        return len(self.index)

    def select(self, index: slice | np.ndarray) -> Self:
        """The factors of some of the clips."""
        return type(self)(**{name: value[index] for name, value in vars(self).items()})

    def growth(self) -> np.ndarray | None:
        """(N, 17) size of the main object in every frame over its own; None where it keeps it."""
        return None


def uniforms(split: str, indices: np.ndarray, count: int) -> np.ndarray:
    """(N, count) uniforms in [0, 1), a hash (SplitMix64's finaliser) of split, index and column."""
    with np.errstate(over="ignore"):
        key = np.asarray(indices, np.uint64)[:, None] * np.uint64(0x9E3779B97F4A7C15)
        key = key + np.arange(count, dtype=np.uint64)[None] * np.uint64(0xD1B54A32D192ED03)
        key = key + np.uint64(SPLITS[split]) * np.uint64(0x8CB92BA72F3D8DD7)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 0x9E3779B97F4A7C15)):
            key = (key ^ (key >> np.uint64(shift))) * np.uint64(factor)
        key ^= key >> np.uint64(32)
    return (key >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _extent(size: np.ndarray) -> np.ndarray:
    return CORNER * np.asarray(RADII)[size] + 0.5


def direction_vector(degrees: np.ndarray) -> np.ndarray:
    """Unit vectors (..., 2) as x right, y down for angles measured clockwise from 'right'."""
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], -1)


def draw_factors(split: str, indices: Sequence[int] | np.ndarray) -> Factors:
    """Factors of the clips `indices` of `split` (train, validation, test, held_out).

    In `held_out` every clip has a (shape, colour) pair that no other split contains. Raises KeyError on another split.
    """
    indices = np.asarray(indices, dtype=np.int64)
    u = uniforms(split, indices, 40)

    def pick(column: int, n: int) -> np.ndarray:
        return np.minimum((u[:, column] * n).astype(np.int64), n - 1)

    shape = pick(0, 4)
    reserved = 2 * shape  # one colour per shape is kept for the split of held-out combinations
    colour = reserved if split == "held_out" else (reserved + 1 + pick(1, 7)) % 8
    size, direction, speed = pick(2, 3), pick(3, 8), pick(4, 3)
    # The turn happens where all four continuations stay in the frame: otherwise the first frame would give it away.
    travel = TURN_FRAME * np.asarray(PIXELS_PER_FRAME)[speed]
    margin = (_extent(size) + travel)[:, None]
    middle = margin + u[:, 5:7] * (SIZE - 2 * margin)
    start = middle - travel[:, None] * direction_vector(45.0 * direction)
    side = pick(9, 4)
    beside = np.where(side < 2, middle[:, 1], middle[:, 0])  # across the second object's path
    return Factors(
        index=indices,
        shape=shape,
        colour=colour,
        size=size,
        direction=direction,
        speed=speed,
        background=pick(7, 3),
        turn=pick(8, 4),
        side=side,
        entry=pick(10, 3),
        shape2=pick(11, 4),
        colour2=(colour + 1 + pick(12, 7)) % 8,
        start=start,
        offset2=np.where(beside < SIZE / 2, SIZE - LANE - LANE_WIDTH * u[:, 13], LANE + LANE_WIDTH * u[:, 13]),
        look=u[:, 14:20],
        words=u[:, 20:28],
    )


def _quantise(position: np.ndarray) -> np.ndarray:
    return np.round(position * SUB) / SUB


def trajectory(factors: Factors) -> np.ndarray:
    """(N, 17, 2) centroid of the main object in pixels."""
    steps = np.arange(FRAMES)
    speed = np.asarray(PIXELS_PER_FRAME)[factors.speed][:, None, None]
    before = direction_vector(45.0 * factors.direction)[:, None]
    after = direction_vector(45.0 * factors.direction + np.asarray(TURNS)[factors.turn])[:, None]
    first = np.minimum(steps, TURN_FRAME)[None, :, None]
    second = np.maximum(steps - TURN_FRAME, 0)[None, :, None]
    return _quantise(factors.start[:, None] + speed * (first * before + second * after))


def trajectory2(factors: Factors) -> np.ndarray:
    """(N, 17, 2) centroid of the second object in pixels; before its entry it waits outside the frame."""
    wait = _extent(np.zeros(1, np.int64))[0]
    moved = np.maximum(np.arange(FRAMES)[None] - np.asarray(ENTRY_FRAMES)[factors.entry][:, None], 0)
    depth = -wait + SECOND_SPEED * moved
    depth = np.where(factors.side[:, None] % 2 == 1, SIZE - depth, depth)
    along = np.broadcast_to(factors.offset2[:, None], depth.shape)
    horizontal = (factors.side < 2)[:, None]
    return _quantise(np.stack([np.where(horizontal, depth, along), np.where(horizontal, along, depth)], -1))


@lru_cache(maxsize=1)
def atlas() -> torch.Tensor:
    """(shape 4, size 3, sub-y 8, sub-x 8, 28, 28) coverage in [0, 1] of every sprite at every 1/8-pixel position."""
    side = (PATCH + 1) * SUB
    grid = (np.arange(side) + 0.5) / SUB - PATCH / 2
    x, y = np.meshgrid(grid, grid)
    sprites = np.zeros((4, 3, SUB, SUB, PATCH, PATCH), np.float32)
    for i, shape in enumerate(SHAPES):
        for j, radius in enumerate(RADII):
            drawn = inside(shape, radius, x, y)
            for dy in range(SUB):
                for dx in range(SUB):
                    # A larger sub-position moves the sprite right and down, so the window moves left and up.
                    shifted = np.roll(drawn, (dy, dx), (0, 1))[: PATCH * SUB, : PATCH * SUB]
                    sprites[i, j, dy, dx] = shifted.reshape(PATCH, SUB, PATCH, SUB).mean((1, 3))
    return torch.from_numpy(sprites)


def _sprites(
    shape: np.ndarray, size: np.ndarray, centre: np.ndarray, growth: np.ndarray | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Coverage (N, T, P, P) and the pixel columns and rows (N, T, P) that it falls on. `growth` as `Factors` says."""
    corner = np.floor(centre).astype(np.int64)
    frames, side = centre.shape[1], PATCH
    if growth is None:
        sub = np.round((centre - corner) * SUB).astype(np.int64)
        flat = ((shape * 3 + size)[:, None].repeat(frames, 1) * SUB + sub[..., 1]) * SUB + sub[..., 0]
        covered = atlas().view(-1, PATCH, PATCH)[torch.from_numpy(flat)]
    else:
        radius = np.asarray(RADII)[size][:, None] * growth
        side = 2 * (math.ceil(CORNER * radius.max(initial=0)) + 1)
        within = (centre - corner).reshape(-1, 2) + side // 2
        drawn = coverage(shape.repeat(frames), radius.reshape(-1), within, side)
        covered = torch.from_numpy(drawn).view(*centre.shape[:2], side, side)
    ticks = torch.arange(side) - side // 2
    pixel = torch.from_numpy(corner)
    return covered, pixel[..., 0:1] + ticks, pixel[..., 1:2] + ticks


def backgrounds(factors: Factors) -> torch.Tensor:
    """(N, 64, 64, 3) float32 in 0-255: static, dark to mid grey with a slight tint."""
    look = torch.from_numpy(factors.look.astype(np.float32))[:, :, None, None]
    kind = torch.from_numpy(factors.background)[:, None, None]
    axis = torch.linspace(-1, 1, SIZE)
    y, x = axis[None, :, None], axis[None, None, :]
    level, contrast, angle = 30 + 50 * look[:, 0], 15 + 25 * look[:, 1], 2 * math.pi * look[:, 2]
    ramp = torch.cos(angle) * x + torch.sin(angle) * y
    phase = 2 * math.pi * look[:, 3]
    waves = 0.5 * (torch.sin(7 * x + phase) + torch.sin(7 * y + 2 * phase))
    pattern = torch.where(kind == 1, ramp, torch.where(kind == 2, waves, torch.zeros(())))
    grey = level + contrast * pattern
    tint = torch.cat([1 + 0.15 * (look[:, 4] - 0.5), torch.ones_like(look[:, 4]), 1 + 0.15 * (look[:, 5] - 0.5)], 2)
    return (grey[..., None] * tint[:, :, None, :]).clamp(0, 255)


def _composite(
    canvas: torch.Tensor,
    colour: np.ndarray,
    shape: np.ndarray,
    size: np.ndarray,
    centre: np.ndarray,
    growth: np.ndarray | None = None,
) -> None:
    """Draw one object over `canvas` (N, T, 64, 64, 3) uint8, in place."""
    covered, columns, rows = _sprites(shape, size, centre, growth)
    column_ok = (columns >= 0) & (columns < SIZE)
    row_ok = (rows >= 0) & (rows < SIZE)
    visible = (covered > 0) & row_ok[..., :, None] & column_ok[..., None, :]
    n, t, i, j = torch.nonzero(visible, as_tuple=True)
    alpha = covered[n, t, i, j, None]
    flat = ((n * FRAMES + t) * SIZE + rows[n, t, i]) * SIZE + columns[n, t, j]
    pixels = canvas.view(-1, 3)
    paint = torch.from_numpy(PALETTE)[torch.from_numpy(colour)][n]
    under = pixels[flat].float()
    pixels[flat] = (under + alpha * (paint - under)).round().to(torch.uint8)


def render(factors: Factors) -> torch.Tensor:
    """(N, 17, 64, 64, 3) uint8 RGB video; the main object is drawn over the second one."""
    canvas = backgrounds(factors).round().to(torch.uint8)[:, None].expand(-1, FRAMES, -1, -1, -1).contiguous()
    _composite(canvas, factors.colour2, factors.shape2, np.zeros_like(factors.size), trajectory2(factors))
    _composite(canvas, factors.colour, factors.shape, factors.size, trajectory(factors), factors.growth())
    return canvas


def masks(factors: Factors) -> tuple[torch.Tensor, torch.Tensor]:
    """Coverage in [0, 1] of the main and of the visible part of the second object, each (N, 17, 64, 64) float32."""
    drawn = []
    for shape, size, centre, growth in (
        (factors.shape, factors.size, trajectory(factors), factors.growth()),
        (factors.shape2, np.zeros_like(factors.size), trajectory2(factors), None),
    ):
        covered, columns, rows = _sprites(shape, size, centre, growth)
        side = covered.shape[-1]
        full = torch.zeros(len(factors), FRAMES, SIZE + 2 * side, SIZE + 2 * side)
        ok = ((columns[..., 0] > -2 * side) & (rows[..., 0] > -2 * side)).nonzero(as_tuple=True)
        n, t = (k[:, None, None] for k in ok)
        full[n, t, rows[ok][:, :, None] + side, columns[ok][:, None, :] + side] = covered[ok]
        drawn.append(full[:, :, side:-side, side:-side])
    main, second = drawn
    return main, second * (1 - main)
