"""The log of a pretraining: one JSON line a report in a file, and a bar on a terminal or a line now and then elsewhere."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

PLAIN_EVERY = 30.0  # seconds


class TrainingLog:
    """One process of a group is `active`: only it writes and shows anything."""

    def __init__(self, path: Path, title: str, total: int, active: bool = True) -> None:
        self.path, self.title, self.total = path, title, total
        self.active = active
        self.began = self.said = time.monotonic()
        self.bar = Progress(console=Console(stderr=True)) if self.active and sys.stderr.isatty() else None
        if self.bar:
            self.bar.start()
            self.task = self.bar.add_task(title, total=total)

    def report(self, step: int, **values: Any) -> None:
        if not self.active:
            return
        line = {"step": step, "seconds": round(time.monotonic() - self.began, 1)} | values
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self.bar:
            self.bar.update(self.task, completed=step, description=f"{self.title} loss {values['loss']:.4f}")
        elif time.monotonic() - self.said > PLAIN_EVERY or step == self.total:
            self.said = time.monotonic()
            print(f"{self.title} {step}/{self.total} loss {values['loss']:.4f}", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.bar:
            self.bar.stop()
