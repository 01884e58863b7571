"""Sounds that people bring: any file that PyAV decodes, brought to what models hear by stated rules.

* Channels are averaged.
* Another rate than 16 kHz is resampled by a polyphase filter (`scipy.signal.resample_poly`, Kaiser window): frequencies
  above 8 kHz are taken out, not folded.
* What is longer than the clip is cut at its end; what is shorter is followed by silence. Levels stay as they are.
"""

from __future__ import annotations

from fractions import Fraction
from math import gcd
from pathlib import Path

import numpy as np

from flgbench.data.sound import LOUDEST, RATE
from flgbench.errors import UsageError

RULE = (
    "its first track from the time of the first frame on, channels averaged, at 16 kHz by a polyphase filter, silence "
    "before its beginning and behind its end; a clip without a sound track is bad"
)
SLOWEST, FASTEST = 4_000, 384_000  # Hz; other rates are no sound


class NoSoundError(Exception):
    """A file without a sound that can be used. The message is the reason, without the file's name."""


def read_sound(path: Path, samples: int) -> np.ndarray:
    """(samples,) float32 at 16 kHz, from the beginning of `path`. Raises UsageError where there is no sound in it."""
    if not path.is_file():
        raise UsageError(f"--audio {path}: no such file")
    try:
        wave, rate, _ = _decoded(path, samples)
    except NoSoundError as error:
        raise UsageError(f"--audio {path}: {error}") from None
    return fitted(wave, rate, samples)


def read_track(path: Path, samples: int) -> np.ndarray:
    """(samples,) float32 at 16 kHz of the video in `path`, from the time of its first frame on; before its own beginning a
    track is silent. Raises NoSoundError where the video has none."""
    wave, rate, late = _decoded(path, samples)
    start = round(late * rate)
    return fitted(np.pad(wave, ((0, 0), (start, 0))) if start > 0 else wave[:, -start:], rate, samples)


def fitted(wave: np.ndarray, rate: int, samples: int) -> np.ndarray:
    """(samples,) float32 at 16 kHz from `wave` (channels, S) at `rate`, by the rules above."""
    from scipy.signal import resample_poly

    enough = -(-samples * rate // RATE) + rate  # a second more than is kept: the filter's edge
    mono = wave[:, :enough].astype(np.float64).mean(0)
    if rate != RATE:
        divisor = gcd(rate, RATE)
        mono = resample_poly(mono, RATE // divisor, rate // divisor)
    return np.pad(mono[:samples], (0, max(samples - len(mono), 0))).astype(np.float32)


def _decoded(path: Path, samples: int) -> tuple[np.ndarray, int, Fraction]:
    """(channels, S) in [-1, 1], the rate in Hz, and its beginning: seconds behind the first picture, if there is one.

    As long as the file, or as is needed for `samples` at 16 kHz: of a film's track the rest is not decoded.
    """
    import av

    parts: list[np.ndarray] = []
    begins = Fraction(0)
    needed = Fraction(samples, RATE) + 1  # a second more: the filter's edge
    try:
        with av.open(str(path), options={"protocol_whitelist": "file"}) as container:
            if not container.streams.audio:
                raise NoSoundError("has no sound track")
            stream = container.streams.audio[0]
            rate = stream.rate
            resampler = av.AudioResampler(format="fltp", rate=rate)  # the format only
            pictures = [_seconds(video.start_time, video.time_base) for video in container.streams.video]
            for frame in container.decode(stream):
                now = _seconds(frame.pts, frame.time_base)
                if not parts:
                    begins = now
                if now > max([begins, *pictures]) + needed:
                    break
                parts += [part.to_ndarray() for part in resampler.resample(frame)]
    except (av.error.FFmpegError, ValueError) as error:
        raise NoSoundError(f"cannot be read as sound ({' '.join(str(error).split())})") from None
    if not SLOWEST <= rate <= FASTEST:
        raise NoSoundError(f"{rate} samples a second; {SLOWEST} to {FASTEST} can be read")
    if not parts:
        raise NoSoundError("holds no sound, its length is 0")
    wave = np.concatenate(parts, axis=1)
    if not np.isfinite(wave).all():
        raise NoSoundError("holds samples that are no numbers")
    return wave, rate, begins - pictures[0] if pictures else Fraction(0)


def _seconds(ticks: int | None, time_base: Fraction | None) -> Fraction:
    return Fraction(0) if ticks is None or time_base is None else ticks * time_base


def level(wave: np.ndarray) -> float:
    """How loud the loudest tenth of a second is, over the loudest that the procedural sounds are (1)."""
    window = RATE // 10
    power = np.convolve(wave.astype(np.float64) ** 2, np.full(window, 1 / window), mode="same")
    return float(np.sqrt(power.max(initial=0.0)) / (LOUDEST / np.sqrt(2)))
