"""What a job runs, one file per kind. Each has `run(step, store, folder) -> facts` and writes into `folder`."""

from __future__ import annotations

import importlib
import time
from typing import Any

from flgbench.plan import Step
from flgbench.store import Store


def execute(step: Step, store: Store) -> dict[str, Any]:
    """Run one step to a finished artifact; returns its facts. A failure or a stop is recorded in the events and raised."""
    folder = store.start(step.key)
    store.event(step.key, "started")
    began = time.monotonic()
    try:
        facts = importlib.import_module(f"flgbench.steps.{step.kind}").run(step, store, folder)
    except (KeyboardInterrupt, SystemExit):  # by hand, or by a scheduler that will start it again: no failure
        store.event(step.key, "stopped")
        raise
    except BaseException as error:
        store.event(step.key, "failed", reason=f"{type(error).__name__}: {error}")
        raise
    facts = {"seconds": round(time.monotonic() - began, 2)} | (facts or {})
    store.finish(step.key, facts)
    store.event(step.key, "done", **facts)
    return facts
