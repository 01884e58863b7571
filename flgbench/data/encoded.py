"""What `flgbench encode` wrote, as training data: rows are read from the shards when they are drawn, none is kept."""

from __future__ import annotations

import json
from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from flgbench.data.clips import FORMAT, MANIFEST
from flgbench.errors import UsageError
from flgbench.models.base import Condition
from flgbench.stage import TrainingData
from flgbench.store import sha256

OPEN_SHARDS = 64  # mapped at a time; a set may have more shards than a process may have files


def read_manifest(folder: Path) -> dict[str, Any]:
    """Raises UsageError where there is no finished encoded set."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        hint = "was it encoded to its end?" if folder.is_dir() else "no such folder"
        raise UsageError(f"--data {folder}: no {MANIFEST} of an encoded set ({hint}); `flgbench encode` makes one") from None
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--data {folder}: {MANIFEST} cannot be read ({error})") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UsageError(f"--data {folder}: its {MANIFEST} is none that this version writes: encode the clips again")
    return manifest


def check_fits(folder: Path, wanted: dict[str, Any]) -> str:
    """The hash that identifies the encoded set in `folder`, its manifest's SHA-256.

    `wanted`: model, scale, fingerprint, frames, height, width, fps of the run. Raises UsageError unless they are the set's.
    """
    manifest = read_manifest(folder)
    for name, value in wanted.items():
        if (found := manifest["settings"].get(name)) != value:
            raise UsageError(f"--data {folder}: encoded with {name} {found}, the run has {value}: encode the clips for it")
    if not manifest["clips"]:
        raise UsageError(f"--data {folder}: holds no clips, all were bad: see its {MANIFEST}")
    return sha256(folder / MANIFEST)


def damage(folder: Path) -> str | None:
    """What is wrong with the files of an encoded set by their recorded hashes, or None. Reads all of them."""
    manifest = read_manifest(folder)
    for part in (manifest["negative"], *manifest["shards"]):
        file = folder / part["file"]
        if not file.exists():
            return f"{part['file']} is missing"
        if sha256(file) != part["sha256"]:
            return f"{part['file']} has changed since it was written"
    return None


@lru_cache(maxsize=OPEN_SHARDS)
def _opened(file: Path) -> Any:
    return safe_open(file, framework="pt")


class Shards:
    """The rows of all shards of `folder`, in the order of the manifest's clips."""

    def __init__(self, folder: Path) -> None:
        manifest = read_manifest(folder)
        self.folder = folder
        self.files = [folder / shard["file"] for shard in manifest["shards"]]
        self.ends = list(accumulate(shard["clips"] for shard in manifest["shards"]))
        self.shared = load_file(folder / manifest["negative"]["file"])
        self.names = tuple(_opened(self.files[0]).keys())

    def __len__(self) -> int:
        return self.ends[-1]

    def read(self, name: str, index: slice | torch.Tensor) -> torch.Tensor:
        """Rows of the tensor `name`, in a tensor of their own."""
        return torch.stack([self._row(name, i) for i in torch.arange(len(self))[index].tolist()])

    def _row(self, name: str, i: int) -> torch.Tensor:
        shard = bisect_right(self.ends, i)
        first = self.ends[shard - 1] if shard else 0
        return _opened(self.files[shard]).get_slice(name)[i - first]


class StoredLatents:
    """Latents (N, C, T, H, W) that are read when indexed."""

    def __init__(self, shards: Shards) -> None:
        self.shards = shards

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: slice | torch.Tensor) -> torch.Tensor:
        return self.shards.read("latents", index)


class StoredConditions:
    """Conditions of N clips that are read when selected."""

    def __init__(self, shards: Shards) -> None:
        self.shards = shards

    def __len__(self) -> int:
        return len(self.shards)

    def select(self, index: slice | torch.Tensor) -> Condition:
        own = {name: self.shards.read(name, index) for name in self.shards.names if name != "latents"}
        return Condition.from_tensors(own | self.shards.shared)


def training_data(folder: Path) -> TrainingData:
    """The clips of an encoded set. Raises UsageError where there is none."""
    shards = Shards(folder)
    return TrainingData(StoredLatents(shards), StoredConditions(shards))
