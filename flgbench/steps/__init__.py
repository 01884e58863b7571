"""What a job runs, one file per kind. Each has `run(step, store, folder) -> facts` and writes into `folder`."""

from __future__ import annotations

import importlib
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from flgbench import distributed
from flgbench.cells import Step
from flgbench.store import Store


def execute(step: Step, store: Store) -> dict[str, Any]:
    """Run one step to a finished artifact; returns its facts. A failure or a stop is recorded in the events and raised.

    Of several processes (`flgbench.distributed`) all run the step, and only the first one writes.
    """
    folder = store.start(step.key)
    if distributed.rank() > 0:
        return _run(step, store, folder)
    store.event(step.key, "started")
    began = time.monotonic()
    try:
        facts = _run(step, store, folder)
    except (KeyboardInterrupt, SystemExit):  # by hand, or by a scheduler that will start it again: no failure
        store.event(step.key, "stopped")
        raise
    except BaseException as error:
        with suppress(OSError):  # a full disk takes no event either, and the error itself says more
            store.event(step.key, "failed", reason=f"{type(error).__name__}: {error}")
        raise
    facts = {"seconds": round(time.monotonic() - began, 2)} | facts
    store.finish(step.key, facts)
    store.event(step.key, "done", **facts)
    return facts


def _run(step: Step, store: Store, folder: Path) -> dict[str, Any]:
    return importlib.import_module(f"flgbench.steps.{step.kind}").run(step, store, folder) or {}
