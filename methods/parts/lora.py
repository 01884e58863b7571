"""One set of weights, several networks: a LoRA on every linear layer of the blocks, whose scale says which network it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from flgbench.models.base import VideoModel

ADAPTER = "default"


def with_lora(model: VideoModel, rank: int) -> VideoModel:
    """A frozen copy of the model with a trainable LoRA on every linear layer of its blocks; BA = 0 at first."""
    # Here and not above: importing it takes seconds, and planning a run reads this module.
    from peft import LoraConfig, inject_adapter_in_model

    copy = model.copy().requires_grad_(False)
    inside = {id(layer) for layer in copy.blocks.modules()}
    linear = [n for n, m in copy.transformer.named_modules() if isinstance(m, nn.Linear) and id(m) in inside]
    with torch.random.fork_rng(devices=[]):  # the same A whatever this process drew before
        torch.manual_seed(0)
        # alpha = rank: the adapter's own scale is 1, so that `set_lora_scale` is the factor of BA.
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=linear)
        copy.transformer = inject_adapter_in_model(config, copy.transformer, ADAPTER)
    return copy


def lora_layers(model: VideoModel) -> list[Any]:
    """The adapted layers of a model from `with_lora`. Looking them up takes as long as some of their passes: once."""
    from peft.tuners.lora import LoraLayer

    return [layer for layer in model.blocks.modules() if isinstance(layer, LoraLayer)]


def set_lora_scale(layers: Iterable[Any], scale: float) -> None:
    """W + scale BA from now on. A graph that was built before keeps the scale of its own forward pass."""
    for layer in layers:
        layer.set_scale(ADAPTER, scale)


@torch.no_grad()
def lora_share(layers: Sequence[Any], scale: float) -> torch.Tensor:
    """|scale BA| / |W|, Frobenius norms over all adapted layers together: how far the weights are from the teacher's."""
    set_lora_scale(layers, scale)
    change = torch.stack([layer.get_delta_weight(ADAPTER).pow(2).sum() for layer in layers]).sum()
    weight = torch.stack([layer.get_base_layer().weight.pow(2).sum() for layer in layers]).sum()
    return (change / weight).sqrt()
