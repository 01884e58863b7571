"""Measures by trained judges: a classifier of factors, a CLIP model, LPIPS, and the field's set distances on our features.

They see what the rules of `truth` do not, and are blind where their training made them invariant: the self-test shows it.
"""

from __future__ import annotations

import warnings
from functools import lru_cache

import numpy as np
import torch
from safetensors.torch import load_file

from flgbench.data import shapes
from flgbench.data.captions import captions_of
from flgbench.metrics.judges import classifier
from flgbench.metrics.judges.clip_alignment import alignment
from flgbench.metrics.judges.lpips_first_frame import first_frame_lpips, why_not

CLIPS_A_FEATURE = 16  # a Frechet distance of fewer clips for each feature ranks worse models better (evaluation.md 3)
FRECHET_CLIPS = CLIPS_A_FEATURE * classifier.FEATURES
KERNEL_CLIPS = 32
KERNEL_SUBSETS = 100


def judged(video: torch.Tensor, factors: shapes.Factors) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Every learned measure of clips (N, 17, 64, 64, 3) uint8, each (N,) float64, and the classifier's features (N, 16)."""
    named, features = classifier.examine(video)
    right = {f"named_{k}": (named[k] == getattr(factors, k)).astype(np.float64) for k in classifier.CAPTIONED}
    found = right | {
        "named_all": np.stack(list(right.values())).min(0),
        "clip_alignment": alignment(video, captions_of(factors)),
        "first_frame_lpips": np.full(len(video), np.nan),
    }
    if not why_not():
        found["first_frame_lpips"] = first_frame_lpips(video[:, 0], shapes.render(factors)[:, 0])
    return found, features


@lru_cache(maxsize=1)
def real_features() -> np.ndarray:
    """The classifier's features (4096, 16) of the fresh real clips of its gate: they ship with it."""
    return load_file(classifier.WEIGHTS / "real_features.safetensors")["features"].numpy().astype(np.float64)


def distances(features: np.ndarray) -> dict[str, float]:
    """torchmetrics' FID and KID of `features` (N, 16) to real clips'. NaN below 256 and 32 clips, where they mislead."""
    found = {"frechet": float("nan"), "kernel": float("nan")}
    if len(features) >= FRECHET_CLIPS:
        found["frechet"] = _frechet(features, real_features())
    if len(features) >= KERNEL_CLIPS:
        found["kernel"] = _kernel(features, real_features())
    return found


class Features(torch.nn.Module):
    """Takes the classifier's features where torchmetrics would have pictures go through a network."""

    num_features = classifier.FEATURES

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def _frechet(made: np.ndarray, real: np.ndarray) -> float:
    from torchmetrics.image.fid import FrechetInceptionDistance  # the package lists it only beside torch-fidelity

    metric = FrechetInceptionDistance(feature=Features())
    metric.set_dtype(torch.float64)
    return _compared(metric, made, real)


def _kernel(made: np.ndarray, real: np.ndarray) -> float:
    from torchmetrics.image.kid import KernelInceptionDistance

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it keeps all features: they are few
        metric = KernelInceptionDistance(feature=Features(), subsets=KERNEL_SUBSETS, subset_size=len(made) // 2)
    with torch.random.fork_rng():  # it draws its subsets from the global generator
        torch.manual_seed(0)
        return _compared(metric, made, real)


def _compared(metric, made: np.ndarray, real: np.ndarray) -> float:
    for features, is_real in ((real, True), (made, False)):
        metric.update(torch.from_numpy(features), real=is_real)
    value = metric.compute()
    return float(value[0] if isinstance(value, tuple) else value)
