"""Log-mel frames of a waveform: what a model hears.

    P(j, k) = 2 |sum_n w_n x_(n + 500 (j + 1/2) - 512) exp(-2 pi i k n / 1024)|^2 / (1024 sum_n w_n^2),   w: Hann

is the power of frame j at frequency k * 15.625 Hz: over all k it adds up to the mean square of the windowed sound. Bands
are triangles of height 1 whose corners are evenly spaced by mel(f) = 2595 log10(1 + f / 700) from 50 Hz to 8 kHz
(HTK's formula): neighbouring ones add up to 1, so that between the outer centres no power is lost. A frame holds

    1 + log10(max(band's power, 1e-6)) / 6,

which is 0 in silence (below -60 dB) and 1 for a power of 1.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from flgbench.data.sound import RATE

HOP, WINDOW = 500, 1024  # samples: a frame each 31.25 ms, of 64 ms
BANDS, LOWEST, HIGHEST = 32, 50.0, 8000.0  # Hz
FLOOR = 1e-6


def mel(frequency: np.ndarray | float) -> np.ndarray:
    return 2595 * np.log10(1 + np.asarray(frequency) / 700)


def band_corners() -> np.ndarray:
    """(BANDS + 2,) frequencies in Hz; band b begins at b, is 1 at b + 1 and ends at b + 2."""
    return 700 * (10 ** (np.linspace(mel(LOWEST), mel(HIGHEST), BANDS + 2) / 2595) - 1)


@lru_cache(maxsize=1)
def filters() -> np.ndarray:
    """(BANDS, WINDOW / 2 + 1) weights of every frequency in every band."""
    frequencies, corners = np.fft.rfftfreq(WINDOW, 1 / RATE), band_corners()
    return np.stack([np.interp(frequencies, corners[b : b + 3], (0, 1, 0)) for b in range(BANDS)])


def powers(waveform: np.ndarray) -> np.ndarray:
    """(N, S / 500, BANDS) power of `waveform` (N, S), S a multiple of 500; outside of it is silence."""
    before = WINDOW // 2 - HOP // 2
    padded = np.pad(waveform.astype(np.float64), ((0, 0), (before, WINDOW)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW, axis=1)[:, : waveform.shape[1] : HOP]
    shape = np.hanning(WINDOW + 1)[:-1]
    spectrum = 2 * np.abs(np.fft.rfft(windows * shape)) ** 2 / (WINDOW * (shape**2).sum())
    return spectrum @ filters().T


def mel_frames(waveform: np.ndarray) -> np.ndarray:
    """(N, S / 500, BANDS) float32 log-mel frames of `waveform` (N, S), in about [0, 1]."""
    return (1 - np.log10(np.maximum(powers(waveform), FLOOR)) / np.log10(FLOOR)).astype(np.float32)
