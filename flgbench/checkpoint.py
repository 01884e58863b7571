"""Training checkpoints in safetensors: module weights, optimiser states, scalars.

Whole, in one file: of a training over several processes the shards are gathered, the first process writes, all read.
At size, in a folder to which each process writes its own shards (`torch.distributed.checkpoint`): nothing is gathered, and
nothing is ever unpickled, because the shards are described in the headers of safetensors files.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter

from flgbench import distributed
from flgbench.errors import StageFailure

FILE_BYTES = 5 * 2**30  # of one file of weights, as diffusers splits them


def save_checkpoint(
    path: Path,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    tensors: Mapping[str, torch.Tensor],
    scalars: Mapping[str, float],
) -> None:
    """Write the file whole or not at all. `tensors` holds further weights (an EMA), `scalars` counters."""
    content = {k: distributed.whole(v) for k, v in _content(modules, optimizers, tensors, scalars).items()}
    if distributed.rank() > 0:
        return
    partial = path.with_suffix(".partial")
    # clone: weights that share memory (tied embeddings) are stored one by one
    save_file({k: v.clone().contiguous() for k, v in content.items()}, partial)
    os.replace(partial, path)


def _content(
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    tensors: Mapping[str, torch.Tensor],
    scalars: Mapping[str, float],
) -> dict[str, torch.Tensor]:
    """Everything under one name each."""
    content: dict[str, torch.Tensor] = {f"tensor/{k}": v for k, v in tensors.items()}
    for name, module in modules.items():
        content |= {f"module/{name}/{k}": v for k, v in module.state_dict().items()}
    for name, optimizer in optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            content |= {f"optimizer/{name}/{index}/{k}": torch.as_tensor(v) for k, v in state.items()}
    content |= {f"scalar/{k}": torch.tensor(v, dtype=torch.float64) for k, v in scalars.items()}
    return {k: v.detach() for k, v in content.items()}


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


def sharded_checkpoint(work: Path) -> Path | None:
    """The newest whole folder that `save_sharded` left in `work`."""
    found = sorted(path for path in work.glob("checkpoint-*") if path.suffix != ".partial")
    return found[-1] if found else None


def save_sharded(
    work: Path,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    tensors: Mapping[str, torch.Tensor],
    scalars: Mapping[str, float],
) -> None:
    """`work/checkpoint-ITERATION`, whole or not at all, in the place of older ones. All processes call it together."""
    folder = work / f"checkpoint-{int(scalars['iteration']):09d}"
    partial = folder.with_suffix(".partial")
    first = distributed.rank() == 0
    if first:
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed while it wrote
    distributed.barrier()
    writer = HuggingFaceStorageWriter(str(partial), save_distributed=True)
    dcp.save(_content(modules, optimizers, tensors, scalars), storage_writer=writer)
    distributed.barrier()
    if first:
        os.replace(partial, folder)
        for older in work.glob("checkpoint-*"):
            if older != folder:
                shutil.rmtree(older)
    distributed.barrier()


def load_sharded(
    folder: Path,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    tensors: Mapping[str, torch.Tensor],
) -> dict[str, float]:
    """Restore modules, optimisers and `tensors` in place; returns the scalars. Each process reads what it holds."""
    reader = HuggingFaceStorageReader(str(folder))
    told: dict[str, Any] = reader.read_metadata().state_dict_metadata  # all of tensors
    content = _content(modules, {}, tensors, {})
    states: dict[str, dict[int, dict[str, torch.Tensor]]] = {name: {} for name in optimizers}
    scalars: dict[str, torch.Tensor] = {}
    for key, saved in told.items():
        kind, _, rest = key.partition("/")
        if kind == "scalar":
            scalars[rest] = content[key] = torch.zeros((), dtype=torch.float64)
        elif kind == "optimizer":
            name, index, field = rest.split("/")
            parameter = [p for group in optimizers[name].param_groups for p in group["params"]][int(index)]
            same = tuple(saved.size) == tuple(parameter.shape)
            dtype = saved.properties.dtype
            room = torch.zeros_like(parameter, dtype=dtype) if same else torch.zeros(saved.size, dtype=dtype)
            content[key] = states[name].setdefault(int(index), {})[field] = room.detach()
    if missing := content.keys() ^ told.keys():
        raise StageFailure("checkpoint", f"{folder} is of another training: {sorted(missing)[:3]}")
    dcp.load(content, storage_reader=reader)
    for name, optimizer in optimizers.items():
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": states[name], "param_groups": groups})
    return {name: value.item() for name, value in scalars.items()}


def skeleton(module: nn.Module) -> nn.Module:
    """A copy without weights (meta device), which takes no memory: for `assemble`, made before `module` is sharded."""
    empty = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in module.parameters()}
    return copy.deepcopy(module, empty)


def assemble(module: nn.Module, bones: nn.Module, folder: Path) -> nn.Module | None:
    """The sharded `module` as a whole one in the first process, None in the others. All call it together.

    Each process writes its shards into `folder`, where they are joined file by file; the whole module's weights are these
    files, mapped into memory and read when they are used. Raises RuntimeError where names or shapes differ from `bones`.
    """
    if distributed.rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed while it wrote
    distributed.barrier()
    state = {name: value.detach() for name, value in module.state_dict().items()}
    number, size, files = 1, 0, {}
    for name, value in state.items():
        if size and size + value.numel() * value.element_size() > FILE_BYTES:
            number, size = number + 1, 0
        size += value.numel() * value.element_size()
        files[name] = number
    writer = HuggingFaceStorageWriter(str(folder), files, save_distributed=True, enable_consolidation=True)
    dcp.save(state, storage_writer=writer)
    distributed.barrier()
    if distributed.rank() > 0:
        return None
    weights: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        weights |= load_file(path)
    bones.load_state_dict(weights, strict=True, assign=True)
    return bones


def check_saved(folder: Path, module: nn.Module) -> None:
    """Raise StageFailure unless the safetensors files in `folder` hold exactly the state of `module`."""
    expected, found = module.state_dict(), set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (not a mapping)
                if name not in expected or not torch.equal(file.get_tensor(name), expected[name]):
                    raise StageFailure("export", f"{path.name}: {name} is not what was trained")
                found.add(name)
    if missing := expected.keys() - found:
        raise StageFailure("export", f"{folder} lacks {', '.join(sorted(missing)[:3])} and {len(missing)} weights in all")
