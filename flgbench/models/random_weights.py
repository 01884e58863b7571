"""What architectures with random weights share: how they are made, which clips they take, FLOPs counted on 'meta'."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from flgbench.errors import UsageError
from flgbench.models.parts import Part

DRAWN = 2**20  # random numbers of a weight, which then repeat


class RepeatedDraws(TorchDispatchMode):
    """While open, random fills of large tensors repeat: ten billion draws take a CPU minutes, copies seconds."""

    fills = (torch.ops.aten.uniform_.default, torch.ops.aten.normal_.default)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in self.fills or args[0].numel() <= DRAWN or args[0].is_meta:
            return func(*args, **(kwargs or {}))
        filled = args[0].view(-1)
        func(filled[:DRAWN], *args[1:], **(kwargs or {}))
        for part in filled[DRAWN:].split(DRAWN):
            part.copy_(filled[: len(part)])
        return args[0]


@contextmanager
def born(device: str, dtype: torch.dtype) -> Iterator[None]:
    """While open, modules are made on `device` in `dtype`; their weights are random, and repeat where they are large."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device), RepeatedDraws(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield
    finally:
        torch.set_default_dtype(before)


def random_part(
    make: Callable[[], nn.Module], device: str, dtype: torch.dtype, config: Mapping[str, Any] | None = None
) -> Part:
    """What `make` makes, frozen, in eval mode, on `device` in `dtype`, when it is first needed; `config` as in `Part`."""

    def read() -> nn.Module:
        with born(device, dtype):
            return make().requires_grad_(False).eval()

    return Part(read, config or {})


def check_clip(clip: tuple[int, int, int], every: int, steps: tuple[int, int], example: int = 81) -> None:
    """Raise UsageError unless autoencoder and patches divide `clip` (frames, height, width) evenly.

    Frames have to be 1 + a multiple of `every`, height and width multiples of `steps`.
    """
    frames, *sides = clip
    if frames < 1 or (frames - 1) % every:
        raise UsageError(f"--frames {frames}: this autoencoder takes 1 + a multiple of {every}, for example 5 or {example}")
    for option, side, step in zip(("height", "width"), sides, steps, strict=True):
        if side < step or side % step:
            raise UsageError(f"--{option} {side}: this model takes multiples of {step}")


def counted(work: Callable[[], Any]) -> int:
    """FLOPs of `work`, which may be on the meta device."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    return counter.get_total_flops()
