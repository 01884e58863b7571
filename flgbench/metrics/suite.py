"""Everything that can be measured of clips made from a suite of images and prompts, and why the rest cannot be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from flgbench.metrics.descriptive import without_truth
from flgbench.metrics.judges import clip_similarity, lpips_first_frame
from flgbench.metrics.table import ALL_METRICS

NO_TRUTH = "not run: the suite has no ground truth"
ELSEWHERE = ("teacher_psnr",)  # measured where the clips of two cells are at hand


def measure(video: torch.Tensor, given: torch.Tensor, prompts: Sequence[str]) -> dict[str, np.ndarray]:
    """Every measure that runs here, each (N,) float64, of `video` (N, T, H, W, 3) and its `given` first frames."""
    found = without_truth(video, given)
    if not lpips_first_frame.why_not():
        pairs = [lpips_first_frame.first_frame_lpips(video[i : i + 1, 0], given[i : i + 1]) for i in range(len(video))]
        found["first_frame_lpips"] = np.concatenate(pairs)
    if not clip_similarity.why_not():
        found["clip_similarity"] = clip_similarity.similarity(video, prompts)
    return found


def not_run(measured: Sequence[str]) -> dict[str, str]:
    """Every other measure of the table, with the reason why it has no value."""
    reasons = {
        "first_frame_lpips": lpips_first_frame.why_not(),
        "clip_similarity": clip_similarity.why_not(),
        "clip_alignment": "not run: this CLIP knows procedural clips only; clip_similarity is by OpenAI's",
    }
    return {name: reasons.get(name, NO_TRUTH) for name in ALL_METRICS if name not in (*measured, *ELSEWHERE)}
