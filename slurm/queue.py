"""Which job computes which step: one small file a step beside the store, shared by all runs of the store.

Two runs with a common step thus submit it once, and the same command given again submits nothing twice.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from flgbench.store import Store, write_json


@dataclass(frozen=True)
class Record:
    """The last submission of a step: job id as squeue prints it, run that asked, log of the job, time in seconds."""

    job: str
    run: str
    log: str
    submitted: float


class Queue:
    """The records of a store's steps."""

    def __init__(self, store: Store) -> None:
        self.folder = store.root.parent / "queue"

    def add(self, key: str, job: str, run: str, log: Path) -> None:
        write_json(self.folder / f"{key}.json", asdict(Record(job, run, str(log), time.time())))

    def records(self, keys: Iterable[str]) -> dict[str, Record]:
        """The last submission of each of `keys` that has had one."""
        paths = {key: self.folder / f"{key}.json" for key in keys}
        return {key: Record(**json.loads(path.read_text())) for key, path in paths.items() if path.exists()}

    @contextmanager
    def lock(self) -> Iterator[None]:
        """One submission at a time. A lock of the process: it ends with it, however that ends."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            yield
