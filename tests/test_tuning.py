"""The search for settings: who goes on, what is told, and one real search of two short trainings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import Flgbench, assert_refused
from hypothesis import given
from hypothesis import strategies as st

from flgbench.plan import plan
from flgbench.registry import registry
from flgbench.run_settings import RunSettings
from flgbench.sweeps import Variant
from flgbench.tune_verb import _evaluation
from flgbench.tuning import Range, Search, Trial, better_half, dominates, rungs, search
from reports import tuning as report

WANTED = Search("m", {"a": Range(("x.a",), 0.0, 1.0, paper=0.9), "b": Range(("x.b", "x.c"), 0.0, 2.0, paper=0.5)})


def landscape(variants: Sequence[Variant]) -> list[dict[str, float] | str]:
    """Best at a = 0.3, b = 1; a longer training is better everywhere; very large b fails."""
    found: list[dict[str, float] | str] = []
    for v in variants:
        a, b, budget = v.settings["x"]["a"], v.settings["x"]["b"], v.budget or 0
        away = abs(a - 0.3) + abs(b - 1) / 2
        fit = {"joint": 1 - away - 100 / budget, "turn_error": 1 + away}
        found.append("failed: NaN: by request" if b > 1.8 else fit)
    return found


def test_a_point_sets_every_path_of_its_ranges() -> None:
    v = WANTED.variant({"a": 0.25, "b": 1.5}, 500.0)
    assert v.settings == {"x": {"a": 0.25, "b": 1.5, "c": 1.5}} and v.budget == 500
    assert WANTED.distance({"a": 0.9, "b": 0.5}, WANTED.paper or {}) == 0
    assert WANTED.distance({"a": 0.0, "b": 2.0}, {"a": 1.0, "b": 0.0}) == pytest.approx(1)
    assert Search("m", {"a": Range(("a",), 0, 1)}).paper is None
    assert rungs(800, 3) == [200, 400, 800]


trials = st.builds(
    lambda n, j, e: Trial(n, {}, 1.0, {"joint": j, "turn_error": e}), st.integers(0, 99), st.floats(0, 1), st.floats(0, 9)
)


@given(st.lists(trials, min_size=1, max_size=9))
def test_the_half_that_goes_on_holds_someone_whom_nobody_dominates(given_trials: list[Trial]) -> None:
    kept = better_half(given_trials)
    assert len(kept) == (len(given_trials) + 1) // 2
    assert not any(dominates(t, kept[0]) for t in given_trials)
    assert not any(dominates(t, t) for t in given_trials)


def test_a_search_finds_the_good_corner_and_tells_everything() -> None:
    found = search(WANTED, landscape, 800.0, trials=8, rounds=4, levels=3, seed=0)
    assert len(found) == 32 and found[0].point == WANTED.paper  # the paper's point is tried first
    budgets = [t.budget for t in found[:8]]
    assert budgets.count(800) == 2 and set(budgets) == {200.0, 400.0, 800.0}
    best = max((t for t in found if t.pareto), key=lambda t: t.values["joint"])
    assert best.values["turn_error"] < 1.25 < 1 + abs(0.9 - 0.3) + 0.25
    pareto = [t for t in found if t.pareto]
    assert all(t.budget == 800 for t in pareto) and not any(dominates(a, b) for a in pareto for b in pareto)
    failed = [t for t in found if not t.values]
    assert all(t.reason == "failed: NaN: by request" and t.point["b"] > 1.8 for t in failed)
    again = search(WANTED, landscape, 800.0, trials=8, rounds=4, levels=3, seed=0)
    assert [t.point for t in again] == [t.point for t in found]


def test_when_all_fail_it_says_so(tmp_path: Path) -> None:
    found = search(WANTED, lambda variants: ["failed: <b>"] * len(variants), 800.0, trials=2, rounds=1, levels=2)
    assert not any(t.pareto or t.values for t in found)
    assert report.lines(WANTED, found) == "2 trials, 2 failed; Pareto set:"
    assert report.draw(WANTED, found, tmp_path) == []
    assert "failed: &lt;b&gt;" in report.table(WANTED, found).markdown()


def test_the_report_names_the_pareto_set_and_the_distance(tmp_path: Path) -> None:
    found = search(WANTED, landscape, 800.0, trials=4, rounds=2, levels=2, seed=1)
    paths = report.write(WANTED, found, tmp_path)
    assert {p.suffix for p in paths} == {".md", ".csv", ".tex", ".png", ".pdf"} and all(p.exists() for p in paths)
    rows = report.table(WANTED, found).rows
    assert rows[0].entries["pareto"].text == "yes" and len(rows) == len(found)
    by_number = {r.key: r.entries for r in rows}
    assert by_number["0"]["distance"].value == 0
    assert "of the ranges from the paper's point (a 0.9, b 0.5)" in report.lines(WANTED, found)
    assert json.loads(report.as_json(WANTED, found))["paper"] == {"a": 0.9, "b": 0.5}


def test_validation_conditions_are_other_steps_and_test_keys_stay() -> None:
    cells = {}
    for split in ("test", "validation"):
        made = plan(RunSettings(baselines=("euler",), split=split), {})
        (cell,) = made.cells
        cells[split] = made.steps[cell.sample].settings, made.steps[cell.quality].settings
    assert all("split" not in s for s in cells["test"]) and all(s["split"] == "validation" for s in cells["validation"])


def test_two_real_trainings(tmp_path: Path) -> None:
    """The registered search through the plan, on validation conditions, at a budget that only shows that it runs."""
    wanted = registry("searches").get("fastlightgen")(registry("families").get("wanx")().preset("tiny"))
    settings = RunSettings(budget=900, training_clips=16, conditions=2, repeated_conditions=0, pairs=3, split="validation")
    variants = [wanted.variant(wanted.paper, 900.0), wanted.variant({"alpha": 0.5, "beta1": 1.0, "beta2": 0.1}, 900.0)]
    found = _evaluation(settings, tmp_path, 1)(variants)
    assert all(isinstance(f, dict) and set(f) == {"joint", "turn_error"} for f in found), found
    store = tmp_path / "store"
    assert len(list(store.glob("train-importance-*"))) == 1 and len(list(store.glob("train-match-*"))) == 2


def test_wrong_input_is_one_line(flgbench: Flgbench) -> None:
    assert_refused(flgbench("tune", "fastlihgtgen"), "no search 'fastlihgtgen'", "did you mean 'fastlightgen'")
    assert_refused(flgbench("tune", "--budget", "100"), "fastlightgen: ranking blocks takes")
    assert_refused(flgbench("tune", "--trials", "1"), "--trials")
