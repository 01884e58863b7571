"""Parts of a checkpoint that are read when they are first needed, and given back when they are not."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

from flgbench.errors import UsageError
from flgbench.models.base import Placement


@dataclass
class Part:
    """A part of a model that `read` brings into memory when it is first asked for; copies of the model share it.

    `config`: the part's settings by name, known without reading its weights.
    """

    read: Callable[[], Any]
    config: Mapping[str, Any] = field(default_factory=dict)
    loaded: Any = None

    def get(self) -> Any:
        if self.loaded is None:
            with torch.inference_mode(False):  # whoever asks first: weights read in inference mode could never be trained
                self.loaded = self.read()
        return self.loaded

    def release(self) -> None:
        """Give the memory back; the next `get` reads again."""
        self.loaded = None


def check_room(placement: Placement, parameters: int, what: Path) -> None:
    """Raise UsageError unless the weights fit what is free on a GPU."""
    needed = parameters * placement.dtype.itemsize
    if torch.device(placement.device).type != "cuda":
        return
    free, _ = torch.cuda.mem_get_info(placement.device)
    if needed > free:
        raise UsageError(
            f"{what}: {needed / 1e9:.1f} GB of weights in {placement.dtype}, and {free / 1e9:.1f} GB are free on "
            f"{placement.device}: a larger GPU, or a smaller --scale"
        )


def unchanged(module: Any) -> Any:
    return module


def part(
    cls: Any,
    folder: Path,
    dtype: torch.dtype,
    prepare: Callable[[Any], Any] = unchanged,
    before: Callable[[], None] = lambda: None,
) -> Part:
    """The diffusers or transformers model in `folder`, frozen, in eval mode, in `dtype`, after `prepare`.

    Reading it calls `before` first, and raises UsageError where the files lack some of its weights.
    """

    def read() -> Any:
        before()
        for library in (diffusers, transformers):  # their bars would run through ours
            library.utils.logging.disable_progress_bar()
        module, found = cls.from_pretrained(folder, use_safetensors=True, dtype=dtype, output_loading_info=True)
        if missing := sorted(found["missing_keys"]):  # the libraries would make them up
            raise UsageError(
                f"{folder}: {len(missing)} weights are missing, {missing[0]} for one: not a whole {cls.__name__}"
            )
        return prepare(module.requires_grad_(False).eval())

    return Part(read, configuration(cls, json.loads((folder / "config.json").read_text())))


def configuration(cls: Any, told: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a model of `cls` that is `told` some of them, as older checkpoints are: for others it has defaults."""
    return {name: p.default for name, p in inspect.signature(cls.__init__).parameters.items()} | dict(told)


def tensor_bytes(*parts: nn.Module) -> int:
    """Bytes of the parameters and buffers of `parts`, each once."""
    tensors = {id(t): t for part in parts for t in (*part.parameters(), *part.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())


class Held:
    """An attribute that is a module, or a `Part` that becomes one when it is looked at."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, model: Any, owner: type | None = None) -> Any:
        if model is None:
            return self
        held = model.__dict__[self.name]
        return held.get() if isinstance(held, Part) else held

    def __set__(self, model: Any, value: Any) -> None:
        model.__dict__[self.name] = value


def placed(module: nn.Module, device: torch.device) -> Any:
    """`module` on `device`, moved only when it is not there."""
    return module if next(module.parameters()).device == device else module.to(device)


def release(held: Iterable[Any], device: torch.device) -> None:
    """Give back the memory of all parts among `held`, on `device` too."""
    for part in held:
        if isinstance(part, Part):
            part.release()
    if device.type == "cuda":
        torch.cuda.empty_cache()
