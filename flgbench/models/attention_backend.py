"""Which kernels attention runs on: asked for, and seen.

torch picks a back end of `scaled_dot_product_attention` for each call and says nothing. Here one is preferred, and an
observed pass tells which ones ran.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from flgbench.errors import UsageError

BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
_OPERATORS = {
    "_scaled_dot_product_cudnn_attention": "cudnn",
    "_scaled_dot_product_flash_attention": "flash",
    "_scaled_dot_product_flash_attention_for_cpu": "flash",
    "_scaled_dot_product_efficient_attention": "efficient",
    "_scaled_dot_product_attention_math": "math",
    "_safe_softmax": "math",  # what the mathematical form takes apart into
}


def fastest_first(device: torch.device, dtype: torch.dtype) -> list[str]:
    """The back ends that a device has for `dtype`, by speed.

    cuDNN's kernels are ahead on Hopper and behind elsewhere (huggingface/transformers pull request 48163, six GPUs).
    """
    if device.type != "cuda":
        return ["flash", "math"]
    if dtype == torch.float32:  # the others take 16 bits only
        return ["efficient", "math"]
    hopper = torch.cuda.get_device_capability(device)[0] == 9
    return ["cudnn", "flash", "efficient", "math"] if hopper else ["flash", "cudnn", "efficient", "math"]


def resolve(asked: str, device: torch.device, dtype: torch.dtype) -> list[str]:
    """`asked` and what is slower, the order to try; 'auto' asks for the fastest. Raises UsageError if there is no such."""
    order = fastest_first(device, dtype)
    if asked == "auto":
        return order
    if asked not in order:
        name = str(dtype).removeprefix("torch.")
        raise UsageError(f"--attention {asked}: {device.type} has {', '.join(order)} in {name}")
    return order[order.index(asked) :]


def preferring(order: list[str]) -> AbstractContextManager[None]:
    """While open, each attention runs on the first back end of `order` that can take it."""
    return sdpa_kernel([BACKENDS[name] for name in order], set_priority=True)


@contextmanager
def observed() -> Iterator[dict[str, str]]:
    """While open, the dictionary fills with each back end that ran and the (queries, keys) of its first call.

    Outside `torch.inference_mode`, in which torch does not show what an attention is made of.
    """
    watcher = _Watcher()
    with watcher:
        yield watcher.seen


class _Watcher(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, str] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in _OPERATORS:
            queries = args[0].shape[-2]
            keys = args[1].shape[-2] if isinstance(args[1], torch.Tensor) else args[0].shape[-1]
            self.seen.setdefault(_OPERATORS[name], f"{queries} queries on {keys} keys")
        return func(*args, **(kwargs or {}))


def check(seen: dict[str, str], order: list[str], allow_fallback: bool) -> list[str]:
    """The back ends that ran, fastest first. Raises UsageError when one is slower than asked, unless that is allowed."""
    slower = [name for name in order[1:] if name in seen]
    if slower and not allow_fallback:
        raise UsageError(
            f"attention of {seen[slower[0]]} ran on '{slower[0]}', slower than '{order[0]}', which this device, dtype or "
            f"shape does not have: give --attention {slower[0]}, or --allow-fallback to take each call's fastest"
        )
    return [name for name in order if name in seen]
