"""Search for a method's settings: Optuna proposes, short trainings weed out, long ones decide (successive halving).

Judged on validation conditions, by two measures at once: the joint accuracy, and the centroid's error at the turn, which
jitter, drift and exaggerated motion raise. A search that could be won by shaking the object would find that out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from flgbench.sweeps import Variant, nested

OBJECTIVES: dict[str, Literal["maximize", "minimize"]] = {"joint": "maximize", "turn_error": "minimize"}


@dataclass(frozen=True)
class Range:
    """One setting of the search, uniform in [low, high]. `paths`: what it sets; `paper`: the value known of the paper."""

    paths: tuple[str, ...]
    low: float
    high: float
    paper: float | None = None


@dataclass(frozen=True)
class Search:
    """What is searched: registered in the group `flgbench.searches` as a function of the family's preset."""

    method: str
    ranges: Mapping[str, Range]

    def variant(self, point: Mapping[str, float], budget: float) -> Variant:
        values = {path: value for name, value in point.items() for path in self.ranges[name].paths}
        told = {name: float(f"{value:.4g}") for name, value in point.items()} | {"budget": budget}
        return Variant(sweep="search", method=self.method, point=told, settings=nested(values), budget=budget)

    @property
    def paper(self) -> dict[str, float] | None:
        """The paper's point, None unless every coordinate is known."""
        known = {name: r.paper for name, r in self.ranges.items()}
        return None if None in known.values() else {k: v for k, v in known.items() if v is not None}

    def distance(self, point: Mapping[str, float], other: Mapping[str, float]) -> float:
        """Root mean square over the settings, each in units of its range: 0 to 1."""
        shares = [(point[n] - other[n]) / (r.high - r.low) for n, r in self.ranges.items()]
        return math.sqrt(sum(s * s for s in shares) / len(shares))


@dataclass
class Trial:
    """One point and what it reached. `values`: objective -> mean; empty and with a `reason` when it failed."""

    number: int
    point: dict[str, float]
    budget: float = 0.0
    values: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    pareto: bool = False


Evaluate = Callable[[Sequence[Variant]], list[dict[str, float] | str]]  # the objectives of each, or why there are none


def rungs(budget: float, count: int) -> list[float]:
    """`count` budgets, each half of the next, up to `budget`."""
    return [budget / 2 ** (count - 1 - i) for i in range(count)]


def search(
    wanted: Search, evaluate: Evaluate, budget: float, trials: int = 8, rounds: int = 2, levels: int = 3, seed: int = 0
) -> list[Trial]:
    """`rounds` times `trials` points; at each budget but the last the better half goes on. The paper's point comes first.

    What Optuna is told of a point is what it reached with the longest training it got.
    """
    import optuna  # an extra: slow to import, and only this needs it

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=trials)
    study = optuna.create_study(directions=list(OBJECTIVES.values()), sampler=sampler)
    if wanted.paper:
        study.enqueue_trial(dict(wanted.paper))
    done: list[Trial] = []
    for _ in range(rounds):
        asked = [study.ask() for _ in range(trials)]
        now = [
            Trial(len(done) + i, {n: t.suggest_float(n, r.low, r.high) for n, r in wanted.ranges.items()})
            for i, t in enumerate(asked)
        ]
        alive = list(now)
        for level in rungs(budget, levels):
            found = evaluate([wanted.variant(t.point, level) for t in alive])
            for trial, outcome in zip(alive, found, strict=True):
                trial.budget = level
                trial.values, trial.reason = ({}, outcome) if isinstance(outcome, str) else (outcome, "")
            alive = better_half([t for t in alive if t.values])
        for asking, trial in zip(asked, now, strict=True):
            if trial.values:
                study.tell(asking, [trial.values[name] for name in OBJECTIVES])
            else:
                study.tell(asking, state=optuna.trial.TrialState.FAIL)
        done += now
    for trial in done:
        rivals = [t for t in done if t.values and t.budget == trial.budget]
        trial.pareto = bool(trial.values) and trial.budget == budget and not any(dominates(t, trial) for t in rivals)
    return done


def dominates(a: Trial, b: Trial) -> bool:
    """Is `a` at least as good as `b` in every objective, and better in one?"""
    signs = [1 if way == "maximize" else -1 for way in OBJECTIVES.values()]
    gains = [s * (a.values[n] - b.values[n]) for s, n in zip(signs, OBJECTIVES, strict=True)]
    return min(gains) >= 0 and max(gains) > 0


def better_half(trials: Sequence[Trial]) -> list[Trial]:
    """Those that the fewest others dominate; among equals the higher joint accuracy. At least one, of any."""

    def rank(trial: Trial) -> tuple[Any, ...]:
        return sum(dominates(t, trial) for t in trials), -trial.values["joint"], trial.number

    return sorted(trials, key=rank)[: math.ceil(len(trials) / 2)]
