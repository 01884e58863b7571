"""Sweeps: points of a grid as cells of one plan, their tables and figures, and the claims that need them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import Flgbench, assert_refused
from hypothesis import given
from hypothesis import strategies as st
from test_claims import CELLS, coins, find, make_run

from flgbench.errors import UsageError
from flgbench.plan import plan
from flgbench.registry import registry
from flgbench.run_settings import RunSettings
from flgbench.sweeps import Ablation, Axis, Variant, axis, merged, nested, of_assignments, values_of
from reports import paper_numbers, sweep_figures, sweeps
from reports.data import Cell, CellStage, RunData


def ablation(name: str) -> Ablation:
    preset = registry("families").get("wanx")().preset("tiny")
    return registry("ablations").get(name)(preset)


def test_a_grid_is_every_point_once() -> None:
    grid = Ablation("two", "m", [axis("a", "x.a", (1, 2)), axis("b", "x.b", (0.5, 1.0, 2.0))])
    variants = grid.variants()
    assert len(variants) == len({v.name for v in variants}) == 6
    assert variants[1].name == "m@a=1,b=1" and variants[1].settings == {"x": {"a": 1, "b": 1.0}}
    (short,) = Ablation("length", "m", [Axis("budget", {500.0: {"budget": 500.0}})]).variants()
    assert short.budget == 500 and short.settings == {}


paths = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(".".join)


@given(st.dictionaries(st.sampled_from(["a", "b.c", "b.d", "e.f.g"]), st.integers(), min_size=1))
def test_nested_keeps_every_value(flat: dict[str, int]) -> None:
    found = nested(flat)
    for path, value in flat.items():
        place = found
        for part in path.split("."):
            place = place[part]
        assert place == value
    assert merged(found, {}) == found == merged({}, found) == merged(found, found)


def test_lists_in_assignments_are_axes_and_the_rest_stays() -> None:
    (found,), plain = of_assignments(["dmd2.lr=1e-5,1e-4", "dmd2.steps=2", "dmd2.fake_lr=1e-3,2e-3"])
    assert plain == ["dmd2.steps=2"] and found.method == "dmd2" and len(found.variants()) == 4
    assert found.variants()[0].settings == {"lr": 1e-5, "fake_lr": 1e-3}
    assert of_assignments(["a.b=1"]) == ([], ["a.b=1"])
    assert of_assignments(["a.b=[1,2]"]) == ([], ["a.b=[1,2]"])  # a list is one value
    with pytest.raises(UsageError, match="one sweep is of one method"):
        of_assignments(["dmd2.lr=1,2", "lcm.lr=1,2"])
    with pytest.raises(UsageError, match="empty value"):
        of_assignments(["dmd2.lr=1,,2"])
    assert values_of("0,0.25,self") == [0, 0.25, "self"]


def test_other_values_of_a_named_ablation() -> None:
    assert [v.point["alpha"] for v in ablation("alpha").with_values([0.25, 1.0]).variants()] == [0.25, 1.0]
    assert ablation("alpha").with_values([0.25]).variants()[0].settings == {"recover": {"alpha": 0.25}}
    assert [v.name for v in ablation("teacher").with_values(["weak"]).variants()] == ["fastlightgen@teacher=weak"]
    for name, value in (("teacher", "none"), ("teacher", 3), ("alpha", "high")):
        with pytest.raises(UsageError, match=f"--values {value}: ablation '{name}' knows"):
            ablation(name).with_values([value])
    with pytest.raises(UsageError, match="several axes"):
        ablation("guidance").with_values([1])


@pytest.mark.parametrize("name", registry("ablations").names())
def test_every_ablation_has_a_plan_and_its_default_is_the_method_itself(name: str) -> None:
    variants = tuple(ablation(name).variants())
    made = plan(RunSettings(methods=("fastlightgen",), baselines=("euler",), variants=variants), {})
    cells = {c.name: c for c in made.cells}
    own = cells["fastlightgen"]
    swept = [c for c in made.cells if c.kind == "variant"]
    assert len(swept) == len(variants) and all(c.sweep == name and not c.measures_latency for c in swept)
    default = [c for c in swept if c.sample == own.sample]
    assert len(default) == 1, "the method as it is belongs to every sweep, and costs nothing again"
    assert default[0].quality == own.quality and default[0].student == own.student
    assert len({c.sample for c in swept}) == len(swept)


def test_stages_before_the_swept_one_are_shared() -> None:
    variants = tuple(ablation("beta2").variants())
    made = plan(RunSettings(methods=("fastlightgen",), baselines=("euler",), variants=variants), {})
    kinds = [s.name for s in made.steps.values() if s.kind == "train"]
    assert kinds.count("importance") == kinds.count("recover") == 1 and kinds.count("match") == len(variants)


def test_the_same_point_twice_is_refused() -> None:
    twice = (Variant(sweep="s", method="dmd2", point={"a": 1}),) * 2
    with pytest.raises(UsageError, match=r"dmd2@a=1 twice"):
        plan(RunSettings(baselines=("euler",), variants=twice), {})


def test_wrong_input_is_one_line(flgbench: Flgbench) -> None:
    assert_refused(flgbench("ablate", "alhpa"), "no ablation 'alhpa'", "did you mean 'alpha'")
    assert_refused(flgbench("ablate"), "flgbench list ablations", "--set")
    assert_refused(flgbench("ablate", "alpha", "--set", "dmd2.lr=1,2"), "not both")
    assert_refused(flgbench("ablate", "--set", "dmd2.rl=1e-5,1e-4"), "dmd2 has no setting 'rl'", "did you mean")
    assert_refused(flgbench("ablate", "--set", "dmd2.lr=small,large"), "dmd2.lr", "small")
    assert_refused(flgbench("ablate", "--set", "dmd3.lr=1,2"), "no method 'dmd3'")
    assert_refused(flgbench("ablate", "--set", "dmd2.lr=1e-5,1e-4", "--values", "1"), "--values")
    assert_refused(flgbench("ablate", "alpha", "--values", "2"), "alpha", "less than or equal to 1")
    assert_refused(flgbench("ablate", "alpha", "--values", "0,0"), "twice")


def test_a_dry_run_says_what_it_costs_first(flgbench: Flgbench) -> None:
    code, out, _ = flgbench("ablate", "beta2", "--dry-run")
    assert code == 0 and out.splitlines()[0].startswith("28 steps: 0 cached, 28 to run, worth about ")
    code, out, _ = flgbench("paper", "--dry-run")
    assert code == 0 and int(out.split()[0]) > 150


def swept(sweep: str, points: list[dict], shares: list[float], n: int = 200) -> RunData:
    """Made-up numbers: a run whose sweep has these shares of right clips."""
    variants = tuple(
        Cell(
            cell=Variant(sweep=sweep, method="fastlightgen", point=p).name,
            method="fastlightgen",
            label="FLG",
            kind="variant",
            status="done",
            nfe=p.get("steps", 4),
            num_inference_steps=p.get("steps", 4),
            kept_blocks=p.get("keep", 0.7),
            sweep=sweep,
            point=p,
        )
        for p in points
    )
    reference, own, *others = CELLS
    known = (
        reference.model_copy(update={"nfe": 100, "kept_blocks": 1.0}),
        own.model_copy(update={"nfe": 4, "kept_blocks": 0.7}),
    )
    joint = {v.cell: coins(share, n) for v, share in zip(variants, shares, strict=True)}
    run = make_run({"euler": coins(0.9, n), "fastlightgen": coins(0.8, n), **joint}, cells=(*known, *others))
    return RunData(run.folder, run.run, run.cells, (), run.results, variants=variants)


ALPHAS = [{"alpha": a} for a in (0.0, 0.5, 1.0)]


@pytest.mark.parametrize(
    ("shares", "verdict"),
    [([0.5, 0.6, 0.9], "reproduced"), ([0.5, 0.99, 0.8], "contradicted"), ([0.5, 0.8, 0.8], "undecided")],
)
def test_the_best_of_a_sweep(shares: list[float], verdict: str) -> None:
    claim = find(swept("alpha", ALPHAS, shares), "Distillation alone (alpha = 1) is the best mixture of stage II")
    assert claim.verdict == verdict
    assert claim.decides == "" if verdict != "undecided" else claim.decides.startswith("the two are too close")


def test_the_best_of_the_fast_ones_leaves_out_the_slow_ones() -> None:
    points = [{"steps": 4, "keep": 0.7}, {"steps": 8, "keep": 0.7}, {"steps": 4, "keep": 0.5}, {"steps": 2, "keep": 0.7}]
    words = "4 steps with 70 % kept is the best of all that are as fast"
    assert find(swept("steps-keep", points, [0.8, 0.99, 0.5, 0.5]), words).verdict == "reproduced"  # 8 steps are slower
    assert find(swept("steps-keep", points, [0.8, 0.5, 0.99, 0.5]), words).verdict == "contradicted"
    without = swept("alpha", ALPHAS, [0.5, 0.5, 0.5])
    assert find(without, words).decides == "flgbench ablate steps-keep"


def test_the_table_has_the_difference_to_the_method_as_it_is_and_the_paper_s_number() -> None:
    run = swept("alpha", ALPHAS, [0.5, 0.6, 0.8])
    (table,) = sweeps.tables(run)
    rows = {row.label: row.entries for row in table.rows}
    assert list(rows) == ["Euler", "FLG", "alpha = 0", "alpha = 0.5", "alpha = 1"]
    assert rows["alpha = 0"]["difference"].value == pytest.approx(-0.3) and rows["alpha = 1"]["difference"].value == 0
    assert rows["alpha = 0.5"]["difference"].high < 0
    assert [rows[f"alpha = {a}"]["paper"].text for a in ("0", "0.5", "1")] == ["0.780", "0.780", "0.791"]
    assert rows["FLG"]["difference"].note == "itself" and rows["FLG"]["paper"].text == ""
    assert rows["alpha = 0"]["nominal"].value == pytest.approx(100 / (4 * 0.7))
    matched = [n for n in paper_numbers.beside(run) if n.table == "Table 4" and n.ours]
    assert [(n.row, n.ours.split()[0]) for n in matched] == [
        ("alpha = 0.0", "50.0"),
        ("alpha = 0.5", "60.0"),
        ("alpha = 1.0", "80.0"),
    ]
    assert all(n.comparable == "no" for n in matched)


def test_a_point_that_is_the_method_as_it_is_differs_from_it_in_nothing() -> None:
    run = swept("alpha", ALPHAS, [0.5, 0.6, 0.8])
    trained = {"stages": (CellStage(name="recover", key="recover-1"),)}
    own, least, _, most = run.cells[1], *run.variants
    cells = (run.cells[0], own.model_copy(update=trained | {"num_inference_steps": 4}), *run.cells[2:])
    fewer = least.model_copy(update=trained | {"num_inference_steps": 2})  # the same network in other steps
    variants = (fewer, run.variants[1], most.model_copy(update=trained))
    (table,) = sweeps.tables(RunData(run.folder, run.run, cells, (), run.results, variants=variants))
    rows = {row.label: row.entries["difference"] for row in table.rows}
    assert rows["alpha = 1"].note == "itself" and rows["alpha = 1"].value is None
    assert rows["alpha = 0"].value == pytest.approx(-0.3) and rows["alpha = 0.5"].value == pytest.approx(-0.2)


def test_a_failed_point_stays_with_its_reason_and_is_not_drawn(tmp_path: Path) -> None:
    run = swept("alpha", ALPHAS, [0.5, 0.6, 0.8])
    broken = run.variants[0].model_copy(update={"status": "failed", "reason": "static: <b>"})
    run = RunData(run.folder, run.run, run.cells, (), run.results, variants=(broken, *run.variants[1:]))
    (table,) = sweeps.tables(run)
    row = next(r for r in table.rows if r.label == "alpha = 0")
    assert row.entries["joint"].value is None and row.entries["joint"].note == "failed: static: <b>"
    assert "static: &lt;b&gt;" in table.markdown()
    assert [p.name for p in sweep_figures.build(run, tmp_path)] == ["sweep-alpha.png", "sweep-alpha.pdf"]


@pytest.mark.parametrize(
    ("sweep", "points"),
    [
        ("beta2", [{"beta2": b} for b in (0.0, 0.25, 0.75)]),
        ("teacher", [{"teacher": t} for t in ("weak", "strong")]),
        ("guidance", [{"beta1": a, "beta2": b} for a in (1.0, 2.0) for b in (0.0, 0.5)]),
        ("steps-keep", [{"steps": s, "keep": k} for k in (1.0, 0.7) for s in (1, 4, 8)]),
        ("x.y/../<script>", [{"x.y/../<script>": v} for v in (1, 2)]),
    ],
)
def test_every_form_of_figure_is_drawn_where_it_belongs(sweep: str, points: list[dict], tmp_path: Path) -> None:
    run = swept(sweep, points, list(np.linspace(0.5, 0.9, len(points))))
    paths = sweep_figures.build(run, tmp_path) + sweeps.build(run, tmp_path)
    assert {p.suffix for p in paths} == {".png", ".pdf", ".md", ".csv", ".tex"}
    assert all(p.is_relative_to(tmp_path) and p.parent.parent == tmp_path and p.stat().st_size > 300 for p in paths)


def test_a_run_without_sweeps_has_neither(tmp_path: Path) -> None:
    run = make_run({"euler": coins(0.9, 20)})
    assert sweeps.build(run, tmp_path) == sweep_figures.build(run, tmp_path) == []
