"""The paper's claims: each verdict is reached, and only where the interval allows it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reports.claims import Claim, build, claims, of_sweeps, outer_blocks_matter_most, quality_is_kept, speed
from reports.data import COLUMNS, Cell, Importance, RunData, RunInfo

CELLS = (
    Cell(cell="euler", method="", label="Euler", kind="reference", status="done", sampler="euler", num_inference_steps=50),
    Cell(
        cell="fastlightgen", method="fastlightgen", label="FLG", kind="method", status="done", num_inference_steps=4
    ),
    Cell(cell="dmd2", method="dmd2", label="DMD2", kind="method", status="done", num_inference_steps=4),
    Cell(cell="euler-4", method="", label="Euler 4", kind="baseline", status="done", sampler="euler", num_inference_steps=4),
)  # fmt: skip


def make_run(
    joint: dict[str, np.ndarray], seconds: dict[str, np.ndarray] | None = None, cells: tuple[Cell, ...] = CELLS
) -> RunData:
    """A run of made-up numbers: `joint` and `seconds` of denoising per condition, by cell."""
    rows = []
    for metric, unit, found in (("joint", "share", joint), ("denoise_s", "s", seconds or {})):
        for cell, values in found.items():
            for condition, value in enumerate(values):
                rows.append(("run", cell, "", "wanx", "tiny", 0, condition, 0, metric, value, unit, True, "ok", None))
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return RunData(Path(), RunInfo(name="test data"), cells, (), table)


def coins(share: float, n: int) -> np.ndarray:
    """`n` conditions of which `share` are right: exactly, spread evenly."""
    return (np.arange(n) * share % 1 + share >= 1 - 1e-9).astype(float)


def find(run: RunData, words: str) -> Claim:
    (claim,) = [c for c in claims(run) if c.statement == words]
    return claim


@pytest.mark.parametrize(
    ("student", "n", "verdict"), [(0.9, 400, "reproduced"), (0.5, 400, "contradicted"), (0.75, 12, "undecided")]
)
def test_quality_against_the_teacher(student: float, n: int, verdict: str) -> None:
    run = make_run({"euler": coins(0.8, n), "fastlightgen": coins(student, n)})
    (claim,) = quality_is_kept(run)
    assert claim.verdict == verdict and claim.n == n
    assert bool(claim.decides) == (verdict == "undecided")


def test_a_larger_sample_decides_what_it_said_it_would() -> None:
    small = find(make_run({"fastlightgen": coins(0.8, 20), "dmd2": coins(0.7, 20)}), "FastLightGen is better than DMD2")
    assert small.verdict == "undecided" and small.decides.endswith("conditions, if the difference stays")
    wanted = 2 * int(small.decides.split()[1])
    large = make_run({"fastlightgen": coins(0.8, wanted), "dmd2": coins(0.7, wanted)})
    assert find(large, "FastLightGen is better than DMD2").verdict == "reproduced"


@settings(deadline=None)
@given(st.integers(2, 300), st.integers(0, 300), st.integers(0, 300))
def test_what_is_undecided_takes_more_conditions_than_there_are(n: int, won: int, lost: int) -> None:
    lot = np.arange(n)
    student = np.where(lot < won, 1.0, np.where(lot < won + lost, 0.0, 0.5))
    (claim,) = quality_is_kept(make_run({"euler": np.full(n, 0.5), "fastlightgen": student}))
    if claim.verdict == "undecided" and "too close" not in claim.decides:
        assert int(claim.decides.split()[1]) > n


def test_every_few_step_student_is_compared_with_four_plain_steps() -> None:
    run = make_run({"euler-4": coins(0.5, 200), "fastlightgen": coins(0.2, 200), "dmd2": coins(0.9, 200)})
    assert find(run, "FLG is better than Euler 4").verdict == "contradicted"
    assert find(run, "DMD2 is better than Euler 4").verdict == "reproduced"


@pytest.mark.parametrize(("times", "verdict"), [(40, "reproduced"), (20, "contradicted"), (31.3, "undecided")])
def test_speed(times: float, verdict: str) -> None:
    noise = np.exp(np.random.default_rng(0).normal(0, 0.05, 20))
    noise /= np.exp(np.log(noise).mean())
    run = make_run({}, {"euler": np.ones(20), "fastlightgen": noise / times})
    (claim,) = speed(run)
    assert claim.verdict == verdict and claim.n == 20
    assert f"{times}"[:2] in claim.statistic


@pytest.mark.parametrize(
    ("errors", "verdict"),
    [((9, 1, 1, 1, 1, 8), "reproduced"), ((1, 9, 8, 7, 6, 5), "contradicted"), ((9, 1, 1, 1, 7, 6), "undecided")],
)
def test_u_shape(errors: tuple[float, ...], verdict: str) -> None:
    run = replace(make_run({}), importance=Importance(blocks=tuple(range(6)), x0_error=errors))
    (claim,) = outer_blocks_matter_most(run)
    assert claim.verdict == verdict


def test_nothing_measured_is_not_tested_and_says_what_is_missing(tmp_path: Path) -> None:
    run = make_run({})
    assert {c.verdict for c in claims(run)} == {"not tested"} and all(c.decides for c in claims(run))
    assert {c.verdict for c in of_sweeps(make_run({"dmd2": coins(0.5, 9)}))} == {"not tested"}
    markdown, table = build(run, tmp_path)
    assert len(pd.read_csv(table)) == len(claims(run)) == markdown.read_text().count("| not tested |")


def hunyuan(run: RunData, **changed: Any) -> RunData:
    return replace(run, run=RunInfo(name="test data", settings={"model": "hunyuan"}), **changed)


@pytest.mark.parametrize(
    ("doubles", "singles", "verdict"),
    [
        ((9, 8, 7, 6), (5, 4, 3, 2, 1), "reproduced"),
        ((1, 2, 3, 4), (5, 6, 7, 8, 9), "contradicted"),
        ((9, 1, 7, 4), (5, 6, 3, 2, 8), "undecided"),
        ((9, 8), (7,), "undecided"),  # too few blocks for any verdict
        ((9, 8), (), "not tested"),
    ],
)
def test_kinds_of_block(doubles: tuple[float, ...], singles: tuple[float, ...], verdict: str) -> None:
    kinds = ("double",) * len(doubles) + ("single",) * len(singles)
    importance = Importance(blocks=tuple(range(len(kinds))), x0_error=doubles + singles, kinds=kinds)
    run = hunyuan(make_run({}), importance=importance)
    claim = find(run, "HunyuanVideo: a double block matters more than a single one")
    assert claim.verdict == verdict and bool(claim.decides) == (verdict in ("undecided", "not tested"))
    other = find(replace(make_run({}), importance=importance), claim.statement)
    assert other.verdict == "not tested" and "hunyuan" in other.decides, "another family's run decides nothing here"


@pytest.mark.parametrize(
    ("large", "none", "more", "beyond"),
    [
        (1.3, 1.0, "reproduced", "reproduced"),
        (0.9, 0.8, "reproduced", "contradicted"),
        (0.9, 1.1, "contradicted", "contradicted"),
    ],
)
def test_more_motion_is_not_yet_exaggerated(large: float, none: float, more: str, beyond: str) -> None:
    run = swept("beta2", {0.0: 0.5, 0.75: 0.5})
    means = {"fastlightgen@beta2=0": none, "fastlightgen@beta2=0.75": large, "real": 1.0}
    rows = [
        ("run", cell, "", "wanx", "tiny", 0, i, 0, "motion_ratio", mean + 0.01 * (-1) ** i, "ratio", True, "ok", None)
        for cell, mean in means.items()
        for i in range(20)
    ]
    real = Cell(cell="real", method="", label="real clips", kind="control", status="done")
    run = replace(run, cells=(*run.cells, real), results=pd.DataFrame(rows, columns=list(COLUMNS)), memory={})
    verdicts = {c.statement: c.verdict for c in of_sweeps(run)}
    assert verdicts["A large beta2 (0.75) makes more motion than 0"] == more
    assert verdicts["A large beta2 (0.75) exaggerates motion: there is more than in real clips"] == beyond


def swept(sweep: str, shares: dict[float, float]) -> RunData:
    cells = {value: f"fastlightgen@{sweep}={value:g}" for value in shares}
    variants = tuple(
        Cell(
            cell=name, method="fastlightgen", label=name, kind="variant", status="done", sweep=sweep, point={sweep: value}
        )
        for value, name in cells.items()
    )  # fmt: skip
    return hunyuan(make_run({cells[value]: coins(share, 400) for value, share in shares.items()}), variants=variants)


def test_pruning_and_guidance_of_hunyuan() -> None:
    dense, half = "HunyuanVideo: the dense student is better than the 30 % pruned", "HunyuanVideo: 30 % pruned is better"
    run = swept("keep", {1.0: 0.9, 0.7: 0.6, 0.5: 0.8})
    verdicts = {c.statement: c.verdict for c in claims(run)}
    assert verdicts[dense] == "reproduced" and verdicts[f"{half} than 50 % pruned"] == "contradicted"
    assert find(swept("keep", {0.7: 0.6, 0.5: 0.8}), dense).decides == "flgbench ablate keep --model hunyuan"
    best = "HunyuanVideo: beta1 = 2 is the best"
    assert find(swept("beta1", {1.0: 0.5, 2.0: 0.9, 2.8: 0.6}), best).verdict == "reproduced"
    assert find(swept("beta1", {1.0: 0.95, 2.0: 0.7, 2.8: 0.6}), best).verdict == "contradicted"
    assert find(swept("beta1", {1.0: 0.95}), best).verdict == "not tested"


def test_the_speed_of_wanx_is_not_asked_of_another_family() -> None:
    run = hunyuan(make_run({}, {"euler": np.ones(20), "fastlightgen": np.full(20, 0.1)}))
    (claim,) = speed(run)
    assert claim.verdict == "not tested" and "two passes a step" in claim.decides
    assert quality_is_kept(run)[0].source.startswith("HunyuanVideo table")
