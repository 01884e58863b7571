"""One training over several processes, a device each: clips shared out, weights and optimiser states sharded by FSDP2.

Every process runs the same loop. A launcher (`slurm/job.py`) has joined the processes to a `torch.distributed` group
before; without a group there is one process, and everything here does nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def first_says(flag: bool) -> bool:
    """The first process's `flag`, in every process: clocks differ."""
    if processes() == 1:
        return flag
    said = torch.tensor(float(flag))
    dist.broadcast(said, 0)
    return bool(said)


def shard(modules: Mapping[str, nn.Module], optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Shard every module over the processes, in place, block by block; optimisers take the shards as their parameters.

    Has to come before the first step of an optimiser, whose state would be that of whole parameters.
    """
    if processes() == 1:
        return
    places = {id(p): (key, name) for key, module in modules.items() for name, p in module.named_parameters()}
    for module in modules.values():
        whole = getattr(module, "_no_split_modules", None) or ()  # diffusers' names of the classes of blocks
        for part in list(module.modules()):
            if type(part).__name__ in whole:
                fully_shard(part)
        fully_shard(module)
    shards = {(key, name): p for key, module in modules.items() for name, p in module.named_parameters()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["params"] = [shards[places[id(p)]] for p in group["params"]]


def reshard(modules: Iterable[nn.Module]) -> None:
    """Back to shards, for a module whose last pass had no backward: `parameters()` would give its gathered weights."""
    if processes() == 1:
        return
    for module in modules:
        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The full tensor of a shard; every process has to ask at the same time. Anything else as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_like(tensor: torch.Tensor, shard: torch.Tensor | None) -> torch.Tensor:
    """A full tensor, the same in every process, sharded as `shard` is (not at all if that is not)."""
    if not isinstance(shard, DTensor) or tensor.shape != shard.shape:  # an optimiser's step count is a scalar
        return tensor
    return distribute_tensor(tensor, shard.device_mesh, shard.placements)


def average(losses: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Scalars averaged over the processes, so that all log and judge the same; other tensors are left as they are."""
    if processes() == 1:
        return dict(losses)
    names = [name for name, value in losses.items() if value.ndim == 0]
    values = torch.stack([whole(losses[name].detach()).float() for name in names])
    dist.all_reduce(values)
    return dict(losses) | dict(zip(names, values / processes(), strict=True))
