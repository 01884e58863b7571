"""Sounds that people bring: any file that PyAV decodes, brought to what models hear by stated rules.

* Channels are averaged.
* Another rate than 16 kHz is resampled by a polyphase filter (`scipy.signal.resample_poly`, Kaiser window): frequencies
  above 8 kHz are taken out, not folded.
* What is longer than the clip is cut at its end; what is shorter is followed by silence. Levels stay as they are.
"""

from __future__ import annotations

from math import gcd
from pathlib import Path

import numpy as np

from flgbench.data.sound import LOUDEST, RATE
from flgbench.errors import UsageError

SLOWEST, FASTEST = 4_000, 384_000  # Hz; other rates are no sound


def read_sound(path: Path, samples: int) -> np.ndarray:
    """(samples,) float32 at 16 kHz, from the beginning of `path`. Raises UsageError where there is no sound in it."""
    if not path.is_file():
        raise UsageError(f"--audio {path}: no such file")
    wave, rate = _decoded(path)
    if not SLOWEST <= rate <= FASTEST:
        raise UsageError(f"--audio {path}: {rate} samples a second; {SLOWEST} to {FASTEST} can be read")
    if not wave.size:
        raise UsageError(f"--audio {path}: holds no sound, its length is 0")
    if not np.isfinite(wave).all():
        raise UsageError(f"--audio {path}: holds samples that are no numbers")
    return fitted(wave, rate, samples)


def fitted(wave: np.ndarray, rate: int, samples: int) -> np.ndarray:
    """(samples,) float32 at 16 kHz from `wave` (channels, S) at `rate`, by the rules above."""
    from scipy.signal import resample_poly

    enough = -(-samples * rate // RATE) + rate  # a second more than is kept: the filter's edge
    mono = wave[:, :enough].astype(np.float64).mean(0)
    if rate != RATE:
        divisor = gcd(rate, RATE)
        mono = resample_poly(mono, RATE // divisor, rate // divisor)
    return np.pad(mono[:samples], (0, max(samples - len(mono), 0))).astype(np.float32)


def _decoded(path: Path) -> tuple[np.ndarray, int]:
    """(channels, S) in [-1, 1] and the rate in Hz."""
    import av

    parts: list[np.ndarray] = []
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise UsageError(f"--audio {path}: has no sound track")
            stream = container.streams.audio[0]
            rate = stream.rate
            resampler = av.AudioResampler(format="fltp", rate=rate)  # the format only
            for frame in container.decode(stream):
                parts += [part.to_ndarray() for part in resampler.resample(frame)]
    except (av.error.FFmpegError, ValueError) as error:
        raise UsageError(f"--audio {path}: cannot be read as sound ({' '.join(str(error).split())})") from None
    return np.concatenate(parts, axis=1) if parts else np.zeros((1, 0), np.float32), rate


def level(wave: np.ndarray) -> float:
    """How loud the loudest tenth of a second is, over the loudest that the procedural sounds are (1)."""
    window = RATE // 10
    power = np.convolve(wave.astype(np.float64) ** 2, np.full(window, 1 / window), mode="same")
    return float(np.sqrt(power.max(initial=0.0)) / (LOUDEST / np.sqrt(2)))
