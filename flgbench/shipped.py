"""Folders of weights that ship with the package: written whole with their recipe, and never read when damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flgbench.errors import UsageError
from flgbench.store import sha256

if TYPE_CHECKING:
    import torch

HASHES = "sha256.json"


@lru_cache
def verify(folder: Path) -> None:
    """Raise UsageError unless every file of `folder` has the hash recorded beside it."""
    if not (folder / HASHES).exists():
        raise UsageError(f"no weights in {folder}: reinstall the package, or make them with `flgbench pretrain`")
    for name, expected in json.loads((folder / HASHES).read_text()).items():
        path = folder / name
        found = sha256(path) if path.exists() else "no file"
        if found != expected:
            raise UsageError(
                f"weights {path}: sha256 is {found[:12]}, expected {expected[:12]}: reinstall the package, or make "
                f"them again with `flgbench pretrain`"
            )


def write_hashes(folder: Path) -> None:
    """Record the hash of every file under `folder`."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != HASHES)
    hashes = {str(p.relative_to(folder)): sha256(p) for p in files}
    (folder / HASHES).write_text(json.dumps(hashes, indent=1) + "\n")


def ship(
    folder: Path, tensors: Mapping[str, Mapping[str, torch.Tensor]], records: Mapping[str, Mapping[str, Any]], log: Path
) -> None:
    """Replace `folder`, whole: a .safetensors for each of `tensors`, a .json for each of `records`, the log, the hashes."""
    from safetensors.torch import save_file

    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, content in tensors.items():
        path = partial / f"{name}.safetensors"
        save_file({k: v.contiguous() for k, v in content.items()}, path)
        path.chmod(0o644)
    for name, record in records.items():
        (partial / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    shutil.copy(log, partial / "log.jsonl")
    write_hashes(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
