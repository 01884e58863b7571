"""Content-addressed artifacts: a folder `<kind>-<name>-v<version>-<hash12>` that is whole once `done.json` is in it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flgbench.errors import UsageError

DONE, EVENTS, WORK = "done.json", "events.jsonl", "work"


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a whole file or none."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1))


class Store:
    """A folder of artifacts. While a step runs its folder exists without `done.json`; `work/` holds its checkpoints."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, key: str) -> Path:
        return self.root / key

    def is_done(self, key: str) -> bool:
        return (self.path(key) / DONE).exists()

    def start(self, key: str) -> Path:
        folder = self.path(key)
        (folder / WORK).mkdir(parents=True, exist_ok=True)
        return folder

    def finish(self, key: str, facts: dict[str, Any]) -> None:
        """Seal the artifact: checksums and `facts` (found out, not hashed) go into `done.json`, renamed into place."""
        folder = self.path(key)
        shutil.rmtree(folder / WORK, ignore_errors=True)
        files = {str(f.relative_to(folder)): sha256(f) for f in sorted(folder.rglob("*")) if _is_payload(f)}
        write_json(folder / DONE, {"key": key, "finished": time.time(), "facts": facts, "files": files})

    def facts(self, key: str) -> dict[str, Any]:
        return json.loads((self.path(key) / DONE).read_text())["facts"]

    def damage(self, key: str) -> str | None:
        """What is wrong with a finished artifact, or None."""
        folder = self.path(key)
        try:
            files = json.loads((folder / DONE).read_text())["files"]
        except (json.JSONDecodeError, KeyError, TypeError):
            return "done.json cannot be read"
        for name, expected in files.items():
            if not (folder / name).exists():
                return f"{name} is missing"
            if sha256(folder / name) != expected:
                return f"{name} has changed since it was written"
        return None

    def check(self, keys: Iterable[str]) -> None:
        """Raise UsageError naming the first damaged artifact, after setting it aside so that it is computed again."""
        for key in keys:
            if self.is_done(key) and (problem := self.damage(key)):
                shutil.rmtree(self.path(key))
                raise UsageError(f"artifact {key} is damaged ({problem}): removed; the next run computes it again")

    def event(self, key: str, event: str, **details: Any) -> None:
        """Append one line to the step's event file; readers need nothing else to follow a run."""
        with (self.path(key) / EVENTS).open("a+b") as file:
            # A kill may have cut the last line: start a new one, or both would be lost.
            if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                file.write(b"\n")
            file.write((json.dumps({"time": round(time.time(), 3), "event": event, **details}) + "\n").encode())

    def events(self, key: str) -> list[dict[str, Any]]:
        path = self.path(key) / EVENTS
        if not path.exists():
            return []
        lines = path.read_text().splitlines()
        events = []
        for line in lines:
            try:
                events.append(json.loads(line))
            except json.JSONDecodeError:  # the last line of a killed step may be cut
                continue
        return events


def _is_payload(path: Path) -> bool:
    return path.is_file() and path.name not in (DONE, EVENTS) and not path.name.endswith(".partial")
