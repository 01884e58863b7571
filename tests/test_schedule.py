"""Critical path first: against hand-made cases and against bounds that hold for any plan."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flgbench.cells import Step
from flgbench.plan import Plan, plan
from flgbench.registry import registry
from flgbench.run_settings import RunSettings
from flgbench.schedule import estimate, lower_bound, makespan, remaining


def made(*steps: tuple[str, float, list[str]]) -> Plan:
    """A plan of (name, seconds, names of parents)."""
    found: dict[str, Step] = {}
    for name, seconds, parents in steps:
        step = Step("toy", name, {"seconds": seconds}, {p: found[p].key for p in parents})
        found[name] = step
    return Plan({s.key: s for s in found.values()}, [])


def seconds(step: Step) -> float:
    return step.settings["seconds"]


def test_remaining_is_the_longest_chain() -> None:
    diamond = made(("a", 1, []), ("b", 2, ["a"]), ("c", 5, ["a"]), ("d", 1, ["b", "c"]), ("e", 9, []))
    assert {k.split("-")[1]: v for k, v in remaining(diamond, seconds).items()} == {"a": 7, "b": 3, "c": 6, "d": 1, "e": 9}


def test_the_long_chain_goes_first() -> None:
    """Three short steps first would leave the long chain alone at the end: 3 + 8 instead of 8."""
    work = made(*((f"short{i}", 2, []) for i in range(4)), ("long", 4, []), ("end", 4, ["long"]))
    assert makespan(work, 2, seconds) == 8 == lower_bound(work, 2, seconds)
    backwards = {key: -value for key, value in remaining(work, seconds).items()}
    assert makespan(work, 2, seconds, backwards) == 12


@given(st.lists(st.tuples(st.floats(0.1, 10), st.lists(st.integers(0, 20), max_size=3)), min_size=1, max_size=20))
def test_bounds_of_list_scheduling(steps: list[tuple[float, list[int]]]) -> None:
    """Graham: at most (2 - 1/slots) times the lower bound; with one slot it is all the work."""
    work = made(*((str(i), s, sorted({str(p) for p in parents if p < i})) for i, (s, parents) in enumerate(steps)))
    for slots in (1, 2, 3, 50):
        least = lower_bound(work, slots, seconds)
        assert least * (1 - 1e-9) <= makespan(work, slots, seconds) <= (2 - 1 / slots) * least * (1 + 1e-9)
    assert makespan(work, 1, seconds) == pytest.approx(sum(s for s, _ in steps))


def test_every_step_of_the_default_plan_has_an_estimate() -> None:
    names = {k: tuple(registry(k).groups()["all"]) for k in ("methods", "baselines")}
    default = plan(RunSettings(**names), {})
    assert all(estimate(step) > 0 for step in default.steps.values())
    chains = remaining(default)
    first = max((k for k, s in default.steps.items() if s.kind == "train"), key=chains.__getitem__)
    assert default.steps[first].name in ("importance", "match", "distill", "content")
