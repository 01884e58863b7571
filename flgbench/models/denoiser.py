"""What the families' denoisers share as diffusers models: lists of blocks, passes counted, a given first frame, files."""

from __future__ import annotations

import copy
import json
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn

from flgbench import flow
from flgbench.models.base import Condition, Placement, VideoModel
from flgbench.models.parts import Held, Part, release

# Beside config.json, not in it: diffusers warns of every key that its model does not know.
KEPT_BLOCKS = "kept_blocks.json"
SELF_ATTENTION = "self_attention.json"  # one of 'full', 'frame', 'none' a block; not there: all 'full'

SMALLEST_TIME = 1e-6  # no sampler evaluates a velocity at time 0


class Denoiser(VideoModel):
    """A diffusers transformer. `lists`: its lists of blocks by attribute, in the order in which they run, each with the
    key of the transformer's config that tells its length. `entrance`: its layer that latents go through first.

    The transformer may be a `Part`, read when it is first needed: `placement` tells where it will be.
    """

    lists: ClassVar[dict[str, str]]
    entrance: ClassVar[str]

    transformer = Held()
    placement: Placement
    tokenizer: Any
    _kept: tuple[int, ...]

    @property
    def _unread(self) -> bool:
        held = vars(self)["transformer"]
        return isinstance(held, Part) and held.loaded is None

    @property
    def device(self) -> torch.device:
        return torch.device(self.placement.device) if self._unread else self._first_weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.placement.dtype if self._unread else self._first_weight.dtype

    @property
    def _first_weight(self) -> torch.Tensor:
        return self.transformer.get_submodule(self.entrance).weight

    @property
    def blocks(self) -> nn.ModuleList:
        found = [getattr(self.transformer, name) for name in self.lists]
        return found[0] if len(found) == 1 else nn.ModuleList(block for part in found for block in part)

    @property
    def kept_blocks(self) -> tuple[int, ...]:
        return self._kept

    def release_encoders(self) -> None:
        release(self.held(), self.device)

    def _twin(self, transformer: Any) -> Self:
        twin = copy.copy(self)
        twin.transformer = transformer
        return twin

    def _drop(self, transformer: Any, dropped: set[int]) -> None:
        """Leave out the blocks at the positions `dropped`, which count through all lists, in place."""
        start = 0
        for name in self.lists:
            part = getattr(transformer, name)
            setattr(transformer, name, nn.ModuleList(b for i, b in enumerate(part, start) if i not in dropped))
            start += len(part)

    @contextmanager
    def _skipping(self, skip: Sequence[int]) -> Iterator[None]:
        whole = {name: getattr(self.transformer, name) for name in self.lists}
        self._drop(self.transformer, set(skip))
        try:
            yield
        finally:
            for name, part in whole.items():
                setattr(self.transformer, name, part)

    def velocity(self, x: torch.Tensor, t: torch.Tensor, condition: Condition, skip: Sequence[int] = ()) -> torch.Tensor:
        if skip:
            with self._skipping(skip):
                return self.velocity(x, t, condition)
        trained = torch.is_grad_enabled() and any(p.requires_grad for p in self.transformer.parameters())
        # A backward through frozen weights computes the gradient of the input only: one pass, not two.
        backward = 2 if trained else int(torch.is_grad_enabled() and x.requires_grad)
        self.tally.add(len(x) * len(self.blocks) / self.n_teacher_blocks * (1 + backward))
        return self._velocity(x.to(self.device).float(), t.to(self.device).float(), condition)

    @abstractmethod
    def _velocity(self, x: torch.Tensor, t: torch.Tensor, condition: Condition) -> torch.Tensor:
        """Of one pass: x and t are fp32 and on the device, the condition anywhere; fp32."""

    def without_blocks(self, drop: Sequence[int]) -> Self:
        dropped = set(drop)
        unknown = dropped - set(range(len(self.blocks)))
        if unknown:
            raise ValueError(f"no block at position {sorted(unknown)}: the model has {len(self.blocks)} blocks")
        twin = self.copy()
        self._drop(twin.transformer, dropped)
        twin._kept = tuple(k for i, k in enumerate(self._kept) if i not in dropped)
        return twin

    def save(self, folder: Path) -> None:
        lengths = {key: len(getattr(self.transformer, name)) for name, key in self.lists.items()}
        self.transformer.register_to_config(**lengths)
        self.transformer.save_pretrained(folder)
        (folder / KEPT_BLOCKS).write_text(json.dumps(list(self._kept)))
        (folder / SELF_ATTENTION).write_text(json.dumps(list(self.self_attention)))

    def remarks(self, caption: str) -> list[str]:
        count = len(self.tokenizer(caption).input_ids)
        words = {w: self.tokenizer(w, add_special_tokens=False).input_ids for w in caption.split()}
        unknown = [word for word, ids in words.items() if self.tokenizer.unk_token_id in ids]
        return [f"the model does not know: {', '.join(unknown)}"] * bool(unknown) + [
            f"the model reads the first {self.text_length} of the prompt's {count} tokens"
        ] * (count > self.text_length)


def with_given_frame(velocity: torch.Tensor, x: torch.Tensor, t: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """`velocity` (B, C, T, H, W) with that of a first frame which is known: from x straight to `given` (B, C, 1, H, W).

    There every sampler's clean estimate and last step then are. On the training path it is the velocity that is
    regressed, eps - x0.
    """
    first = (x[:, :, :1] - given) / flow.per_clip(t, x).clamp(min=SMALLEST_TIME)
    return torch.cat([first, velocity[:, :, 1:]], dim=2)
