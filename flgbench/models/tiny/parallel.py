"""Data-parallel training on a CPU: one process a core, one thread each.

Small networks leave half of two cores idle when one process uses two threads; two processes with one thread do not.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from flgbench.distributed import processes, rank
from flgbench.orphans import die_with_parent

__all__ = ["average_gradients", "launch", "processes", "rank", "sum_over_processes"]


def launch(function: Callable[..., None], processes: int, *arguments: Any) -> None:
    """Run `function(*arguments)` in every process of a gloo group; an error in one ends all and is raised."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_enter, args=(function, processes, str(Path(folder) / "meet"), arguments), nprocs=processes)


def _enter(rank: int, function: Callable[..., None], processes: int, meeting: str, arguments: tuple) -> None:
    torch.set_num_threads(1)
    die_with_parent()
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=processes)
    function(*arguments)
    dist.barrier()
    # Without the interpreter's clean-up: threads of gloo that ask for its lock by then abort the whole process, rarely.
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)


def sum_over_processes(tensors: Sequence[torch.Tensor]) -> None:
    """Replace every tensor by its sum over the processes, in one message."""
    if processes() == 1:
        return
    flat = torch.cat([t.flatten() for t in tensors])
    dist.all_reduce(flat)
    offset = 0
    for tensor in tensors:
        tensor.copy_(flat[offset : offset + tensor.numel()].view_as(tensor))
        offset += tensor.numel()


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace every gradient by its mean over the processes; nothing to do for one process."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    sum_over_processes(gradients)
    torch._foreach_div_(gradients, processes())
