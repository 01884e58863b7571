"""How far a run has come, in one line: for the page, for the terminal's table, and for whoever reads partial results."""

from __future__ import annotations

from reports.data import RunData

OPEN = ("waiting", "running")


def in_progress(run: RunData) -> bool:
    """True while steps wait or run, or when the run was never said to be finished."""
    return run.run.finished is None or any(s.status in OPEN for s in run.steps)


def line(run: RunData) -> str:
    """'in progress: 12 of 49 steps done, 1 running; no cell is finished yet'; '' for a run that has come to its end."""
    if not in_progress(run):
        return ""
    counts = {status: sum(s.status == status for s in run.steps) for status in ("running", "failed", "blocked")}
    done = sum(s.status in ("done", "cached") for s in run.steps)
    parts = [f"in progress: {done} of {len(run.steps)} steps done"]
    parts += [f"{count} {status}" for status, count in counts.items() if count]
    nothing = "" if any(c.status in ("done", "cached") for c in run.cells) else "; no cell is finished yet"
    return ", ".join(parts) + nothing
