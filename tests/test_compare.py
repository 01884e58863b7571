"""Two runs side by side: known shifts come out, the same run twice is exactly 0, and what is not comparable is refused."""

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
from report_runs import make_run

from flgbench.metrics.stats import holm, mcnemar, mean_difference
from reports import compare
from reports.comparable import NotComparableError, hardware_apart, pairs
from reports.data import RunData, load_run
from reports.tables import Entry, Table, write

CARD = {"conditions": 30, "conditions_sha256": "0123456789abcdef", "clips": 60, "dtype": "float32", "torch": "2.14"}
KNOWN: dict[tuple[int, int], tuple[RunData, RunData, list[Table]]] = {}
MACHINE = {"cpu": "two cores", "threads": "2", "gpu": "none", "torch": "2.14", "diffusers": "0.42"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose cells and environment tell what a comparison asks for, in the layout of `flgbench run`."""
    folder = make_run(tmp_path_factory.mktemp("compare") / "runs" / "a", conditions=20, pairs=8, clips=1)
    edit(folder, "cells.json", lambda cells: [c.update(card=dict(CARD)) for c in cells])
    edit(folder, "run.json", lambda run: run.update(environment=dict(MACHINE)))
    teacher = {"key": "teacher-wanx-v1-0123456789ab", "kind": "teacher", "name": "wanx", "status": "done"}
    edit(folder, "steps.json", lambda steps: steps.append(teacher))
    (folder / "plan.json").write_text(json.dumps({"steps": []}))
    return folder


def edit(folder: Path, name: str, change: Callable[[Any], object]) -> None:
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


def other(base: Path, target: Path, change: Callable[[pd.DataFrame], object] = lambda table: None) -> Path:
    """A copy of the run whose results are changed in place."""
    shutil.copytree(base, target)
    table = pd.read_parquet(target / "results.parquet")
    change(table)
    table.to_parquet(target / "results.parquet")
    return target


def shifted(metric: str, cell: str, by: float) -> Callable[[pd.DataFrame], None]:
    def change(table: pd.DataFrame) -> None:
        table.loc[(table.metric == metric) & (table.cell == cell), "value"] += by

    return change


def entry(a: RunData, b: RunData, cell: str, metric: str, table: int = 0, row: str = compare.DIFFERENCE) -> Entry:
    if (id(a), id(b)) not in KNOWN:  # bootstraps take a second each time; the runs are kept, so that ids stay theirs
        KNOWN[id(a), id(b)] = (a, b, compare.tables(a, b))
    rows = {r.key: r for r in KNOWN[id(a), id(b)][2][table].rows}
    return rows[f"{cell}:{row}"].entries[metric]


def test_the_same_run_twice_is_exactly_zero(base: Path) -> None:
    a, b = load_run(base), load_run(base)
    tables = compare.tables(a, b)
    assert [t.name for t in tables] == ["accuracy", "motion", "image", "judged", "diversity", "speed"]
    seen = 0
    for table in tables[:-1]:
        for row in table.rows[2::3]:
            values = [e.value for k, e in row.entries.items() if k != "p" and e.value is not None]
            assert row.key.endswith(compare.DIFFERENCE) and all(v == 0 for v in values)
            seen += len(values)
    assert seen > 50
    assert entry(a, b, "dmd2", "joint").low == entry(a, b, "dmd2", "joint").high == 0
    assert entry(a, b, "dmd2", "denoise_s", -1).value == 1.0 and entry(a, b, "dmd2", "over_reference", -1).value == 1.0


def test_a_known_shift_comes_out(base: Path, tmp_path: Path) -> None:
    a, b = load_run(base), load_run(other(base, tmp_path / "b", shifted("turn_error", "dmd2", 0.75)))
    found = entry(a, b, "dmd2", "turn_error", 1)
    assert found.value == pytest.approx(0.75) and found.low == pytest.approx(0.75), "the same shift in every condition"
    assert found.text == "+0.75" and found.n == len(set(compare.across(a, b, "dmd2", "turn_error")["condition"]))
    assert entry(b, a, "dmd2", "turn_error", 1).text == "−0.75"
    assert entry(a, b, "fastlightgen", "turn_error", 1).value == 0
    own = [entry(a, b, "dmd2", "turn_error", 1, row).value for row in ("A", "B")]
    assert own[1] - own[0] == pytest.approx(0.75)  # type: ignore[operator]
    whole = load_run(other(base, tmp_path / "c", shifted("mmd", "dmd2", 0.5)))
    mmd = entry(a, whole, "dmd2", "mmd", -2)
    assert mmd.value == pytest.approx(0.5) and not mmd.interval, "a measure of the whole set has no interval"


def test_intervals_and_p_values_are_paired(base: Path, tmp_path: Path) -> None:
    def worse(table: pd.DataFrame) -> None:
        for cell, last in (("dmd2", 8), ("euler-4", 3)):
            table.loc[(table.metric == "joint") & (table.cell == cell), "value"] = 1.0
            rows = (table.metric == "joint") & (table.cell == cell) & (table.condition < last)
            table.loc[rows, "value"] = 0.0

    a, b = load_run(base), load_run(other(base, tmp_path / "b", worse))
    raw = []
    for cell in ("dmd2", "euler-4"):
        both = compare.across(a, b, cell, "joint")
        conditions = both["condition"].to_numpy()
        direct = mean_difference(both["value"].to_numpy(), conditions, both["reference"].to_numpy(), conditions, share=True)
        found = entry(a, b, cell, "joint")
        assert (found.value, found.low, found.high) == (direct.value, direct.low, direct.high) and direct.low < direct.high
        once = both[both["sample"] == 0]
        raw.append(mcnemar(once["value"].to_numpy(), once["reference"].to_numpy()))
    adjusted = holm(np.array(raw))
    for cell, p in zip(("dmd2", "euler-4"), adjusted, strict=True):
        assert entry(a, b, cell, "p").value == pytest.approx(p), "cells that are the same in both are not in the family"
    row = next(r for r in compare.summary(a, b).rows if r.key == "dmd2")
    assert row.entries["joint"] == entry(a, b, "dmd2", "joint") and row.entries["p"] == entry(a, b, "dmd2", "p")
    assert row.entries["joint_A"].value == entry(a, b, "dmd2", "joint", row="A").value


def test_speed_is_a_ratio_on_one_machine_only(base: Path, tmp_path: Path) -> None:
    def faster(table: pd.DataFrame) -> None:
        table.loc[(table.metric == "denoise_s") & (table.cell == "dmd2"), "value"] /= 2

    folder = other(base, tmp_path / "b", faster)
    a, b = load_run(base), load_run(folder)
    assert hardware_apart(a, b) == []
    assert entry(a, b, "dmd2", "denoise_s", -1).text == "2.00×"
    assert entry(a, b, "dmd2", "over_reference", -1).value == pytest.approx(2)
    assert entry(a, b, "fastlightgen", "over_reference", -1).value == pytest.approx(1)
    for name, value in (("cpu", "another"), ("threads", "64"), ("torch", "3.0"), ("diffusers", None)):
        edit(folder, "run.json", lambda run, n=name, v=value: run.update(environment=MACHINE | {n: v}))
        b = load_run(folder)
        for measure in ("denoise_s", "end_to_end_s", "over_reference"):
            found = entry(a, b, "dmd2", measure, -1)
            assert found.value is None and f"latency not compared: {name}: {MACHINE[name]} and" in found.note
        assert entry(a, b, "dmd2", "denoise_s", -1, "B").value is not None, "each run's own number stays"
        assert entry(a, b, "dmd2", "joint").value == 0, "quality is compared all the same"
    edit(folder, "run.json", lambda run: run.update(environment={}))
    assert hardware_apart(load_run(folder), load_run(folder)) == ["hardware: not recorded"]


CARD_FIELDS = {
    "conditions_sha256": "fedcba9876543210",
    "seed_rule": "another",
    "dtype": "bfloat16",
    "attention": "math",
    "torch": "3.0",
    "diffusers": "0.50",
}


@pytest.mark.parametrize("field", CARD_FIELDS)
def test_a_differing_card_is_refused_by_cell(field: str, base: Path, tmp_path: Path) -> None:
    full = CARD | {"seed_rule": "by condition", "attention": "flash", "diffusers": "0.42"}
    mine, folder = other(base, tmp_path / "a"), other(base, tmp_path / "b", shifted("turn_error", "dmd2", 1.0))
    edit(mine, "cells.json", lambda cells: [c.update(card=full) for c in cells])

    def change(cells: list[dict[str, Any]]) -> None:
        for c in cells:
            c["card"] = full | ({field: CARD_FIELDS[field]} if c["cell"] == "dmd2" else {})

    edit(folder, "cells.json", change)
    a, b = load_run(mine), load_run(folder)
    found = entry(a, b, "dmd2", "joint")
    assert found.value is None and f"not compared: {field}: {full[field]} and {CARD_FIELDS[field]}" in found.note
    assert entry(a, b, "dmd2", "p").value is None and entry(a, b, "dmd2", "denoise_s", -1).value is None
    assert entry(a, b, "fastlightgen", "joint").value == 0


REFUSED: dict[str, tuple[str, Callable[[Any], object], str]] = {
    "conditions": (
        "cells.json",
        lambda cells: [c["card"].update(conditions_sha256="ff") for c in cells],
        "conditions_sha256",
    ),
    "unknown conditions": ("cells.json", lambda cells: [c.update(card={}) for c in cells], "conditions of B: not recorded"),
    "scale": ("run.json", lambda run: run["settings"].update(scale="5b"), "scale: tiny and 5b"),
    "family": ("run.json", lambda run: run["settings"].update(model="hunyuan"), "family: wanx and hunyuan"),
    "weights": ("steps.json", lambda steps: steps[-1].update(key="teacher-wanx-v1-ba9876543210"), "teacher weights"),
    "measures": (
        "steps.json",
        lambda steps: [s.update(key=s["key"].replace("-v1-", "-v2-")) for s in steps if s["kind"] == "quality"],
        "version of the measures: 1 and 2",
    ),
    "no cell in common": ("cells.json", lambda cells: cells.clear(), "no cell in common"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_nothing_comparable_is_exit_code_2(case: str, base: Path, tmp_path: Path, flgbench: Flgbench) -> None:
    name, change, word = REFUSED[case]
    folder = other(base, tmp_path / "b")
    edit(folder, name, change)
    if case == "no cell in common":
        table = pd.read_parquet(folder / "results.parquet")
        table.iloc[:0].to_parquet(folder / "results.parquet")
    with pytest.raises(NotComparableError, match="nothing to compare"):
        compare.tables(load_run(base), load_run(folder))
    for extra in ([], ["--json"], ["--out", str(tmp_path / "out")]):
        assert_refused(flgbench("compare", str(base), str(folder), *extra), "nothing to compare", word)
    assert not list((tmp_path / "out").iterdir()), "nothing is written"


def test_cells_in_one_run_and_failed_cells_are_listed(base: Path, tmp_path: Path) -> None:
    folder = other(base, tmp_path / "b")
    edit(folder, "cells.json", lambda cells: next(c for c in cells if c["cell"] == "euler-4").update(cell="euler-5"))
    table = pd.read_parquet(folder / "results.parquet")
    table.assign(cell=table.cell.replace("euler-4", "euler-5")).to_parquet(folder / "results.parquet")
    a, b = load_run(base), load_run(folder)
    assert [p.cell.cell for p in pairs(a, b)][-1] == "euler-5"
    assert entry(a, b, "euler-4", "joint").note == "only in A" and entry(a, b, "euler-5", "joint").note == "only in B"
    assert entry(a, b, "euler-4", "joint", row="B").note == "not in this run"
    assert entry(a, b, "euler-4", "joint", row="A").value is not None
    assert "collapsed: static" in entry(a, b, "lcm", "joint").note and entry(a, b, "lcm", "joint").value is None


def test_verb_prints_and_writes(base: Path, tmp_path: Path, flgbench: Flgbench) -> None:
    folder = other(base, tmp_path / "b", shifted("turn_error", "dmd2", 0.75))
    edit(folder, "run.json", lambda run: run["settings"].update(seed=7))
    out = tmp_path / "out"
    code, printed, err = flgbench("compare", base.name, str(folder), "--runs", str(base.parent.parent), "--out", str(out))
    assert code == 0, err
    assert "DMD2" in printed and "B − A" in printed and "differs: seed: 0 and 7" in printed
    names = {p.name for p in out.iterdir()}
    tex = {f"compare-{n}.tex" for n in ("accuracy", "motion", "image", "judged", "diversity", "speed")}
    assert names == {"compare.md", "compare.csv"} | tex
    written = pd.read_csv(out / "compare.csv", dtype=str, keep_default_na=False).set_index("cell")
    row = written.loc[f"dmd2:{compare.DIFFERENCE}"]
    assert float(row["turn_error"]) == pytest.approx(0.75) and float(row["turn_error_low"]) == pytest.approx(0.75)
    assert written.loc[f"lcm:{compare.DIFFERENCE}", "joint"] == "", "missing is empty, never 0"
    code, printed, _ = flgbench("compare", str(base), str(folder), "--json")
    found = json.loads(printed)
    record = next(r for r in found["rows"] if r["cell"] == "dmd2" and r["measure"] == "turn_error")
    assert code == 0 and record["b_against_a"]["value"] == pytest.approx(0.75)
    assert record["b"]["value"] - record["a"]["value"] == pytest.approx(0.75)
    assert found["apart"]["settings"] == ["seed: 0 and 7"] and found["apart"]["hardware"] == []
    assert_refused(flgbench("compare", str(base), "no-such-run"), "no run 'no-such-run'")


def test_hostile_names_stay_text(base: Path, tmp_path: Path) -> None:
    folder = other(base, tmp_path / "b")
    edit(folder, "run.json", lambda run: run.update(name="<script>&_%$#{}\\input{x}"))
    paths = write(compare.tables(load_run(base), load_run(folder)), tmp_path / "out", "compare")
    assert "<script>" not in paths[0].read_text()
    assert all(r"\input" not in p.read_text() for p in paths if p.suffix == ".tex")
