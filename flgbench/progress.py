"""Progress of a run: bars on a terminal, plain lines in a log. Reads only statuses and event files."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from flgbench.plan import Plan
from flgbench.runner import CACHED, FAILED, RUNNING, WAITING, Status
from flgbench.store import Store

PLAIN_EVERY = 15.0  # seconds between lines about one running step in a log


class Progress:
    """Context manager; `update(status)` may be called as often as one likes."""

    def __init__(self, plan: Plan, store: Store) -> None:
        self.plan, self.store, self.titles = plan, store, plan.titles()
        self.seen: dict[str, str] = {}
        self.said: dict[str, float] = {}
        self.began: dict[str, float] = {}
        self.tasks: dict[str, TaskID] = {}
        self.terminal = sys.stderr.isatty()
        columns = (TextColumn("{task.description:38}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.bars = Bars(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True))

    def __enter__(self) -> Progress:
        if self.terminal:
            self.bars.start()
            self.overall = self.bars.add_task("all steps", total=len(self.plan.steps), note="")
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.terminal:
            self.bars.stop()

    def update(self, status: dict[str, Status]) -> None:
        over = sum(s.state not in (WAITING, RUNNING) for s in status.values())
        for key, now in status.items():
            before = self.seen.get(key)
            if now.state != before:
                self.seen[key] = now.state
                self._changed(key, now, before, over)
            if now.state == RUNNING:
                self._running(key)
        if self.terminal:
            self.bars.update(self.overall, completed=over)

    def _changed(self, key: str, now: Status, before: str | None, over: int) -> None:
        if now.state == RUNNING:
            self.began[key] = self.said[key] = time.monotonic()
            if self.terminal:
                self.tasks[key] = self.bars.add_task(self.titles[key], total=100, note="")
        elif key in self.tasks:
            self.bars.remove_task(self.tasks.pop(key))
        if now.state == FAILED:
            self._line(f"FAILED   {self.titles[key]}: {now.reason}")
        elif not self.terminal and now.state not in (WAITING, CACHED):
            # A short job of a cluster may be over before it was seen to run.
            timed = now.state == "done" and key in self.began
            took = f" in {time.monotonic() - self.began[key]:.1f} s" if timed else ""
            self._line(f"{now.state:8} {self.titles[key]}{took}  [{over}/{len(self.plan.steps)}]")

    def _running(self, key: str) -> None:
        if not self.terminal and time.monotonic() - self.said[key] < PLAIN_EVERY:
            return
        self.said[key] = time.monotonic()
        events = [e for e in self.store.events(key) if e["event"] == "progress"]
        if not events:
            return
        fraction, elapsed = events[-1]["fraction"], time.monotonic() - self.began[key]
        left = f"{elapsed * (1 - fraction) / fraction:.0f} s left" if fraction > 0.02 else ""
        loss = f"loss {events[-1]['loss']:.4f} " if "loss" in events[-1] else ""
        if self.terminal:
            self.bars.update(self.tasks[key], completed=round(100 * fraction), note=loss + left)
        else:
            self._line(f"running  {self.titles[key]} {100 * fraction:.0f} % {loss}{left}")

    def _line(self, text: str) -> None:
        if self.terminal:
            self.bars.console.print(text, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)
