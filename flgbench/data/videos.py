"""One real video as the frames that a model takes, by stated rules (`RULES`). PyAV and Pillow, without torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from flgbench.inputs import fit

if TYPE_CHECKING:
    import av

SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm")
RULES = {
    "time": "the model's frame rate by nearest timestamp, from the first frame on; too short is bad, nothing is padded",
    "space": "square pixels, upright, scaled by Lanczos until the model's size is just covered, cropped around the centre",
}
T = TypeVar("T")


class BadClipError(Exception):
    """A clip that cannot be used. The message is the reason, without the file's name."""


@dataclass(frozen=True)
class Shape:
    """The clip a model takes: `frames` at `fps`, `height` x `width` pixels."""

    frames: int
    height: int
    width: int
    fps: int


def resample(frames: Iterable[tuple[Fraction, T]], fps: int, count: int) -> Iterator[T]:
    """`count` frames of a video at `fps`: for each k / fps after the first frame the nearest in time, the earlier of two.

    `frames` are (seconds, frame) in rising order; no more of them are read than needed. A frame whose time does not rise is
    left out. The last frame stands for half a frame (of the video's mean distance) longer than its time; raises BadClipError
    when the last of the wanted times lies behind that.
    """
    made, seen = 0, 0
    start: Fraction | None = None
    last: tuple[Fraction, T] | None = None
    for time, frame in frames:
        start = time if start is None else start
        now = time - start
        if last is not None and now <= last[0]:
            continue
        while made < count and (target := Fraction(made, fps)) <= now:
            yield last[1] if last is not None and target - last[0] <= now - target else frame
            made += 1
        if made == count:
            return
        last, seen = (now, frame), seen + 1
    if last is None:
        raise BadClipError("no frames")
    end = last[0] * (1 + Fraction(1, 2 * max(1, seen - 1)))
    if Fraction(count - 1, fps) > end:
        have, need = f"{float(last[0]):.2f} s", f"{(count - 1) / fps:.2f} s"
        raise BadClipError(f"too short: the last of {seen} frames is {have} after the first, {need} are needed")
    for _ in range(made, count):
        yield last[1]


def read_clip(path: Path, shape: Shape) -> np.ndarray:
    """The clip (T, H, W, 3) uint8 of the video in `path`, by `RULES`. Raises BadClipError with the reason."""
    import av

    size = (shape.height, shape.width)
    try:
        # Nothing but local files: a playlist in disguise must not open a network.
        with av.open(str(path), options={"protocol_whitelist": "file"}) as container:
            if not container.streams.video:
                raise BadClipError("no video stream")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # clips are read side by side
            aspect = stream.sample_aspect_ratio or Fraction(1)
            frames = resample(_timed(container, stream), shape.fps, shape.frames)
            return np.stack([_picture(frame, aspect, size) for frame in frames])
    except (av.FFmpegError, OSError, ValueError) as error:
        raise BadClipError(f"cannot be read: {' '.join(str(error).split())}") from None


def _timed(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[tuple[Fraction, av.VideoFrame]]:
    for number, frame in enumerate(container.decode(stream)):
        if frame.is_corrupt:
            raise BadClipError(f"frame {number} is damaged")
        if frame.pts is None or frame.time_base is None:
            raise BadClipError(f"frame {number} has no time")
        yield frame.pts * frame.time_base, frame


def _picture(frame: av.VideoFrame, aspect: Fraction, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8: pixels made square, turned as the container says, scaled and cropped as every image."""
    from PIL import Image

    if aspect != 1:
        frame = frame.reformat(width=max(1, round(frame.width * aspect)))
    upright = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
    return fit(Image.fromarray(np.ascontiguousarray(upright)), size)
