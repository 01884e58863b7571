"""Planning and scheduling: how long `plan` takes for many cells, and how close a schedule comes to its lower bound.

Run with `pytest tests/benchmarks --benchmark-enable`. Step times are those of the run in `reports/measured`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from flgbench.cells import Step
from flgbench.plan import Plan, plan
from flgbench.registry import registry
from flgbench.run_settings import RunSettings
from flgbench.schedule import lower_bound, makespan, remaining

MEASURED = Path(__file__).parents[2] / "reports" / "measured" / "steps.json"
CELLS = 10_000


@pytest.fixture
def many() -> Iterator[RunSettings]:
    """DMD2 with ten thousand learning rates."""
    names = [f"copy{i}" for i in range(CELLS)]
    for name in names:
        registry("methods").register(name, "methods.dmd2:DMD2")
    settings = {name: {"lr": 1e-4 * (1 + i / CELLS)} for i, name in enumerate(names)}
    yield RunSettings(methods=tuple(names), baselines=("euler",), method_settings=settings)
    registry.cache_clear()


def test_plan_of_ten_thousand_cells(benchmark, many: RunSettings) -> None:
    """Seconds of `plan` (wanted: 2)."""
    made = benchmark.pedantic(plan, args=(many, {}), rounds=1)
    assert len(made.cells) == CELLS + 1 and len(made.steps) > 3 * CELLS


@pytest.fixture(scope="module")
def default() -> tuple[Plan, dict[str, float]]:
    """The default plan of what was measured, and the seconds of its steps by kind and name."""
    recorded = json.loads(MEASURED.read_text())
    known = {cell for step in recorded for cell in step["cells"]}
    names = {k: tuple(n for n in registry(k).groups()["all"] if n in known) for k in ("methods", "baselines")}
    made = plan(RunSettings(**names), {})
    measured = {(s["kind"], s["name"], i): s["seconds"] for i, s in numbered(recorded)}
    mine = [{"kind": s.kind, "name": s.name, "key": key} for key, s in made.steps.items()]
    return made, {s["key"]: measured[s["kind"], s["name"], i] for i, s in numbered(mine)}


def numbered(steps: list[dict]) -> Iterator[tuple[int, dict]]:
    """Steps with the number of earlier ones of the same kind and name: two methods may each have a stage `match`."""
    seen: dict[tuple[str, str], int] = {}
    for step in steps:
        place = step["kind"], step["name"]
        seen[place] = seen.get(place, -1) + 1
        yield seen[place], step


@pytest.mark.parametrize("slots", [2, 4, 8, 16])
def test_makespan_of_the_default_plan(benchmark, default: tuple[Plan, dict[str, float]], slots: int) -> None:
    """On `slots` equal machines, by estimated priorities and recorded step times."""
    made, measured = default

    def seconds(step: Step) -> float:
        return measured[step.key]

    priority = remaining(made)
    length = benchmark.pedantic(makespan, args=(made, slots, seconds, priority), rounds=1)
    least = lower_bound(made, slots, seconds)
    assert least * (1 - 1e-9) <= length <= 1.10 * least
    benchmark.extra_info.update(makespan_s=round(length, 1), bound_s=round(least, 1), ratio=round(length / least, 4))
