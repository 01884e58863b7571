"""LPIPS (arXiv 1801.03924) by the `lpips` package, where the weights of its trunk are on this disk.

The package ships the linear heads only. AlexNet's weights belong to torchvision, whose file is a pickle; here they are read
as safetensors, which the command in `ENABLE` makes of it. Nothing is downloaded unasked.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

TRUNK = "alexnet-features.safetensors"  # the convolutions of torchvision's AlexNet_Weights.IMAGENET1K_V1
ENABLE = (
    "python -c 'import torch, torchvision; from safetensors.torch import save_file; "
    'save_file(torchvision.models.alexnet(weights="DEFAULT").features.state_dict(), '
    f'torch.hub.get_dir() + "/checkpoints/{TRUNK}")'
    "'"
)


def trunk_file() -> Path:
    """Beside what torchvision keeps: under $TORCH_HOME, by default ~/.cache/torch."""
    return Path(torch.hub.get_dir()) / "checkpoints" / TRUNK


def why_not() -> str:
    """The reason why LPIPS cannot run here; empty where it can."""
    file = trunk_file()
    return "" if file.is_file() else f"not run: no {TRUNK} in {file.parent.name} of torch's hub folder; {ENABLE} makes it"


@lru_cache(maxsize=1)
def _network(file: Path) -> torch.nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package still says `pretrained=`
        import lpips

        network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    weights = load_file(file)
    for i in range(1, 6):  # the package cuts AlexNet's features into five slices, and keeps their numbers
        part = getattr(network.net, f"slice{i}")
        part.load_state_dict({k: weights[k] for k in part.state_dict()})
    return network.requires_grad_(False).eval()


@torch.inference_mode()
def first_frame_lpips(made: torch.Tensor, due: torch.Tensor) -> np.ndarray:
    """LPIPS (N,) float64 of frames (N, H, W, 3) uint8 and the given ones; 0 is identical. Needs the trunk's file."""
    network = _network(trunk_file())
    pairs = (x.permute(0, 3, 1, 2).float() / 255 for x in (made, due))
    return network(*pairs, normalize=True).flatten().numpy().astype(np.float64)
