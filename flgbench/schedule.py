"""Which of the ready steps goes first: the one whose chain is longest (critical path first). Pure functions of a plan."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from flgbench.cells import Step
from flgbench.costs import WARM_UP, nfe
from flgbench.interleaving import timed_clips
from flgbench.plan import Plan

Seconds = Callable[[Step], float]
CLIP = 12.0  # measuring or encoding one clip, in network passes
TRAINED = 1.3  # a training pass, in small batches and with its optimiser, over a sampling pass


def estimate(step: Step) -> float:
    """Rough work of a step in network passes of one clip: only ratios matter, and nothing is measured for it."""
    told = step.settings
    clips = told.get("conditions", 0) + 7 * told.get("repeated_conditions", 0)
    if step.kind == "train":
        return TRAINED * told["loop"]["budget"] if "loop" in told else 700.0
    if step.kind == "sample":
        return clips * (CLIP / 4 + nfe(told.get("sampler")))
    if step.kind == "latency":
        passes = {name: nfe(sampler) for name, sampler in told["samplers"].items()}
        timed = timed_clips(passes, told["reference"], told["pairs"])
        return 1.5 * sum((timed[name] + WARM_UP) * (passes[name] + CLIP / 2) for name in passes)
    return CLIP * told.get("count", 64)


def remaining(plan: Plan, seconds: Seconds = estimate) -> dict[str, float]:
    """Step -> length of the longest chain that begins with it."""
    longest: dict[str, float] = {}
    after: dict[str, float] = {}  # the longest chain among a step's children
    for key, step in reversed(plan.steps.items()):
        longest[key] = seconds(step) + after.get(key, 0.0)
        for parent in step.inputs.values():
            after[parent] = max(after.get(parent, 0.0), longest[key])
    return longest


def makespan(plan: Plan, slots: int, seconds: Seconds, priority: dict[str, float] | None = None) -> float:
    """When the last step ends on `slots` equal machines, each of which takes the ready step of highest priority."""
    priority = priority or remaining(plan, seconds)
    children: dict[str, list[str]] = {key: [] for key in plan.steps}
    waits = {key: len(set(step.inputs.values())) for key, step in plan.steps.items()}
    for key, step in plan.steps.items():
        for parent in set(step.inputs.values()):
            children[parent].append(key)
    ready = [(-priority[key], key) for key, count in waits.items() if count == 0]
    heapq.heapify(ready)
    running: list[tuple[float, str]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < slots:
            key = heapq.heappop(ready)[1]
            heapq.heappush(running, (now + seconds(plan.steps[key]), key))
        now, done = heapq.heappop(running)
        for child in children[done]:
            waits[child] -= 1
            if waits[child] == 0:
                heapq.heappush(ready, (-priority[child], child))
    return now


def lower_bound(plan: Plan, slots: int, seconds: Seconds) -> float:
    """No schedule is shorter: max(critical path, work / slots)."""
    return max(max(remaining(plan, seconds).values()), sum(map(seconds, plan.steps.values())) / slots)
