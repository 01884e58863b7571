"""Quality profiles: places on the scale by hand, gaps instead of zeros, and what is shown."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from report_runs import make_run, rewritten

from reports import profile
from reports.data import RunData, load_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("profile") / "run", conditions=10, clips=1)


def changed(source: Path, target: Path, **values: dict[str, float]) -> RunData:
    """A copy of the run in which every `ok` row of metric -> cell -> value is that value."""
    copy = rewritten(source, target, "run.json", lambda run: None)
    table = pd.read_parquet(copy / "results.parquet")
    for metric, cells in values.items():
        for cell, value in cells.items():
            rows = (table.metric == metric) & (table.cell == cell)
            table.loc[rows, ["value", "status", "reason"]] = [value, "ok", None]
    table.to_parquet(copy / "results.parquet")
    return load_run(copy)


def mark(run: RunData, cell: str, metric: str) -> profile.Mark:
    return next(m for m in profile.marks(run, cell) if m.metric == metric)


def test_places_by_hand(folder: Path, tmp_path: Path) -> None:
    run = changed(
        folder,
        tmp_path / "run",
        turn_error={"real": 1.0, "frozen_image": 11.0, "dmd2": 3.5},
        motion_ratio={"real": 1.0, "frozen_image": 0.0, "dmd2": 1.3, "euler-4": 0.7},
        sharpness_ratio={"real": 0.9, "frozen_image": 0.9, "dmd2": 0.45},
        direction={"real": 1.0, "frozen_image": 0.0, "dmd2": 0.25},
    )
    assert mark(run, "dmd2", "turn_error").place == pytest.approx(0.75)
    assert mark(run, "dmd2", "motion_ratio").place == pytest.approx(0.7), "too much is as far off as too little"
    assert mark(run, "euler-4", "motion_ratio").place == pytest.approx(0.7)
    assert mark(run, "dmd2", "sharpness_ratio").place == pytest.approx(0.5), "a documented worst: a frozen frame is sharp"
    assert mark(run, "dmd2", "direction").place == pytest.approx(0.25)
    for cell, place in (("real", 1), ("frozen_image", 0)):
        assert mark(run, cell, "turn_error").place == place and mark(run, cell, "motion_ratio").place == place


def test_intervals_are_mapped_with_the_value(folder: Path, tmp_path: Path) -> None:
    run = load_run(folder)
    for metric in ("direction", "turn_error", "motion_ratio"):
        found = mark(run, "dmd2", metric)
        assert found.place is not None and found.low is not None and found.high is not None
        assert found.low - 1e-9 <= found.place <= found.high + 1e-9 and found.low < found.high
    scale = profile.Scale("motion_ratio", 0.0, 1.0)
    across = profile._mark(scale, profile.Estimate("dmd2", "motion_ratio", 1.05, 0.9, 1.2, 20))
    assert (across.low, across.high) == (pytest.approx(0.8), 1.0), "real clips lie inside the interval"


def test_what_is_missing_is_a_gap_with_its_reason(folder: Path, tmp_path: Path) -> None:
    run = load_run(folder)
    vendi = mark(run, "dmd2", "vendi")
    assert vendi.place is None and vendi.reason, "the test data measure no Vendi"
    assert all(m.place is None for m in profile.marks(run, "lcm")) and "collapsed" in mark(run, "lcm", "direction").reason

    def without_real(cells: list[dict[str, object]]) -> None:
        next(c for c in cells if c["cell"] == "real")["cell"] = "other"

    copy = rewritten(folder, tmp_path / "copy", "cells.json", without_real)
    table = pd.read_parquet(copy / "results.parquet")
    table.assign(cell=table.cell.replace("real", "other")).to_parquet(copy / "results.parquet")
    run = load_run(copy)
    assert "no number of real clips" in mark(run, "dmd2", "direction").reason
    assert profile.build(run, tmp_path / "out") == []


def test_few_step_baselines_and_first_trainings_are_shown(folder: Path, tmp_path: Path) -> None:
    def change(cells: list[dict[str, object]]) -> None:
        slow = next(c for c in cells if c["cell"] == "euler-4")
        slow["num_inference_steps"] = 40
        cells.append(next(c for c in cells if c["cell"] == "dmd2") | {"cell": "dmd2-seed1", "repeat": 1})

    run = load_run(rewritten(folder, tmp_path / "copy", "cells.json", change))
    assert [c.cell for c in profile.shown_cells(run)] == ["fastlightgen", "dmd2", "lcm", "euler-4-no-cfg"]


def test_the_figure_states_its_scale(folder: Path, tmp_path: Path) -> None:
    run = load_run(folder)
    paths = profile.build(run, tmp_path)
    assert [p.name for p in paths] == ["profile.png", "profile.pdf"] and paths[0].stat().st_size > 10_000
    said = profile.caption(run)
    assert "Motion 0 → " in said and "Area drift: no number of real clips" in said
    real = run.results.query("cell == 'real' and metric == 'direction'").groupby("condition").value.mean().mean()
    assert f"Direction 0 → {round(100 * real, 1):g} %" in said
