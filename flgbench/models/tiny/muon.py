"""Muon in fp32: momentum whose matrix is orthogonalised before the step (Jordan et al. 2024, github KellerJordan/Muon).

torch.optim.Muon orthogonalises in bf16, which most CPUs compute many times slower than fp32, and takes no convolutions.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from flgbench.models.tiny import parallel


def orthogonalise(matrix: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """Nearest semi-orthogonal matrix, roughly (singular values 0.7 to 1.2), by the quintic Newton-Schulz iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Muon(torch.optim.Optimizer):
    """For weights of two or more dimensions, seen as (out, everything else). Update RMS is 0.2 lr, as AdamW's."""

    def __init__(self, weights: Iterable[torch.nn.Parameter], lr: float, momentum: float = 0.95, decay: float = 0.01):
        super().__init__(weights, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            weights = [w for w in group["params"] if w.grad is not None]
            directions = [torch.zeros_like(w) for w in weights]
            for i, weight in enumerate(weights):
                buffer = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                buffer.lerp_(weight.grad, 1 - group["momentum"])
                # The processes share the work: each orthogonalises its part, the sum brings the parts together.
                if i % parallel.processes() == parallel.rank():
                    nesterov = weight.grad.lerp(buffer, group["momentum"])
                    directions[i] = orthogonalise(nesterov.reshape(len(weight), -1)).reshape(weight.shape)
            parallel.sum_over_processes(directions)
            for weight, direction in zip(weights, directions, strict=True):
                scale = 0.2 * max(len(weight), weight[0].numel()) ** 0.5
                weight.mul_(1 - group["lr"] * group["decay"])
                weight.add_(direction, alpha=-group["lr"] * scale)
