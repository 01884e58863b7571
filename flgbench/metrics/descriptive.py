"""Measures that describe a clip more than they judge it, and drifts of the main object.

Smoothness and flow are easily won: interpolation error falls under blur and in frozen clips, flow rises under jitter with
the motion unchanged. They stand beside the others, as ratios to the truth, and never decide anything.
"""

from __future__ import annotations

import hashlib
import math

import cv2
import numpy as np
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from flgbench.data import shapes
from flgbench.metrics.tracking import Track, core_colour, patches

EARLY, LATE = slice(1, 6), slice(12, 17)  # frames between which drifts are taken
FASTEST = 0.05  # share of pixels whose flow counts, as in VBench's dynamic degree
STILL = 0.05  # px a frame; added on both sides of the flow's ratio, so that a true standstill divides nothing
MOST_KEPT = 64  # sets of true clips whose measures are remembered, some numbers a clip

_kept: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}


def drifts(video: torch.Tensor, track: Track, factors: shapes.Factors) -> dict[str, np.ndarray]:
    """`missing_frames`, `area_drift` and `colour_drift` of the tracked object; NaN where it is not seen early or late."""
    window, _ = patches(track.weight, track.centre)
    area = window.sum((-2, -1)).numpy().astype(np.float64)
    early, late = (_mean(area[:, part], track.found[:, part]) for part in (EARLY, LATE))
    colour = core_colour(video, track.centre, factors.size)
    before, after = (_mean(colour[:, part], track.found[:, part, None]) for part in (EARLY, LATE))
    with np.errstate(divide="ignore"):
        change = np.abs(np.log2(late / early))
    return {
        "missing_frames": 1 - track.found.mean(1),
        "area_drift": np.where(np.isfinite(change), change, np.nan),
        "colour_drift": np.linalg.norm(after - before, axis=1),
    }


def _mean(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Mean over the second axis of what is known and finite; NaN where nothing is."""
    known = known & np.isfinite(values)
    count = known.sum(1)
    total = np.where(known, values, 0).sum(1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def against_truth(video: torch.Tensor, truth: torch.Tensor) -> dict[str, np.ndarray]:
    """`first_frame_ssim`, `interpolation_ratio` and `flow_ratio` of `video` against `truth`, both (N, T, H, W, 3) uint8."""
    due_error, due_flow = _of_truth(truth)
    return {
        "first_frame_ssim": _ssim(video[:, 0], truth[:, 0]),
        "interpolation_ratio": _interpolation_error(video) / np.maximum(due_error, 1e-6),
        "flow_ratio": (_flow(video) + STILL) / (due_flow + STILL),
    }


def _of_truth(truth: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Interpolation error and flow of true clips; kept, for all cells of a run are held against the same ones."""
    digest = hashlib.sha256(truth.numpy().tobytes()).digest()
    if digest not in _kept:
        if len(_kept) >= MOST_KEPT:
            _kept.pop(next(iter(_kept)))
        _kept[digest] = _interpolation_error(truth), _flow(truth)
    return _kept[digest]


def without_truth(video: torch.Tensor, given: torch.Tensor) -> dict[str, np.ndarray]:
    """What needs no truth but the `given` first frames (N, H, W, 3), of `video` (N, T, H, W, 3) uint8; each (N,) float64.

    `sharpness_kept` is NaN where the given image has no edges at all. Clip by clip: full-size ones fill the memory.
    """
    clips = [video[i : i + 1] for i in range(len(video))]
    given_edges = _edges(given)
    made_edges = np.array([_edges(clip[0, 1:]).mean() for clip in clips])
    return {
        "first_frame_psnr": psnr(video[:, 0], given),
        "first_frame_ssim": _ssim(video[:, 0], given),
        "sharpness_kept": np.where(given_edges > 0, made_edges / np.maximum(given_edges, 1e-9), np.nan),
        "luminance_flicker": np.array([_flicker(clip[0]) for clip in clips]),
        "flow_speed": np.concatenate([_flow(clip) for clip in clips]),
        "interpolation_error": np.concatenate([_interpolation_error(clip) for clip in clips]),
    }


def _luminance(frames: torch.Tensor) -> torch.Tensor:
    """(N, H, W) grey levels of (N, H, W, 3) uint8 frames."""
    return frames.float() @ torch.tensor([0.299, 0.587, 0.114])


def _edges(frames: torch.Tensor) -> np.ndarray:
    """Root mean square difference of neighbouring pixels' luminance, (N,) float64 grey levels."""
    grey = _luminance(frames)
    across, down = (grey.diff(dim=axis).square().mean((1, 2)) for axis in (2, 1))
    return (across + down).sqrt().numpy().astype(np.float64)


def _flicker(clip: torch.Tensor) -> float:
    """Mean |L(t+1) - 2 L(t) + L(t-1)| of the luminance of an 8 x 8 grid of cells of a clip (T, H, W, 3)."""
    cells = torch.nn.functional.adaptive_avg_pool2d(_luminance(clip)[:, None], 8)
    return float((cells[2:] - 2 * cells[1:-1] + cells[:-2]).abs().mean())


def psnr(made: torch.Tensor, due: torch.Tensor) -> np.ndarray:
    """PSNR in dB, (N,) float64, of uint8 clips (N, ...); at most 58.9, where the error is 1/12: what rounding leaves."""
    most = 10 * math.log10(12 * 255**2)
    found = [peak_signal_noise_ratio(a.double(), b.double(), data_range=255.0) for a, b in zip(made, due, strict=True)]
    return np.minimum(np.array([float(value) for value in found], np.float64), most)


def _ssim(made: torch.Tensor, due: torch.Tensor) -> np.ndarray:
    made, due = (x.permute(0, 3, 1, 2).float() for x in (made, due))
    found = structural_similarity_index_measure(made, due, reduction="none", data_range=255.0)
    assert isinstance(found, torch.Tensor)
    return np.atleast_1d(found.numpy()).astype(np.float64)


def _interpolation_error(video: torch.Tensor) -> np.ndarray:
    """Mean absolute difference, in grey levels, of frames to the mean of their neighbours."""
    frames = video.float()
    return (frames[:, 1:-1] - (frames[:, :-2] + frames[:, 2:]) / 2).abs().mean((1, 2, 3, 4)).numpy().astype(np.float64)


def _flow(video: torch.Tensor) -> np.ndarray:
    """Mean magnitude (px a frame) of the fastest 5 % of pixels in Farneback's optical flow between neighbouring frames."""
    cv2.setNumThreads(1)
    top = max(1, round(FASTEST * video.shape[2] * video.shape[3]))
    found = np.zeros(len(video))
    for i, clip in enumerate(video.numpy()):
        grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip]
        for a, b in zip(grey[:-1], grey[1:], strict=True):
            flow = cv2.calcOpticalFlowFarneback(a, b, np.zeros((*a.shape, 2), np.float32), 0.5, 3, 9, 2, 5, 1.1, 0)
            speed = np.partition(np.linalg.norm(flow, axis=-1).ravel(), -top)[-top:]
            found[i] += speed.mean() / (len(grey) - 1)
    return found
