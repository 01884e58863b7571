"""Denoisers from outside: do they fit the teacher, and a LoRA made part of it. Any diffusers transformer.

`folder` and `teacher` are transformer folders in diffusers layout. A check reads headers and shapes, not weights.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from diffusers.loaders import HunyuanVideoLoraLoaderMixin, WanLoraLoaderMixin
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

LORA_LOADERS: dict[str, Any] = {
    "WanTransformer3DModel": WanLoraLoaderMixin,
    "HunyuanVideoTransformer3DModel": HunyuanVideoLoraLoaderMixin,
}
PREFIX = "transformer."
ADAPTER = "outside"
AXES = {"A.weight": (1, 1), "B.weight": (0, 0), "B.bias": (0, 0)}  # of a part of a LoRA, and of the weight that it fits


def folder_problem(folder: Path, weights: Sequence[str], teacher: Path) -> str:
    """Why the student in `folder`, whose tensors are in the files `weights`, cannot stand in for the teacher, or ''."""
    mine, theirs = (json.loads((place / "config.json").read_text()) for place in (folder, teacher))
    if mine.get("_class_name") != theirs["_class_name"]:
        return f"its class is {mine.get('_class_name')}, the teacher's {theirs['_class_name']}"
    student, model = _empty(mine), _empty(theirs)
    own, other = dict(student.config), dict(model.config)
    apart = [f"{k} is {own[k]}, the teacher's {other[k]}" for k in other if _decides(k) and own[k] != other[k]]
    if own["num_layers"] > other["num_layers"]:
        apart.append(f"it has {own['num_layers']} blocks, the teacher {other['num_layers']}")
    if apart:
        return "another architecture: " + "; ".join(apart)
    try:
        present = _shapes(folder / name for name in weights)
    except SafetensorError as error:
        return f"its weights cannot be read ({error})"
    expected = {name: tuple(value.shape) for name, value in student.state_dict().items()}
    if _full_attention(folder):  # with parts of it deleted, the family's own strict loader decides
        for name in sorted(expected.keys() ^ present.keys()):
            return f"its weights {'lack' if name in expected else 'have an unknown'} {name}"
    for name in expected.keys() & present.keys():
        if expected[name] != present[name]:
            return f"{name} is {present[name]}, its config.json says {expected[name]}"
    return ""


def same_network(folder: Path, teacher: Path) -> bool:
    """Whether a student that fits differs in its weights only."""
    mine, theirs = (json.loads((place / "config.json").read_text())["num_layers"] for place in (folder, teacher))
    return mine == theirs and _full_attention(folder)


def lora_problem(file: Path, teacher: Path) -> str:
    """Why the LoRA in `file` cannot be fused into the teacher, or ''."""
    config = json.loads((teacher / "config.json").read_text())
    try:
        state, _ = _read_lora(file, config["_class_name"])
    except SafetensorError as error:
        return f"cannot be read as safetensors ({error})"
    except (KeyError, ValueError, IndexError) as error:
        return f"its keys are none that diffusers knows for {config['_class_name']} ({error})"
    if not state:
        return f"holds no LoRA of {config['_class_name']}"
    modules = dict(_empty(config).named_modules())
    for name, value in state.items():
        path, _, part = name.partition(".lora_")
        module = modules.get(path)
        if not isinstance(module, nn.Linear | nn.Conv3d) or part not in AXES:
            return f"{name} belongs to no layer of the teacher"
        mine, theirs = AXES[part]
        if value.shape[mine] != module.weight.shape[theirs]:
            return f"{name} is {tuple(value.shape)}, the teacher's layer {tuple(module.weight.shape)}"
    return ""


def with_lora(transformer: Any, file: Path, scale: float) -> Any:
    """A copy of the diffusers model with the LoRA in `file` added to its weights, `scale` times."""
    twin = copy.deepcopy(transformer)
    state, metadata = _read_lora(file, type(twin).__name__)
    twin.load_lora_adapter(state, prefix=None, adapter_name=ADAPTER, metadata=metadata)
    twin.fuse_lora(lora_scale=scale, adapter_names=[ADAPTER])
    twin.unload_lora()
    return twin.requires_grad_(False).eval()


def _read_lora(file: Path, class_name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
    """The LoRA by the teacher's layers, '<layer>.lora_A.weight', and the peft settings that diffusers saved with it.

    Diffusers translates the names that others use.
    """
    load_file(file)  # what is no safetensors file fails here, and is not tried as another format
    state, metadata = LORA_LOADERS[class_name].lora_state_dict(str(file), use_safetensors=True, return_lora_metadata=True)
    return (_without_prefix(state), _without_prefix(metadata or {}) or None)


def _without_prefix(named: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(PREFIX): value for name, value in named.items()}


def _decides(key: str) -> bool:
    """Whether a difference in this key of a config makes another architecture; fewer blocks are a pruned student."""
    return not key.startswith("_") and key != "num_layers"


def _empty(config: dict[str, Any]) -> Any:
    """The model of a config without weights."""
    with init_empty_weights():
        return getattr(diffusers, config["_class_name"]).from_config(config)


def _shapes(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            shapes |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    return shapes


def _full_attention(folder: Path) -> bool:
    """False where flgbench wrote that some block's self-attention is another."""
    kinds = folder / "self_attention.json"
    return not kinds.exists() or all(kind == "full" for kind in json.loads(kinds.read_text()))
