"""The evaluation card: everything that a quality number depends on besides the weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from flgbench import environment
from flgbench.models.base import Condition, VideoModel
from flgbench.sampling import SamplerSettings

SEED_RULE = "clip_noise: a generator of its own for every (condition, sample, draw), the same for all methods"
BACKENDS = {  # what PyTorch dispatches scaled_dot_product_attention to
    "_scaled_dot_product_flash_attention_for_cpu": "flash, CPU",
    "_scaled_dot_product_flash_attention": "flash",
    "_scaled_dot_product_efficient_attention": "memory-efficient",
    "_scaled_dot_product_cudnn_attention": "cuDNN",
    "_scaled_dot_product_attention_math": "math",
}


class _Attention(TorchDispatchMode):
    """Notes which attention kernels are dispatched while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.seen |= {BACKENDS[name]} if name in BACKENDS else set()
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def attention_backend(model: VideoModel, condition: Condition) -> str:
    """The attention kernels that one pass really uses, by name; 'math' where none of the fused ones was."""
    watched = _Attention()
    x = torch.zeros(1, *model.latent_shape)
    with watched:
        model.velocity(x, torch.full((1,), 0.5), condition.select(slice(0, 1)))
    return ", ".join(sorted(watched.seen)) or "math"


def conditions_hash(images: torch.Tensor, captions: Sequence[str], inputs: Mapping[str, torch.Tensor] | None = None) -> str:
    """First 16 digits of the SHA-256 of the first frames (N, H, W, 3) uint8, the captions and what else is told."""
    told = hashlib.sha256(images.contiguous().numpy().tobytes())
    told.update("\n".join(captions).encode())
    for name, value in sorted((inputs or {}).items()):
        told.update(name.encode() + value.contiguous().numpy().tobytes())
    return told.hexdigest()[:16]


def card(
    images: torch.Tensor,
    captions: Sequence[str],
    clips: int,
    sampler: SamplerSettings | None,
    nfe: int,
    attention: str,
    dtype: str = "float32",
    inputs: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, Any]:
    """What the clips of one cell were made from. Controls without a network have no sampler and no attention."""
    made = sampler.record() | {"NFE": nfe} if sampler else {}
    return {
        "conditions": len(captions),
        "conditions_sha256": conditions_hash(images, captions, inputs),
        "clips": clips,
        "seed_rule": SEED_RULE,
        **made,
        "dtype": dtype,
        "attention": attention,
        "threads": torch.get_num_threads(),
        "gpu": environment.gpu(),
        "torch": environment.package_version("torch"),
        "diffusers": environment.package_version("diffusers"),
        "flgbench": environment.package_version("flgbench"),
        "commit": environment.commit(),
    }
