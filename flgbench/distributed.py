"""One training over several processes, a device each: clips shared out, weights and optimiser states sharded by FSDP2.

Every process runs the same loop. A launcher (`slurm/job.py`) has joined the processes to a `torch.distributed` group
before; without a group there is one process, and only a training at size, which starts a group of one, shards anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def device() -> torch.device:
    """Of this process: the GPU of its place on the node, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # A launcher may show each process only its own GPU.
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def join(**how: Any) -> None:
    """Make one group of processes that a launcher has started; `how` they meet, by default as the environment says."""
    cuda = device().type == "cuda"
    if cuda:
        torch.cuda.set_device(device())
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", **how)


def ensure_group() -> None:
    """A group of this process alone if it is in none: FSDP2, and with it mixed precision, needs one."""
    if not dist.is_initialized():
        join(store=dist.HashStore(), rank=0, world_size=1)


def barrier() -> None:
    if processes() > 1:
        dist.barrier()


def first_says(flag: bool) -> bool:
    """The first process's `flag`, in every process: clocks differ."""
    if processes() == 1:
        return flag
    said = torch.tensor(float(flag))
    dist.broadcast(said, 0)
    return bool(said)


@dataclass(frozen=True)
class Sharding:
    """How a training at size shards: denoisers compute in `compute`, while master weights and reductions stay fp32.

    offload: weights, gradients and optimiser states wait on the CPU between their uses.
    """

    compute: torch.dtype
    offload: bool = False


def shard(
    modules: Mapping[str, nn.Module],
    optimizers: Iterable[torch.optim.Optimizer],
    sharding: Sharding | None = None,
    masters: bool = True,
) -> None:
    """Shard every module over the processes, in place, block by block; optimisers take the shards as their parameters.

    Has to come before the first step of an optimiser, whose state would be that of whole parameters. Without `sharding`
    nothing is done to the modules of a single process, and those of several compute in their own precision. With it the
    weights are the first process's, so the others' may be on the meta device, and no device ever holds more than a block;
    `masters` makes fp32 master weights of what is trained, and of modules in which nothing is (targets).
    """
    if processes() == 1 and sharding is None:
        return
    places = {id(p): (key, name) for key, module in modules.items() for name, p in module.named_parameters()}
    for module in modules.values():
        trained = [p for p in module.parameters() if p.requires_grad] or list(module.parameters())
        _shard(module, sharding, {id(p) for p in trained} if masters else set())
    shards = {(key, name): p for key, module in modules.items() for name, p in module.named_parameters()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["params"] = [shards[places[id(p)]] for p in group["params"]]


def _shard(module: nn.Module, sharding: Sharding | None, masters: set[int]) -> None:
    # diffusers' names of the classes of blocks; what has none (a discriminator's head) is small and computes in fp32.
    block_names = getattr(module, "_no_split_modules", None) or ()
    blocks = [part for part in module.modules() if type(part).__name__ in block_names]
    offload = CPUOffloadPolicy(pin_memory=torch.cuda.is_available()) if sharding and sharding.offload else OffloadPolicy()
    plain = MixedPrecisionPolicy(cast_forward_inputs=False)
    inner = outer = plain
    if sharding and blocks:
        # Inputs are cast once, at the door, but for those that bf16 cannot tell apart: times, and with them rotary angles.
        inner = MixedPrecisionPolicy(sharding.compute, torch.float32, cast_forward_inputs=False)
        outer = MixedPrecisionPolicy(sharding.compute, torch.float32, torch.float32, cast_forward_inputs=False)
        module.register_forward_pre_hook(_cast_inputs(sharding.compute), with_kwargs=True)
    parts = [(part, plain) for part in _kept_in_fp32(module, blocks)] if sharding else []
    for part, policy in [*parts, *((block, inner) for block in blocks), (module, outer)]:
        if sharding:
            _receive(part, masters)
        fully_shard(part, mp_policy=policy, offload_policy=offload)
    # FSDP2 learns at the first pass which blocks belong together. If that pass skips some, these stay on their own, and
    # gradients that wait for a reduction are lost where the last pass skips them again.
    module._get_fsdp_state()._lazy_init()  # type: ignore[operator]


def _receive(part: nn.Module, masters: set[int]) -> None:
    """The first process's weights and buffers of all that is not sharded yet, on this device; `masters` become fp32."""
    for owner in part.modules():
        for name, weight in list(owner.named_parameters(recurse=False)):
            if not isinstance(weight, DTensor):
                dtype = torch.float32 if id(weight) in masters else weight.dtype
                setattr(owner, name, nn.Parameter(_from_first(weight.detach(), dtype), weight.requires_grad))
        for name, buffer in list(owner.named_buffers(recurse=False)):
            owner._buffers[name] = _from_first(buffer, buffer.dtype)


def _from_first(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if processes() == 1:
        return tensor.to(device(), dtype)
    received = torch.empty(tensor.shape, dtype=dtype, device=device())
    if rank() == 0:
        received.copy_(tensor)
    dist.broadcast(received, 0)
    return received


def _kept_in_fp32(module: nn.Module, blocks: Iterable[nn.Module]) -> list[nn.Module]:
    """Parts outside the blocks that diffusers keeps in fp32, such as the time embedding; norms inside compute so anyway."""
    names = getattr(module, "_keep_in_fp32_modules", None) or ()
    inside = {id(part) for block in blocks for part in block.modules()}
    found = [part for name, part in module.named_modules() if name.rpartition(".")[2] in names and id(part) not in inside]
    return [part for part in found if next(part.parameters(), None) is not None]


def _cast_inputs(dtype: torch.dtype) -> Any:
    def cast(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {name: value if name == "timestep" else _cast(value, dtype) for name, value in kwargs.items()}

    return cast


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def reduce_gradients(modules: Iterable[nn.Module], flag: bool) -> None:
    """Whether the next backward reduces gradients over the processes, or each keeps its own whole ones to add to."""
    for module in modules:
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(flag)


def reshard(modules: Iterable[nn.Module]) -> None:
    """Back to shards, for a module whose last pass had no backward: `parameters()` would give its gathered weights."""
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
