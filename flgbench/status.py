"""Where a run stands, from its files; of a run on a cluster also what the scheduler says. Without torch."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
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


def runs_of(folder: Path) -> list[Path]:
    """The runs of a command for several families, whose folders lie beside it; of a single run itself."""
    names = json.loads((folder / "plan.json").read_text()).get("runs")
    return [folder.parent / name for name in names] if names else [folder]


def find_single(out: Path, name: str | None) -> Path:
    """As `find_run`, for what a single run has. Raises UsageError for one of several families, and names theirs."""
    folder = find_run(out, name)
    if len(runs := runs_of(folder)) > 1:
        raise UsageError(f"{folder.name} is of several families: name one of its runs: {', '.join(r.name for r in runs)}")
    return folder


def step_lines(folder: Path) -> list[dict[str, Any]]:
    """One entry a step of the run in `folder`: step, state, attempts, and what its last event tells."""
    store = Store(folder.parent.parent / "store")
    steps = json.loads((folder / "plan.json").read_text())["steps"]
    scheduled: dict[str, dict[str, Any]] = {}
    if (folder / "slurm").exists():
        from slurm.state import look

        scheduled = look({s["key"]: list(s["inputs"].values()) for s in steps}, store)
    lines = []
    bad: set[str] = set()  # steps that failed or wait for one that did
    for step in steps:
        events = store.events(step["key"])
        last = events[-1] if events else {"event": "waiting"}
        state = "running" if last["event"] in ("started", "progress", "job") else last["event"]
        state = "done" if store.is_done(step["key"]) else state
        if state == "waiting" and bad.intersection(step["inputs"].values()):
            state = "blocked"
        if state in ("failed", "blocked"):
            bad.add(step["key"])
        attempts = sum(e["event"] == "started" for e in events)
        details = {k: v for k, v in last.items() if k in ("fraction", "loss", "reason", "seconds")}
        title = step.get("title") or f"{step['kind']} {step['name']}"
        line = {"step": title, "state": state, "attempts": attempts} | details
        lines.append(line | scheduled.get(step["key"], {}))
    return lines


def unfinished(folder: Path) -> bool:
    """True while the results of a run have not been written, or were written by a report of a run in progress."""
    if not all((folder / name).exists() for name in ("run.json", "results.parquet")):
        return True
    try:
        return json.loads((folder / "run.json").read_text()).get("finished") is None
    except ValueError:  # the report says what is wrong with the file
        return False


def as_text(line: dict[str, Any]) -> str:
    """One line of a terminal."""
    shown = "  ".join(f"{k} {v}" for k, v in line.items() if k not in ("step", "state"))
    return f"{line['state']:8} {line['step']:30} {shown}"


def watched(folder: Path, seconds: float = 5.0) -> Iterator[list[dict[str, Any]]]:
    """`step_lines` again whenever they have changed, looking every `seconds`, until no step waits or runs."""
    before: list[dict[str, Any]] = []
    while True:
        now = step_lines(folder)
        if now != before:
            yield now
        before = now
        if not any(line["state"] in ("waiting", "running", "stopped", "requeued") for line in now):
            return
        time.sleep(seconds)
