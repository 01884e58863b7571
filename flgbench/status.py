"""Where a run stands, from its files; of a run on a cluster also what the scheduler says. Without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flgbench.errors import UsageError
from flgbench.store import Store


def find_run(out: Path, name: str | None) -> Path:
    """The folder of run `name`, or of the latest in `out`. Raises UsageError if there is none."""
    runs = sorted((p.parent for p in out.glob("runs/*/plan.json")), key=lambda p: (p / "plan.json").stat().st_mtime)
    if name is not None:
        folder = Path(name) if (Path(name) / "plan.json").exists() else out / "runs" / name
        if not (folder / "plan.json").exists():
            known = ", ".join(r.name for r in runs) or "none"
            raise UsageError(f"no run '{name}' in {out}. Runs there: {known}")
        return folder
    if not runs:
        raise UsageError(f"no runs in {out}: start one with `flgbench run`, or name its folder with --out")
    return runs[-1]


def step_lines(folder: Path) -> list[dict[str, Any]]:
    """One entry a step of the run in `folder`: step, state, attempts, and what its last event tells."""
    store = Store(folder.parent.parent / "store")
    steps = json.loads((folder / "plan.json").read_text())["steps"]
    scheduled: dict[str, dict[str, Any]] = {}
    if (folder / "slurm").exists():
        from slurm.state import look

        scheduled = look({s["key"]: list(s["inputs"].values()) for s in steps}, store)
    lines = []
    for step in steps:
        events = store.events(step["key"])
        last = events[-1] if events else {"event": "waiting"}
        state = "running" if last["event"] in ("started", "progress", "job") else last["event"]
        state = "done" if store.is_done(step["key"]) else state
        attempts = sum(e["event"] == "started" for e in events)
        details = {k: v for k, v in last.items() if k in ("fraction", "loss", "reason", "seconds")}
        line = {"step": f"{step['kind']} {step['name']}", "state": state, "attempts": attempts} | details
        lines.append(line | scheduled.get(step["key"], {}))
    return lines
