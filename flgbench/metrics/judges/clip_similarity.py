"""Do the frames of a clip agree with its prompt, by OpenAI's CLIP ViT-L/14, where its weights are on this disk.

OpenAI's file is a pickle; here it is read as safetensors, which the command in `ENABLE` makes of it. Nothing is downloaded
unasked. It looks at frames one by one: it knows nothing of motion, and a frozen clip scores as the real one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from flgbench.metrics.judges import clip_alignment

FILE = Path("~/.cache/clip").expanduser() / "ViT-L-14.safetensors"  # beside what the `clip` package keeps
ENABLE = (
    "python -c 'import clip; from pathlib import Path; from safetensors.torch import save_file; "
    'model = clip.load("ViT-L/14", device="cpu")[0]; save_file({k: v.contiguous() for k, v in model.state_dict().items()}, '
    f'Path("~/.cache/clip").expanduser() / "{FILE.name}")'
    "'"
)


def why_not() -> str:
    """The reason why it cannot run here; empty where it can."""
    return "" if FILE.is_file() else f"not run: no {FILE.name} in ~/.cache/clip; {ENABLE} makes it"


@lru_cache(maxsize=1)
def _loaded(file: Path) -> clip_alignment.Loaded:
    with tempfile.TemporaryDirectory() as folder:  # the package reads torch's format
        repacked = Path(folder) / "model.pt"
        torch.save(load_file(file), repacked)
        return clip_alignment.load(repacked)


def similarity(video: torch.Tensor, prompts: Sequence[str]) -> np.ndarray:
    """Mean cosine, (N,) float64 in [-1, 1], of each clip (N, T, H, W, 3) uint8, in five frames from first to last, and its
    prompt, which is read up to CLIP's 77 tokens. Needs the file of weights."""
    spread = np.linspace(0, video.shape[1] - 1, 5).round().astype(int).tolist()
    return clip_alignment.alignment(video, prompts, _loaded(FILE), spread)
