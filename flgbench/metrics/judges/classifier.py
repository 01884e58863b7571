"""A small 3-D convolutional network that names the factors of a clip, and whose bottleneck serves the set distances.

Unlike the measures against the truth it knows nothing of sprites, palette or background: it was trained on clips. It was
accepted only when it was right about every factor on at least 99 % of fresh real clips (`gate.json` beside its weights).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from flgbench.data import shapes
from flgbench.metrics import judges
from flgbench.shipped import verify

WEIGHTS = judges.WEIGHTS / "classifier"
CLASSES = {
    "shape": len(shapes.SHAPES),
    "colour": len(shapes.COLOURS),
    "size": len(shapes.SIZES),
    "direction": len(shapes.DIRECTIONS),
    "speed": len(shapes.SPEEDS),
    "background": len(shapes.BACKGROUNDS),
    "turn": len(shapes.TURNS),
}
CAPTIONED = tuple(name for name in CLASSES if name != "turn")
FEATURES = 16  # units of the bottleneck: few, for a Frechet distance needs 16 clips for each
_CHUNK = 32


def _stage(inward: int, outward: int, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> nn.Sequential:
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    conv = nn.Conv3d(inward, outward, kernel, stride, padding, bias=False)
    return nn.Sequential(conv, nn.BatchNorm3d(outward), nn.ReLU())


class FactorNet(nn.Module):
    """Clips (N, 3, 17, 64, 64) in [0, 1] to logits of every factor in `CLASSES`.

    Pooling over the picture but not over time: where an object is does not matter, what it does when does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _stage(3, 24, (3, 5, 5), (2, 2, 2)),
            _stage(24, 48, (3, 3, 3), (1, 2, 2)),
            _stage(48, 96, (3, 3, 3), (2, 2, 2)),
            _stage(96, 96, (3, 3, 3), (1, 1, 1)),
        )
        self.hidden = nn.Sequential(nn.Linear(2 * 5 * 96, 192), nn.ReLU())
        self.heads = nn.ModuleDict({name: nn.Linear(192, n) for name, n in CLASSES.items()})
        # The bottleneck has heads of its own, so that it carries all factors; tanh bounds every unit.
        self.bottleneck = nn.Sequential(nn.Linear(192, FEATURES), nn.Tanh())
        self.narrow_heads = nn.ModuleDict({name: nn.Linear(FEATURES, n) for name, n in CLASSES.items()})

    def trunk(self, clips: torch.Tensor) -> torch.Tensor:
        x = self.body(clips - 0.25)
        pooled = torch.cat([x.amax((3, 4)), x.mean((3, 4))], dim=1)
        return self.hidden(pooled.flatten(1))

    def forward(self, clips: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.trunk(clips)
        return {name: head(hidden) for name, head in self.heads.items()}


def to_input(video: torch.Tensor) -> torch.Tensor:
    """(N, 17, 64, 64, 3) uint8 to what the network takes. Raises ValueError for other clips."""
    if video.dtype != torch.uint8 or video.shape[1:] != (shapes.FRAMES, shapes.SIZE, shapes.SIZE, 3):
        raise ValueError(f"expected uint8 video (N, 17, 64, 64, 3), got {video.dtype} {tuple(video.shape)}")
    return video.permute(0, 4, 1, 2, 3).float() / 255


@lru_cache(maxsize=1)
def load() -> FactorNet:
    """The shipped network. Raises UsageError where its weights are damaged."""
    verify(WEIGHTS)
    net = FactorNet()
    net.load_state_dict(load_file(WEIGHTS / "model.safetensors"))
    return net.float().requires_grad_(False).eval()


@torch.inference_mode()
def examine(video: torch.Tensor, net: FactorNet | None = None) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The class it names for each factor, each (N,), and the bottleneck (N, 16) float64, of `video` (N, 17, 64, 64, 3)."""
    net = net or load()
    named: dict[str, list[torch.Tensor]] = {name: [] for name in CLASSES}
    features = [torch.zeros(0, FEATURES)]
    for part in video.split(_CHUNK):
        hidden = net.trunk(to_input(part))
        for name, head in net.heads.items():
            named[name].append(head(hidden).argmax(1))
        features.append(net.bottleneck(hidden))
    classes = {name: torch.cat(parts).numpy() if parts else np.zeros(0, np.int64) for name, parts in named.items()}
    return classes, torch.cat(features).numpy().astype(np.float64)
