"""Reports of runs that are not finished: partial results are shown and marked, and nothing unfinished is called failed."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from conftest import Flgbench
from report_runs import make_run

from flgbench.run_settings import RunSettings
from flgbench.runs import plan_record, prepare
from flgbench.store import write_json
from reports import build_all, progress
from reports.data import load_run
from reports.verdicts import verdict

UNFINISHED = ("fastlightgen", "euler-4")


def half_done(folder: Path, unfinished: tuple[str, ...], rows: bool = True) -> Path:
    """The run as it is written while the steps of some cells wait or run: their measures are missing, with the reason."""
    cells = json.loads((folder / "cells.json").read_text())
    for c in cells:
        if c["cell"] in unfinished:
            c |= {"status": "waiting", "reason": "not finished when this was written", "nfe": None, "kept_blocks": None}
            c |= {"kept_parameters": None, "parameters": None, "training_passes": None}
    (folder / "cells.json").write_text(json.dumps(cells))
    steps = json.loads((folder / "steps.json").read_text())
    for s in steps:
        if s["name"] in unfinished:
            s |= {"status": "running" if s["kind"] == "sample" else "waiting", "seconds": None, "reason": ""}
    (folder / "steps.json").write_text(json.dumps(steps))
    table = pd.read_parquet(folder / "results.parquet")
    gone = table.cell.isin(unfinished)
    missing = table[gone].drop_duplicates(["cell", "metric"]).assign(value=float("nan"), status="missing", condition=-1)
    parts = [table[~gone], missing.assign(reason="waiting")] if rows else [table[~gone]]
    pd.concat(parts).to_parquet(folder / "results.parquet")
    for name in unfinished:
        (folder / "gallery" / f"{name}.safetensors").unlink(missing_ok=True)
    return folder


def test_partial_results_are_shown_and_marked(tmp_path: Path) -> None:
    folder = half_done(make_run(tmp_path / "run", conditions=8, pairs=6, clips=1), UNFINISHED)
    run = load_run(folder)
    said = "in progress: 12 of 18 steps done, 2 running, 2 failed"
    assert progress.line(run) == said
    page = build_all(folder).read_text()
    overview = page[page.index('id="overview"') : page.index('id="plot-section"')]
    assert f"This run is {said}." in overview and "partial" in overview
    assert overview.count("not finished</span>") == 3, "both cells in the list, the method's card"
    assert "could not be made" not in page
    failed = overview[overview.index("What failed") :]
    failed = failed[: failed.index("</ul>")]
    assert "LCM" in failed and "FastLightGen" not in failed and "Euler 4<" not in failed
    summary = (folder / "report" / "tables" / "summary.txt").read_text().splitlines()
    assert summary[0] == said
    assert next(line for line in summary if line.startswith("FastLightGen")).endswith("not finished")
    assert not next(line for line in summary if line.startswith("DMD2")).endswith("not finished")
    assert verdict(run, run.cell("fastlightgen")).answer == "undecided"
    main = pd.read_csv(folder / "report" / "tables" / "main.csv", dtype=str, keep_default_na=False).set_index("cell")
    assert main.loc["fastlightgen", "joint"] == "" and main.loc["dmd2", "joint"] != ""


@pytest.mark.parametrize("rows", [True, False])
def test_no_finished_cell_at_all(tmp_path: Path, rows: bool) -> None:
    folder = make_run(tmp_path / "run", conditions=6, samples=1, pairs=6, clips=1)
    everything = tuple(c["cell"] for c in json.loads((folder / "cells.json").read_text()))
    half_done(folder, everything, rows)
    page = build_all(folder).read_text()
    said = "in progress: 0 of 18 steps done, 9 running; no cell is finished yet"
    assert f"This run is {said}." in page and "could not be made" not in page and "What failed" not in page
    assert (folder / "report" / "tables" / "summary.txt").read_text().startswith(said)


def test_a_run_of_nothing(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", conditions=6, samples=1, pairs=6, clips=1)
    for name in ("cells.json", "steps.json"):
        (folder / name).write_text("[]")
    pd.read_parquet(folder / "results.parquet").iloc[:0].to_parquet(folder / "results.parquet")
    page = build_all(folder).read_text()
    assert "could not be made" not in page and "in progress" not in page, "it has come to its end, with nothing"


def test_a_finished_run_says_nothing(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", conditions=6, samples=1, pairs=6, clips=1)
    assert progress.line(load_run(folder)) == ""
    assert "in progress" not in build_all(folder).read_text()
    assert "in progress" not in (folder / "report" / "tables" / "summary.txt").read_text()


def test_report_of_a_run_that_goes_on(tmp_path: Path, flgbench: Flgbench) -> None:
    """Only the plan is there, as while the first step runs; the report tells so, and again once a step has failed."""
    settings = RunSettings(baselines=("real", "euler"), conditions=2)
    steps, store = prepare(settings, tmp_path)
    folder = tmp_path / "runs" / "goes-on"
    folder.mkdir(parents=True)
    write_json(folder / "plan.json", plan_record(steps, settings))
    first, *others = steps.steps
    store.start(first)
    store.event(first, "started")
    code, printed, err = flgbench("report", "goes-on", "--out", str(tmp_path))
    said = f"in progress: 0 of {len(steps.steps)} steps done, 1 running; no cell is finished yet"
    assert code == 0 and said in printed, err
    assert said in (folder / "report" / "index.html").read_text()
    store.event(first, "failed", reason="by request")
    code, printed, _ = flgbench("report", "goes-on", "--out", str(tmp_path))
    assert code == 0 and f"1 failed, {len(others)} blocked" in printed, "gathered again, because it was not finished"
    assert "by request" in (folder / "report" / "index.html").read_text()
