"""A checkpoint in diffusers layout: where it is, whether it is whole and the right kind, what identifies it.

Only configuration files and the headers of weight files are read here; nothing imports torch. Weights are .safetensors.
What a family's folders must hold is in a subclass of `DiffusersFolder`.
"""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from flgbench.errors import UsageError
from flgbench.models.published import PublishedCheckpoint

P = TypeVar("P", bound=PublishedCheckpoint)

OWN = "flgbench.json"  # clip shape, text length and negative caption, for a checkpoint that differs from its scale's
BLOCKS_READ, BLOCK_BYTES = 64, 4096  # of each weight file's data, for its fingerprint


def locate(scale: str, published: str, checkpoint: str | None, revision: str | None) -> Path:
    """The folder of `checkpoint`, a folder or a hub id; without one, of the scale's id `published`. Downloads nothing.

    Raises UsageError, with the command that downloads it, for an id or a revision that is not in the local hub cache.
    """
    if checkpoint and Path(checkpoint).is_dir():
        if revision:
            raise UsageError(f"--revision {revision} is of a hub id: {checkpoint} is a folder, leave it out")
        return Path(checkpoint)
    name = checkpoint or published
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise UsageError(f"--checkpoint {name}: no such folder, and not a hub id such as {published}")
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    cache = Path(constants.HF_HUB_CACHE)
    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True, cache_dir=cache))
    except LocalEntryNotFoundError as error:
        there = sorted(p.name for p in (cache / f"models--{name.replace('/', '--')}" / "snapshots").glob("*"))
        if getattr(error, "snapshot_path", None):
            problem = f"its copy in the hub cache {cache} is not whole"
        elif there:
            problem = f"revision {revision or 'main'} is not in the hub cache {cache}, only {', '.join(there)}"
        else:
            problem = f"not in the hub cache {cache}"
        asked = f"--checkpoint {name}: no such folder, and as a hub id" if checkpoint else f"--scale {scale}: {name}"
        command = f"hf download {name}" + (f" --revision {revision}" if revision else "")
        raise UsageError(f"{asked} {problem}. Download it with `{command}`, or name a folder with --checkpoint") from None


@dataclass(frozen=True)
class ClipSettings:
    """The clips a model makes: (frames, height, width) in pixels, caption tokens it reads, what guidance leaves."""

    clip: tuple[int, int, int]
    text_length: int
    negative_caption: str

    @classmethod
    def of(cls, own: Mapping[str, Any]) -> ClipSettings:
        """What a flgbench.json says."""
        frames, height, width = own["clip_shape"]
        return cls((frames, height, width), own["text_length"], own["negative_caption"])


@dataclass(frozen=True)
class DiffusersFolder(ABC, Generic[P]):
    """A folder in diffusers layout. `check` before anything else is believed of it.

    `weighted`: parts with weights that the model needs -> what their config.json says they are. `processors`: parts
    without -> a file that each must have. `architecture`: what tells denoisers of one class apart. `unused`: in the names
    of published weights that no model has.
    """

    folder: Path

    architecture: ClassVar[Sequence[str]]
    unused: ClassVar[str | None] = None

    @property
    @abstractmethod
    def weighted(self) -> Mapping[str, str]: ...

    @property
    @abstractmethod
    def processors(self) -> Mapping[str, str]: ...

    @abstractmethod
    def check_kind(self) -> None:
        """Raise UsageError where model_index.json is not of an image-to-video model of the family."""

    @abstractmethod
    def check_denoiser(self) -> None:
        """Raise UsageError where the denoiser's config.json is not of one that takes images."""

    @property
    @abstractmethod
    def parameters(self) -> int:
        """Of the denoiser, as its config.json describes it."""

    @cached_property
    def index(self) -> Mapping[str, Any]:
        """model_index.json."""
        return read_json(self.folder / "model_index.json", "not a folder in diffusers layout")

    @cached_property
    def denoiser(self) -> Mapping[str, Any]:
        return self.config("transformer")

    @cached_property
    def own(self) -> Mapping[str, Any]:
        """flgbench.json, empty where there is none."""
        return json.loads((self.folder / OWN).read_text()) if (self.folder / OWN).exists() else {}

    @property
    def commit(self) -> str | None:
        """Of a folder in the hub's cache."""
        real = self.folder.resolve()
        return real.name if real.parent.name == "snapshots" else None

    def config(self, part: str) -> Mapping[str, Any]:
        return read_json(self.folder / part / "config.json", f"the part '{part}' is missing")

    def check(self, expected: PublishedCheckpoint | None = None) -> None:
        """Raise UsageError for what is missing, cut, or not an image-to-video model of the family; reads headers only.

        `expected`: also for a denoiser that is not the one of this published checkpoint.
        """
        self.check_kind()
        for part, kind in self.weighted.items():
            config = self.config(part)
            found = config.get("_class_name") or config.get("model_type")
            if found != kind:
                raise UsageError(f"{self.folder / part}: its config.json says {found}, expected {kind}")
            for shard in self.shards(part):
                header(shard)
        for part, files in self.processors.items():
            if not any((self.folder / part).glob(files)):
                raise UsageError(f"{self.folder}: the part '{part}' is missing")
        self.check_denoiser()
        if expected:
            self._check_scale(expected)
        self._check_count()

    def _check_scale(self, expected: PublishedCheckpoint) -> None:
        found, wanted = self.denoiser, expected.transformer
        if wrong := [k for k in self.architecture if found.get(k) != wanted[k]]:
            told = ", ".join(f"{k} {found.get(k)}, expected {wanted[k]}" for k in wrong)
            raise UsageError(
                f"{self.folder}: not the denoiser of {expected.repository}: {told}. If it is meant: --checkpoint"
            )

    def _check_count(self) -> None:
        tensors = [tensor for shard in self.shards("transformer") for tensor in tensors_of(header(shard))]
        held = [t for name, t in tensors if self.unused is None or self.unused not in name]
        found, wanted = sum(prod(t["shape"]) for t in held), self.parameters
        if found != wanted:
            raise UsageError(
                f"{self.folder / 'transformer'}: holds {found} weights, its config.json describes {wanted}: they do not fit"
            )

    def shards(self, part: str) -> list[Path]:
        """Weight files of a part. Raises UsageError unless all that its index names are there."""
        folder = self.folder / part
        indices = sorted(folder.glob("*.safetensors.index.json"))
        if indices:
            names = sorted(set(read_json(indices[0], "cannot be read")["weight_map"].values()))
            if missing := [n for n in names if not (folder / n).exists()]:
                more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
                raise UsageError(
                    f"{folder}: {missing[0]}{more} of {len(names)} weight files missing: the download is not whole"
                )
            return [folder / n for n in names]
        files = sorted(folder.glob("*.safetensors"))
        if len(files) != 1:
            raise UsageError(f"{folder}: no .safetensors weights (others are not read: they can carry code)")
        return files

    def facts(self, published: P) -> P:
        """`published` with what this folder says of its denoiser and, in flgbench.json, of its clips."""
        own = self.own
        return replace(
            published,
            transformer=self.denoiser,
            clip=tuple(own.get("clip_shape", published.clip)),
            fps=own.get("fps", published.fps),
            text_length=own.get("text_length", published.text_length),
            negative_caption=own.get("negative_caption", published.negative_caption),
        )

    def fingerprint(self) -> str:
        """What identifies the checkpoint: a hash, and the commit if the folder is one of the hub's cache.

        Hashed are all other files of the parts that are read, whole, and of each weight file its size, its header (names,
        shapes, dtypes, offsets) and 64 blocks of 4 KiB spread evenly over its data: a fine-tuning moves every weight, so it
        shows in them, and 30 GB need not be read. A change of single bytes between the blocks does not show.
        """
        digest = hashlib.sha256()
        parts = (*self.weighted, *self.processors)
        files = [p for part in parts for p in sorted((self.folder / part).rglob("*")) if p.is_file()]
        for path in [self.folder / "model_index.json", self.folder / OWN, *files]:
            if path.exists():
                digest.update(f"{path.relative_to(self.folder)}\n".encode())
                digest.update(_sampled(path) if path.suffix == ".safetensors" else path.read_bytes())
        return digest.hexdigest() + (f"@{self.commit}" if self.commit else "")


def header(path: Path) -> bytes:
    """The header of a .safetensors file. Raises UsageError where the file is cut or something else."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        size = path.stat().st_size
        content = file.read(length) if length < size else b""
    try:
        end = 8 + length + max(t["data_offsets"][1] for _, t in tensors_of(content))
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UsageError(f"{path}: not a whole .safetensors file: download it again") from None
    if end != size:
        raise UsageError(f"{path}: {size} bytes, expected {end}: the download is not whole")
    return content


def tensors_of(content: bytes) -> list[tuple[str, Any]]:
    """(name, {"dtype", "shape", "data_offsets"}) of every tensor that a header lists."""
    return [(name, tensor) for name, tensor in json.loads(content).items() if name != "__metadata__"]


def _sampled(path: Path) -> bytes:
    head, size = header(path), path.stat().st_size
    start = 8 + len(head)
    last = max(start, size - BLOCK_BYTES)
    content = [str(size).encode(), head]
    with path.open("rb") as file:
        for position in sorted({start + (last - start) * i // (BLOCKS_READ - 1) for i in range(BLOCKS_READ)}):
            file.seek(position)
            content.append(file.read(BLOCK_BYTES))
    return b"".join(content)


def read_json(path: Path, otherwise: str) -> Any:
    """What the file says. Raises UsageError, saying `otherwise` where it is not there."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UsageError(f"{path.parent}: no {path.name}: {otherwise}") from None
    except ValueError:
        raise UsageError(f"{path}: cannot be read as JSON") from None
