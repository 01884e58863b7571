"""Worker processes that end with their parent, even when that is killed with a signal nobody can catch."""

from __future__ import annotations

import os
import threading
import time


def die_with_parent(every: float = 0.5) -> None:
    """Start a thread that ends this process within about `every` seconds of its parent's death.

    An orphan would go on computing, and writing into folders that the next run owns.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
