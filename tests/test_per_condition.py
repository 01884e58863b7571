"""Differences by condition against numbers set by hand: which conditions are won and lost, signs, order, intervals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_runs import make_run

from reports import per_condition
from reports.data import RunData, load_run

CONDITIONS = 12


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", conditions=CONDITIONS, samples=2, pairs=6, clips=1)


def with_values(folder: Path, metric: str, **cells: np.ndarray) -> RunData:
    """The run with one value a condition in both samples; a NaN is a missing row."""
    table = pd.read_parquet(folder / "results.parquet")
    for cell, values in cells.items():
        rows = (table.metric == metric) & (table.cell == cell.replace("_", "-"))
        each = np.asarray(values, float)[table.loc[rows, "condition"].to_numpy(int)]
        table.loc[rows, "value"] = each
        table.loc[rows, "status"] = np.where(np.isnan(each), "missing", "ok")
        table.loc[rows, "reason"] = np.where(np.isnan(each), "object lost", None)
    table.to_parquet(folder / "results.parquet")
    return load_run(folder)


def test_won_and_lost_conditions(folder: Path) -> None:
    reference, dmd2, fast = np.ones(CONDITIONS), np.ones(CONDITIONS), np.ones(CONDITIONS)
    reference[[2, 3]] = 0
    dmd2[[3, 5, 7]] = 0  # wins 2, loses 5 and 7, both wrong in 3
    fast[[2, 3, 7]] = 0  # loses 7, both wrong in 2 and 3
    run = with_values(folder, "joint", euler_50=reference, dmd2=dmd2, fastlightgen=fast)
    cells = per_condition.compared(run)
    assert [c.cell for c in cells] == ["fastlightgen", "dmd2"], "a failed method has no differences"
    kinds, conditions = per_condition.outcomes(run, cells)
    assert conditions[0] == 7 and conditions[1] == 5 and set(conditions[-2:]) == {2, 3}
    found = {c: kinds[1][i] for i, c in enumerate(conditions)}
    assert found[2] == per_condition.METHOD_ONLY and found[3] == per_condition.BOTH_WRONG
    assert {c for c, k in found.items() if k == per_condition.REFERENCE_ONLY} == {5, 7}
    assert sum(k == per_condition.BOTH_RIGHT for k in found.values()) == CONDITIONS - 4
    mean = per_condition.by_condition(run, cells[1], "joint").mean
    assert mean.value == pytest.approx((1 - 2) / CONDITIONS) and mean.low < mean.value < mean.high


def test_differences_are_sorted_and_signed_by_what_is_better(folder: Path) -> None:
    shift = np.linspace(-0.5, 0.6, CONDITIONS)[np.random.default_rng(0).permutation(CONDITIONS)]
    base = np.full(CONDITIONS, 2.0)
    missing = base + shift
    missing[4] = np.nan
    run = with_values(folder, "turn_error", euler_50=base, dmd2=missing)
    found = per_condition.by_condition(run, run.cell("dmd2"), "turn_error")
    assert 4 not in found.conditions and len(found.conditions) == found.mean.n == CONDITIONS - 1
    assert (np.diff(found.difference) >= 0).all()
    np.testing.assert_allclose(found.difference, shift[found.conditions])
    assert found.mean.value == pytest.approx(np.delete(shift, 4).mean())
    np.testing.assert_array_equal(found.better, -np.sign(found.difference), "less error is better")
    run = with_values(folder, "sharpness_ratio", euler_50=np.full(CONDITIONS, 0.9), dmd2=np.linspace(0.8, 1.2, CONDITIONS))
    found = per_condition.by_condition(run, run.cell("dmd2"), "sharpness_ratio")
    np.testing.assert_array_equal(found.better > 0, np.abs(found.values - 1) < 0.1 - 1e-12)


def test_other_conditions_are_not_drawn(folder: Path) -> None:
    cells = json.loads((folder / "cells.json").read_text())
    for cell in cells:
        cell["card"] = {"conditions_sha256": "other" if cell["cell"] == "dmd2" else "same"}
    (folder / "cells.json").write_text(json.dumps(cells))
    assert [c.cell for c in per_condition.compared(load_run(folder))] == ["fastlightgen"]


def test_figure_and_table(folder: Path, tmp_path: Path) -> None:
    run = load_run(folder)
    paths = per_condition.build(run, tmp_path / "out")
    assert [p.name for p in paths] == ["per_condition.png", "per_condition.pdf", "per_condition.csv"]
    table = pd.read_csv(paths[2])
    assert set(table.cell) == {"fastlightgen", "dmd2"} and set(table.metric) == {"joint", "turn_error", "sharpness_ratio"}
    np.testing.assert_allclose(table.difference, table.value - table.reference)
    joint = table[(table.cell == "dmd2") & (table.metric == "joint")]
    assert sorted(joint.condition) == list(range(CONDITIONS))
