"""What was made from what: a report is made again only when a file of it is gone or changed, or what it is made from has.

`report/.made.json` records, for every report, the basis it was made from and the SHA-256 of every file.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import flgbench

NAME = ".made.json"
RUN_FILES = ("run.json", "cells.json", "steps.json", "results.parquet", "importance.json", "curves/*", "gallery/*")
CODE = ("*.py", "*.csv", "paper/*.csv", "templates/*")  # of this package
MEASURES = ("metrics/stats.py", "metrics/table.py", "data/shapes.py")  # of flgbench: what the numbers here come from
LIBRARIES = ("matplotlib", "numpy", "pandas", "pillow", "scipy")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _told(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def basis(run_folders: Sequence[Path]) -> str:
    """One digest of everything a built-in report is made from: the run folders' files, this package, what it draws with."""
    paths = [p for folder in run_folders for pattern in RUN_FILES for p in sorted(folder.glob(pattern))]
    here = Path(__file__).parent
    paths += [p for pattern in CODE for p in sorted(here.glob(pattern))]
    paths += [Path(flgbench.__file__).parent / name for name in MEASURES]
    return _told([*(f"{p.name} {_sha256(p)}" for p in paths), *(f"{name} {version(name)}" for name in LIBRARIES)])


def own_basis(common: str, build: Callable[..., Any]) -> str:
    """The basis of one report: `common`, and its own source where that is not part of this package."""
    source = inspect.getsourcefile(inspect.unwrap(build))
    return _told([common, _sha256(Path(source)) if source else ""])


class Ledger:
    """The reports of one folder. `keep` takes over from an older folder what is still right; `record` notes what is new."""

    def __init__(self, folder: Path, older: Path) -> None:
        self.folder, self.older = folder, older
        self.made: dict[str, dict[str, Any]] = {}
        try:
            self.known = json.loads((older / NAME).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # no report yet, or not one of ours: everything is made
            self.known = {}

    def keep(self, name: str, basis: str) -> bool:
        """Copy what is still right of report `name` into the new folder; True when that is all of it."""
        entry = self.known.get(name, {})
        if entry.get("basis") != basis:
            return False
        whole = True
        for path, digest in entry["files"].items():
            source, target = self.older / path, self.folder / path
            if source.is_file() and _sha256(source) == digest:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
            else:
                whole = False
        if whole:
            self.made[name] = entry
        return whole

    def record(self, name: str, basis: str, files: Iterable[Path]) -> None:
        """Note that report `name` made these files, which lie in the folder."""
        told = {str(p.relative_to(self.folder)): _sha256(p) for p in sorted(set(files))}
        self.made[name] = {"basis": basis, "files": told}

    def digest(self) -> str:
        """What lies in the folder: a page that shows it is made again when this changes."""
        entries = (entry for _, entry in sorted(self.made.items()))
        return _told(f"{path} {digest}" for entry in entries for path, digest in sorted(entry["files"].items()))

    def write(self) -> None:
        (self.folder / NAME).write_text(json.dumps(self.made, indent=1, sort_keys=True), encoding="utf-8")
