"""Several runs in one report: seeds become trainings, what may not be compared is kept apart and says why, families side by
side with the geometric mean of speed-ups, and no speed is compared across hardware."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Flgbench, assert_refused
from report_runs import Tags, make_run, only

from flgbench.metrics.stats import over_trainings, speedup
from reports import families, merged, trainings
from reports.data import RunData, load_run
from reports.merge import joined, merge
from reports.tables import Entry

CARD = {"conditions": 16, "conditions_sha256": "0123456789abcdef", "clips": 16, "torch": "2.14"}
MACHINE = {"cpu": "two cores", "threads": "2", "gpu": "none", "torch": "2.14", "diffusers": "0.42"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run A, in the layout of `flgbench run`."""
    folder = make_run(tmp_path_factory.mktemp("merge") / "runs" / "a", conditions=16, samples=1, pairs=8, clips=1)
    edit(folder, "cells.json", lambda cells: [c.update(card=dict(CARD)) for c in cells])
    edit(folder, "run.json", lambda run: run.update(name="a", environment=dict(MACHINE)))
    (folder / "plan.json").write_text(json.dumps({"steps": []}))
    return folder


def edit(folder: Path, name: str, change: Callable[[Any], object]) -> None:
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


def copy(base: Path, name: str, **settings: Any) -> Path:
    """Another run with other settings, beside A."""
    folder = base.with_name(name)
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("report"), dirs_exist_ok=True)
    edit(folder, "run.json", lambda run: run.update(name=name, settings=run["settings"] | settings))
    return folder


@pytest.fixture(scope="module")
def seed(base: Path) -> Path:
    """Run B: A with seed 1. Its students have weights of their own, and DMD2 is right in every clip."""
    folder = copy(base, "b", seed=1)

    def trained(cells: list[dict[str, Any]]) -> None:
        for cell in cells:
            cell["stages"] = [s | {"key": s["key"].replace("0123456789ab", "ba9876543210")} for s in cell["stages"]]

    edit(folder, "cells.json", trained)
    table = pd.read_parquet(folder / "results.parquet")
    table.loc[(table.cell == "dmd2") & (table.metric == "joint"), "value"] = 1.0
    table.loc[table.metric == "denoise_s", "value"] *= 3  # another, slower hour
    table.to_parquet(folder / "results.parquet")
    return folder


@pytest.fixture(scope="module")
def family(base: Path) -> Path:
    """Run C: the same numbers as another family, whose reference denoises 4 times slower."""
    folder = copy(base, "c", model="another")
    table = pd.read_parquet(folder / "results.parquet")
    table.loc[(table.cell == "euler-50") & (table.metric == "denoise_s"), "value"] *= 4
    table.assign(family="another").to_parquet(folder / "results.parquet")
    return folder


def entries(sections: list[Any], key: str) -> dict[str, Entry]:
    return next(row.entries for row in merged.cells_table(sections).rows if row.key == key)


def of(run: RunData, cell: str, metric: str) -> np.ndarray:
    table = run.results
    return table[(table.cell == cell) & (table.metric == metric)].sort_values("condition")["value"].to_numpy()


def test_seeds_are_trainings_of_one_method(base: Path, seed: Path) -> None:
    a, b = load_run(base), load_run(seed)
    sections = merge([a, b])
    ((group,),) = [s.groups for s in sections]
    assert group.letters == "A, B" and merged.stem(group) == "A-B"
    run = group.run
    assert {c.cell for c in run.cells} - {c.cell for c in a.cells} == {f"{n}-seed1" for n in ("fastlightgen", "dmd2", "lcm")}
    assert run.cell("dmd2-seed1").label == "DMD2, seed 1" and run.cell("dmd2-seed1").repeat == 1
    (row,) = [r for r in trainings.table(run).rows if r.key == "dmd2"]
    assert row.entries["mean"].value == pytest.approx((of(a, "dmd2", "joint").mean() + 1) / 2)
    cell = entries(sections, "A-B:dmd2")
    expected = over_trainings(np.array([of(a, "dmd2", "joint"), of(b, "dmd2", "joint")]), ends=(0, 1))
    assert (cell["joint"].value, cell["joint"].low, cell["joint"].high) == pytest.approx(
        (expected.value, expected.low, expected.high)
    )
    assert cell["trainings"].text == "2" and cell["joint"].n == 2
    assert entries(sections, "A-B:euler-50")["trainings"].note == "not trained"
    assert "collapsed: static" in entries(sections, "A-B:lcm")["joint"].note
    times = speedup(of(a, "euler-50", "denoise_s"), of(a, "dmd2", "denoise_s"))
    assert cell["denoise"].value == pytest.approx(times.value), "the first run's own timing, not both runs' mixed"
    second = run.results[(run.results.cell == "dmd2-seed1") & (run.results.metric == "denoise_s")]
    assert second["value"].isna().all() and "A timed" in second["reason"].iloc[0]


def test_the_same_training_twice_counts_once(base: Path) -> None:
    sections = merge([load_run(base), load_run(copy(base, "again", seed=5))])
    assert len(sections) == len(sections[0].groups) == 1
    assert entries(sections, "A-B:dmd2")["trainings"].text == "1"
    one = load_run(base)
    assert joined(merge([one])[0].groups[0].members) is one


def test_differing_settings_share_a_section_and_a_table(base: Path, seed: Path) -> None:
    sections = merge([load_run(base), load_run(copy(base, "longer", budget=16000.0)), load_run(seed)])
    assert [[g.letters for g in s.groups] for s in sections] == [["A, C", "B"]]
    table = merged.cells_table(sections)
    assert [c.key for c in table.columns][:2] == ["run", "trainings"], "the section, family and scale are all the same"
    assert {r.entries["run"].text for r in table.rows} == {"A, C", "B"}
    runs = {r.key: r.entries for r in merged.runs_table(sections).rows}
    assert "budget: not recorded and 16000.0" in runs["B"]["differs"].note and runs["A"]["differs"].text == "no"


@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        ("cells.json", lambda cells: [c["card"].update(conditions_sha256="ff") for c in cells], "conditions_sha256"),
        ("cells.json", lambda cells: [c["card"].update(torch="3.0") for c in cells], "torch: 2.14 and 3.0"),
        ("run.json", lambda run: run["settings"].update(scale="5b"), "scale: tiny and 5b"),
    ],
)
def test_other_cards_are_sections_that_say_why(
    base: Path, tmp_path: Path, name: str, change: Callable[[Any], object], word: str
) -> None:
    folder = tmp_path / "other"
    shutil.copytree(base, folder)
    edit(folder, name, change)
    sections = merge([load_run(base), load_run(folder)])
    assert len(sections) == 2 and not sections[0].apart and any(word in why for why in sections[1].apart)
    table = merged.cells_table(sections)
    assert {r.entries["section"].text for r in table.rows} == {"1", "2"}
    assert word in {r.key: r.entries for r in merged.runs_table(sections).rows}["B"]["differs"].note


def test_families_have_the_geometric_mean_of_their_speedups(base: Path, family: Path) -> None:
    a, c = load_run(base), load_run(family)
    sections = merge([a, c])
    assert [s.groups[0].family for s in sections] == ["wanx", "another"]
    table = families.table([g for s in sections for g in s.groups])
    assert table is not None
    rows = {r.key: r.entries for r in table.rows}
    one, two = rows["dmd2"]["wanx:denoise"].value, rows["dmd2"]["another:denoise"].value
    assert two == pytest.approx(4 * one)  # type: ignore[operator]
    found = rows["dmd2"]["denoise"]
    assert found.value == pytest.approx(2 * one) and found.n == 2  # type: ignore[operator]
    assert found.low < found.value < found.high  # type: ignore[operator]
    assert rows["dmd2"]["wanx:joint"].value == pytest.approx(of(a, "dmd2", "joint").mean())
    assert rows["euler-50"]["denoise"].value == pytest.approx(1)
    assert not rows["lcm"]["denoise"].text and rows["lcm"]["denoise"].note == "no speed-up in wanx, another"
    assert families.table(sections[0].groups) is None, "one family is not beside another"


def test_geometric_mean_against_closed_form() -> None:
    g = np.random.default_rng(2)
    same = families.geometric_mean([np.log([2.0, 2.0]), np.log([8.0, 8.0, 8.0])])
    assert (same.value, same.low, same.high) == pytest.approx((4, 4, 4)) and same.n == 2
    one = g.normal(1, 0.2, 12)
    alone, ratio = families.geometric_mean([one]), speedup(np.exp(one), np.ones(12))
    assert (alone.value, alone.low, alone.high) == pytest.approx((ratio.value, ratio.low, ratio.high))
    hits = []
    for _ in range(2000):
        found = families.geometric_mean([g.normal(1, 0.3, 8), g.normal(2, 0.1, 20)])
        hits.append(np.exp(1.5) in found)
    assert 0.94 < np.mean(hits) < 0.965
    assert np.isnan(families.geometric_mean([one, np.array([1.0])]).low)


def test_speeds_of_other_hardware_are_not_averaged(base: Path, family: Path, tmp_path: Path) -> None:
    shutil.copytree(family, tmp_path / "gpu")
    edit(tmp_path / "gpu", "run.json", lambda run: run["environment"].update(gpu="H100"))
    sections = merge([load_run(base), load_run(tmp_path / "gpu")])
    table = families.table([g for s in sections for g in s.groups])
    assert table is not None
    rows = {r.key: r.entries for r in table.rows}
    assert not rows["dmd2"]["denoise"].text and "gpu: none and H100" in rows["dmd2"]["denoise"].note
    assert rows["dmd2"]["another:denoise"].text, "each family's own stays"
    timed = {r.key: r.entries["timed_on"].text for r in merged.runs_table(sections).rows}
    assert timed == {"A": "two cores", "B": "H100"}


def test_verb_writes_one_page(
    base: Path, seed: Path, family: Path, tmp_path: Path, flgbench: Flgbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, "main_table", "importance")
    monkeypatch.setattr("reports.merged.FIGURES", ("importance",))
    out = tmp_path / "merged"
    where = ("--out", str(base.parent.parent))
    code, printed, err = flgbench("report", "a", "b", str(family), *where, "-o", str(out))
    assert code == 0, err
    assert printed.strip() == f"report: {out / 'index.html'}"
    page = Tags()
    page.feed((out / "index.html").read_text())
    linked = [a["href"] for tag, a in page.tags if tag == "a" and not str(a["href"]).startswith("#")]
    assert linked == ["A-B/index.html", "C/index.html"] and all((out / str(name)).exists() for name in linked)
    assert sum(tag == "img" for tag, _ in page.tags) == 2
    assert "family: wanx and another" in (out / "index.html").read_text()
    written = {p.name for p in (out / "tables").iterdir()}
    assert written == {"summary.txt", *(f"{n}.{end}" for n in ("runs", "cells", "families") for end in ("md", "csv", "tex"))}
    said = (out / "tables" / "summary.txt").read_text()
    assert "\nC: c\n" in said and "wanx:denoise" in said and "geometric mean" in said
    cells = pd.read_csv(out / "tables" / "cells.csv", dtype=str, keep_default_na=False).set_index("cell")
    assert cells.loc["A-B:lcm", "joint"] == "" and cells.loc["C:dmd2", "family"] == "another"
    assert not list(out.glob(".*"))
    assert_refused(flgbench("report", "a", *where, "-o", str(out)), "-o is for a report of several runs")
    assert_refused(flgbench("report", "a", "b", *where, "-o", str(base)), "is a run: choose another folder")
    assert_refused(flgbench("report", "a", "nothing", *where), "no run 'nothing'")
