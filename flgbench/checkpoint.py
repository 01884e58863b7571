"""Whole training checkpoints in one safetensors file: module weights, optimiser states, scalars.

Of a training over several processes too: shards are gathered, the first process writes, every process reads.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from flgbench import distributed


def save_checkpoint(
    path: Path,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    tensors: Mapping[str, torch.Tensor],
    scalars: Mapping[str, float],
) -> None:
    """Write the file whole or not at all. `tensors` holds further weights (an EMA), `scalars` counters."""
    content: dict[str, torch.Tensor] = {f"tensor/{k}": v for k, v in tensors.items()}
    for name, module in modules.items():
        content |= {f"module/{name}/{k}": v for k, v in module.state_dict().items()}
    for name, optimizer in optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            content |= {f"optimizer/{name}/{index}/{k}": torch.as_tensor(v) for k, v in state.items()}
    content |= {f"scalar/{k}": torch.tensor(v, dtype=torch.float64) for k, v in scalars.items()}
    content = {k: distributed.whole(v.detach()) for k, v in content.items()}
    if distributed.rank() > 0:
        return
    partial = path.with_suffix(".partial")
    # clone: weights that share memory (tied embeddings) are stored one by one
    save_file({k: v.clone().contiguous() for k, v in content.items()}, partial)
    os.replace(partial, path)


def load_checkpoint(
    path: Path, modules: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Restore modules and optimisers in place; returns (tensors, scalars) as they were saved."""
    content = load_file(path)

    def under(prefix: str) -> dict[str, torch.Tensor]:
        return {k[len(prefix) :]: v for k, v in content.items() if k.startswith(prefix)}

    for name, module in modules.items():
        present = module.state_dict()
        saved = under(f"module/{name}/")
        module.load_state_dict({k: distributed.sharded_like(v, present.get(k)) for k, v in saved.items()})
    for name, optimizer in optimizers.items():
        state: dict[int, dict[str, torch.Tensor]] = {}
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for key, value in under(f"optimizer/{name}/").items():
            index, _, field = key.partition("/")
            state.setdefault(int(index), {})[field] = distributed.sharded_like(value, parameters[int(index)])
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return under("tensor/"), {k: v.item() for k, v in under("scalar/").items()}
