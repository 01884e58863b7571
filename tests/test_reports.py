"""Numbers of reports against direct computation: tables, verdicts, pairs, trainings, fronts, the paper's numbers."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from report_runs import make_run, read_csv, rewritten

from flgbench.metrics.stats import mcnemar
from reports import build_all, comparisons, filmstrip, main_table, paper_numbers, paper_tables, pareto, trainings, waterfall
from reports.aggregates import estimate, median_interval, speedups
from reports.data import RunData, load_run
from reports.style import looks
from reports.verdicts import verdict


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def index(folder: Path) -> Path:
    return build_all(folder)


def test_table_equals_direct_computation(folder: Path, index: Path) -> None:
    table, results = read_csv(index), pd.read_parquet(folder / "results.parquet")
    for cell in ("euler-50", "fastlightgen", "frozen_image", "real"):
        for metric in ("joint", "turn_error", "sharpness_ratio"):
            rows = results[(results.cell == cell) & (results.metric == metric) & (results.status == "ok")]
            by_condition = rows.groupby("condition")["value"].mean()
            assert float(table.loc[cell, metric]) == pytest.approx(by_condition.mean())
            low, high = float(table.loc[cell, f"{metric}_low"]), float(table.loc[cell, f"{metric}_high"])
            assert low <= by_condition.mean() <= high
            assert int(table.loc[cell, f"{metric}_n"]) == len(rows)
    seconds = results[results.metric == "denoise_s"].pivot(index="condition", columns="cell", values="value")
    ratio = np.exp(np.log(seconds["euler-50"] / seconds["fastlightgen"]).mean())
    assert float(table.loc["fastlightgen", "denoise"]) == pytest.approx(ratio)
    assert float(table.loc["fastlightgen", "denoise_s"]) == pytest.approx(seconds["fastlightgen"].median())
    assert float(table.loc["fastlightgen", "nominal"]) == pytest.approx(50 * 2 / (4 * 0.7))
    assert float(table.loc["euler-4", "nominal"]) == pytest.approx(12.5)


def test_a_slower_cell_is_not_called_faster(folder: Path, tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    shutil.copytree(folder, slow)
    table = pd.read_parquet(slow / "results.parquet")
    chosen = (table.cell == "fastlightgen") & (table.metric == "denoise_s")
    table.assign(value=table.value.mask(chosen, table.value * 100)).to_parquet(slow / "results.parquet")
    for run, ending in ((load_run(folder), "× faster"), (load_run(slow), "× the speed")):
        assert filmstrip.speed_line(run, run.cell("fastlightgen")).endswith(ending)


def test_intervals_cover_a_known_median() -> None:
    g = np.random.default_rng(5)
    hits = [low <= 1 <= high for _, low, high in (median_interval(np.exp(g.normal(0, 1, 20))) for _ in range(2000))]
    assert 0.94 < np.mean(hits) < 0.985  # order statistics 6 and 15 of 20: 95.9 %
    assert np.isnan(median_interval(np.arange(5.0))[1])


def test_missing_is_never_zero(index: Path) -> None:
    table = read_csv(index)
    for column in ("joint", "denoise_s", "mmd", "end_to_end"):
        assert table.loc["lcm", column] == ""
        assert "collapsed: static" in table.loc["lcm", f"{column}_note"]
    assert table.loc["real", "nominal"] == ""
    markdown = (index.parent / "tables" / "main.md").read_text()
    lcm = [line for line in markdown.splitlines() if line.startswith("| LCM |")]
    assert len(lcm) == 6 and all("—<sup>" in line for line in lcm)
    assert "collapsed: static" in markdown
    lost = [r for r in table["turn_error_note"] if "object lost" in r]
    assert lost and all(re.match(r"\d+ of \d+ missing", r) for r in lost)


def test_ranks_leave_out_controls_and_failed_cells(folder: Path) -> None:
    for table in main_table.tables(load_run(folder)):
        for row in table.rows:
            for column in table.columns:
                if row.kind == "control" or row.key == "lcm":
                    assert row.entries[column.key].rank == 0
        best = [(c.key, row.key) for c in table.columns for row in table.rows if row.entries[c.key].rank == 1]
        if table.name == "speed":
            assert ("denoise", "fastlightgen") in best and ("denoise_s", "fastlightgen") in best


def test_verdicts(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", conditions=8, clips=1)
    table = pd.read_parquet(folder / "results.parquet")
    joint = table.metric == "joint"

    def agreeing(conditions: int, better: bool = False) -> RunData:
        """fastlightgen agrees with the reference sample by sample, or is always right; euler-4 is always wrong."""
        right = (np.arange(conditions) % 3 > 0).astype(float)
        cells = {"euler-50": right, "fastlightgen": np.maximum(right, better), "euler-4": 0 * right}
        parts = [table[~(joint & table.cell.isin(cells))]]
        for cell, values in cells.items():
            row = table[joint & (table.cell == cell)].iloc[[0] * conditions]
            parts.append(row.assign(condition=range(conditions), sample=0, value=values))
        pd.concat(parts).to_parquet(folder / "results.parquet")
        return load_run(folder)

    for few in (2, 60, 400):  # too few to exclude a loss of 1 %: of a reference of 2/3 that takes about 580
        run = agreeing(few)
        found = verdict(run, run.cell("fastlightgen"))
        assert found.answer == "indistinguishable" and found.difference is not None and found.difference.value == 0
        legend = main_table.accuracy(run).legend
        assert f"With {few} conditions only what is better than the reference can win" in legend
    run = agreeing(48, better=True)
    assert verdict(run, run.cell("fastlightgen")).answer == "wins"
    run = agreeing(700)
    same = verdict(run, run.cell("fastlightgen"))
    assert same.difference is not None and same.difference.value == 0 and same.answer == "wins"
    assert "can win" not in main_table.accuracy(run).legend
    assert verdict(run, run.cell("euler-4")).answer == "below"
    assert verdict(run, run.cell("lcm")).answer == "failed"
    assert verdict(run, run.cell("real")).answer == "control"
    # As good but not faster is no win.
    table = pd.read_parquet(folder / "results.parquet")
    table.loc[(table.cell == "fastlightgen") & (table.metric == "denoise_s"), "value"] *= 100
    table.to_parquet(folder / "results.parquet")
    run = load_run(folder)
    assert verdict(run, run.cell("fastlightgen")).answer == "indistinguishable"


def test_a_collapsed_student_is_below_however_right_its_clips_are(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", conditions=8, clips=1)
    table = pd.read_parquet(folder / "results.parquet")
    joint = table[(table.metric == "joint") & (table.cell == "euler-50")]
    parts = [table[~((table.metric == "joint") & (table.cell == "fastlightgen"))], joint.assign(cell="fastlightgen")]
    varied = table[table.cell == "euler-50"].iloc[[0] * 4]
    varied = varied.assign(metric="turn_diversity", unit="ratio", condition=range(4), sample=0)
    parts.append(varied.assign(value=[1.0, 0.9, 1.1, 1.05]))
    parts.append(varied.assign(cell="fastlightgen", value=0.0))
    pd.concat(parts).to_parquet(folder / "results.parquet")
    run = load_run(folder)
    found = verdict(run, run.cell("fastlightgen"))
    assert found.answer == "below" and "less diverse: turns of one condition differ 0.00" in found.why
    entry = {row.key: row for row in main_table.accuracy(run).rows}["fastlightgen"].entries["verdict"]
    assert entry.text == "below" and "less diverse" in entry.note


def test_differences_are_paired_and_adjusted(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", conditions=40, clips=1)
    table = pd.read_parquet(folder / "results.parquet")
    joint = table.metric == "joint"
    table.loc[joint & (table.cell == "euler-50"), "value"] = 1.0
    table.loc[joint & (table.cell == "euler-4"), "value"] = 0.0
    same = table[joint & (table.cell == "euler-50")].assign(cell="fastlightgen")
    pd.concat([table[~(joint & (table.cell == "fastlightgen"))], same]).to_parquet(folder / "results.parquet")
    run = load_run(folder)
    assert [c.cell for c in comparisons.opponents(run)] == ["euler-50", "euler-4", "euler-4-no-cfg"]
    rows = {row.key: row.entries for row in comparisons.table(run).rows}
    assert rows["euler-4"]["euler-50"].value == -1 and rows["euler-4"]["euler-50_p"].text == "< 0.001"
    assert rows["fastlightgen"]["euler-50"].value == 0 and rows["fastlightgen"]["euler-50_p"].value == 1
    assert rows["fastlightgen"]["euler-4"].text == "+100.0"
    assert rows["euler-4"]["euler-4"].note == "itself" and not rows["euler-4"]["euler-4"].text
    assert "collapsed: static" in rows["lcm"]["euler-50"].note and rows["lcm"]["euler-50_p"].value is None
    once = comparisons.paired(run, "dmd2", "euler-50", "joint").query("sample == 0")
    raw = mcnemar(once["value"].to_numpy(), once["reference"].to_numpy())
    assert rows["dmd2"]["euler-50_p"].value >= raw  # Holm never makes a p-value smaller


def test_several_trainings(tmp_path: Path) -> None:
    source = make_run(tmp_path / "run", conditions=30, samples=1, clips=1)

    def change(cells: list[dict[str, Any]]) -> None:
        dmd2 = next(c for c in cells if c["cell"] == "dmd2")
        cells.append(dmd2 | {"cell": "dmd2-seed1", "label": "DMD2, seed 1", "repeat": 1})
        failed = {"cell": "dmd2-seed2", "label": "DMD2, seed 2", "repeat": 2, "status": "failed", "reason": "NaN"}
        cells.append(dmd2 | failed)

    folder = rewritten(source, tmp_path / "several", "cells.json", change)
    table = pd.read_parquet(folder / "results.parquet")
    quality = table[(table.cell == "dmd2") & ~table.metric.str.endswith("_s")].assign(cell="dmd2-seed1")
    quality.loc[quality.metric == "joint", "value"] = 1.0
    pd.concat([table, quality]).to_parquet(folder / "results.parquet")
    run = load_run(folder)
    (row,) = trainings.table(run).rows
    first = table[(table.cell == "dmd2") & (table.metric == "joint")].value.mean()
    assert row.key == "dmd2" and row.entries["n"].text == "2" and "NaN" in row.entries["n"].note
    assert row.entries["mean"].value == pytest.approx((first + 1) / 2)
    assert row.entries["spread"].value == pytest.approx((1 - first) / np.sqrt(2))
    assert trainings.build(load_run(source), tmp_path) == []
    assert "Several trainings" in build_all(folder).read_text()


def test_front_needs_separated_intervals(folder: Path) -> None:
    places = {p.cell: p.place for p in pareto.points(load_run(folder))}
    assert places["fastlightgen"] == "front"  # nothing is as fast
    assert places["euler-4"] == "dominated"
    assert places["dmd2"] == "undecided"  # slower than fastlightgen, better only within the intervals


def test_waterfall_multiplies_to_the_measured_speedup(folder: Path) -> None:
    run = load_run(folder)
    bars = waterfall.bars(run, run.cell("fastlightgen"))
    assert [b.label for b in bars[:3]] == ["steps 50 → 4", "passes a step 2 → 1", "blocks kept 70 %"]
    gains = np.prod([b.end / b.start for b in bars if not b.total])
    assert gains == pytest.approx(speedups(run, run.cell("fastlightgen")).end_to_end.value)
    assert "35.7×" in waterfall.explain(run, run.cell("fastlightgen"))


def test_paper_numbers_are_those_of_the_source(folder: Path) -> None:
    rows = {(r["table"], r["row"], r["metric"]): r for r in paper_numbers.load()}
    assert rows["Table 2", "FastLightGen", "time"]["value"] == "28.3"
    assert rows["Table 2", "MagicDistillation", "average"]["value"] == "0.798"
    assert rows["Table 2", "ICMD", "average"]["value"] == ""  # compared in the paper, not found: empty, never 0
    assert rows["Table 5", "beta2 = 0.75 (beta1 = 3.5)", "dynamic_degree"]["value"] == "1.000"
    assert all(tuple(r) == paper_numbers.COLUMNS and r["source"] for r in rows.values())
    assert float(rows["Speed", "FastLightGen", "measured_speedup"]["value"]) == pytest.approx(885 / 28.3, abs=0.05)
    beside = paper_numbers.beside(load_run(folder))
    assert all(n.comparable == "no" and n.why for n in beside if n.ours)
    assert any(n.ours for n in beside) and not any(n.ours for n in beside if n.row == "LCM")


def test_each_paper_table_has_its_rows_and_ours(folder: Path) -> None:
    run = load_run(folder)
    tables = {t.name: t for t in paper_tables.tables(paper_numbers.beside(run))}
    names = ["table-1", "table-2", "table-4", "table-5", "table-7", "hunyuanvideo-table"]
    assert [f"paper-{n}" for n in names] == list(tables)[: len(names)]
    two = tables["paper-table-2"]
    rows = {row.key: row.entries for row in two.rows}
    printed = {("FastLightGen", "time"): "28.3 s", ("DMD2", "dynamic_degree"): "0.160", ("LCM", "average"): "0.684"}
    for (row, metric), value in printed.items():
        assert rows[f"{row}:paper"][metric].text == value
    assert [r.label for r in two.rows[:2]] == ["Euler (teacher)", "Euler (teacher), ours"]
    mine = rows["FastLightGen:ours"]
    assert mine["average"].text.endswith("%") and mine["average"].interval and mine["average"].note == "our measure: joint"
    assert mine["comparable"].text == "no" and "not VBench" in mine["comparable"].note
    assert "nothing measured here comes near" in mine["aesthetic_quality"].note
    assert "collapsed: static" in rows["LCM:ours"]["average"].note and not rows["LCM:ours"]["average"].text
    assert not rows["ICMD:paper"]["average"].text and "not found" in rows["ICMD:paper"]["confidence"].note
    assert "is not in this run" in rows["ICMD:ours"]["average"].note
    four = {row.key: row.entries for row in tables["paper-table-4"].rows}
    assert four["alpha = 1.0:ours"]["average"].note == "not in this run: flgbench ablate alpha"
    other = {row.key: row.entries for row in tables["paper-hunyuanvideo-table"].rows}
    assert "family wanx, not of HunyuanVideo" in other["FastLightGen:ours"]["average"].note
    for table in tables.values():
        for row in table.rows[1::2]:
            assert all(e.text or e.note for k, e in row.entries.items() if k not in ("comparable", "confidence"))


def test_a_look_does_not_depend_on_what_others_do(tmp_path: Path) -> None:
    """A cell that is skipped stands last: the others keep their colours, so that two families' figures agree."""
    run = load_run(make_run(tmp_path / "run"))
    first, *others = run.cells
    assert looks(replace(run, cells=(*others, first))) == looks(run)


def test_the_legend_tells_how_often_slow_cells_were_timed(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "run"))
    cell = next(c.cell for c in run.cells if c.kind == "method" and estimate(run, c.cell, "denoise_s").n)
    assert "20 timed clips of the reference." in main_table.speed(run).legend
    table = run.results
    seldom = table[(table["cell"] != cell) | (table["metric"] != "denoise_s") | (table["condition"] % 2 == 0)]
    assert "20 timed clips of the reference, 10 of other" in main_table.speed(replace(run, results=seldom, memory={})).legend
