"""A family whose tiny weights ship with the package and whose other scales are published checkpoints."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Generic

import torch

from flgbench.contracts import Around, Family
from flgbench.errors import UsageError
from flgbench.models.base import Placement, VideoModel
from flgbench.models.diffusers_folder import ClipSettings, DiffusersFolder, P, locate
from flgbench.models.parts import tensor_bytes
from flgbench.shipped import HASHES
from flgbench.store import sha256

WEIGHTS = Path(__file__).parent / "weights"
TINY = "tiny"


class CheckpointFamily(Family, Generic[P]):
    """`checkpoints`: scale -> the published one; `layout`: what a folder of the family must hold; `random_weights`: the
    module, imported when asked for, that builds its architecture untrained and tells its FLOPs and activations."""

    checkpoints: ClassVar[Mapping[str, Any]]
    random_weights: ClassVar[str]
    layout: ClassVar[type[DiffusersFolder[Any]]]

    @abstractmethod
    def tiny_folder(self) -> Path:
        """Where the tiny weights are."""

    @abstractmethod
    def verify_tiny(self) -> None:
        """Raise UsageError where the tiny weights are not there or damaged."""

    def folder(self, scale: str) -> Path:
        if scale == TINY:
            self.refuse_checkpoint()
            return self.tiny_folder()
        return locate(scale, self.checkpoints[scale].repository, self.checkpoint, self.revision)

    def fingerprint(self, scale: str) -> str:
        if scale == TINY:
            self.verify_tiny()
            return sha256(self.folder(scale) / HASHES)
        return self.checked(scale).fingerprint()

    def refuse_checkpoint(self) -> None:
        """Raise UsageError where a checkpoint was named for the tiny scale."""
        if self.checkpoint or self.revision:
            known = ", ".join(self.checkpoints)
            use = f"need --scale {known}" if known else f"are not for family '{self.name}', of which no checkpoint is public"
            raise UsageError(f"--checkpoint and --revision {use}: the tiny weights ship with the package")

    def facts(self, scale: str) -> P:
        """As published; where a checkpoint was named, with what its folder says."""
        published: P = self.checkpoints[scale]
        return self.layout(self.folder(scale)).facts(published) if self.checkpoint else published

    def checked(self, scale: str) -> DiffusersFolder[P]:
        """The checkpoint's folder. Raises UsageError for what is missing, cut or of another model."""
        found = self.layout(self.folder(scale))
        found.check(None if self.checkpoint else self.checkpoints[scale])
        return found

    def clip_settings(self, scale: str) -> ClipSettings:
        """The clips that the checkpoint makes."""
        facts = self.facts(scale)
        return ClipSettings(facts.clip, facts.text_length, facts.negative_caption)

    def untrained(self, scale: str, clip: tuple[int, int, int], device: str, dtype: torch.dtype) -> VideoModel:
        model: VideoModel = import_module(self.random_weights).build(scale, clip, device, dtype)
        return model

    def pass_flops(self, model: VideoModel) -> Mapping[str, int]:
        return asdict(import_module(self.random_weights).pass_flops(model))

    def around(self, model: VideoModel) -> Around:
        module = import_module(self.random_weights)
        decoder: Any = model
        return Around(module.around_flops(model), module.activation_bytes(model), tensor_bytes(decoder.vae))


def real_placement() -> Placement:
    """Where a checkpoint is unless somebody says: in bf16, on the GPU if there is one."""
    return Placement("cuda" if torch.cuda.is_available() else "cpu", torch.bfloat16)
