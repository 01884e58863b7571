"""The measures' self-test: every kind of damage is caught by the measure designated for it, real clips by none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from flgbench.cli import app
from flgbench.data import shapes
from flgbench.metrics import sets
from flgbench.metrics.corruptions import CORRUPTIONS, seeds_of
from flgbench.metrics.selftest import MEASURES, Finding, check, uncaught
from flgbench.metrics.table import ALL_METRICS, METRICS
from reports import blind_spots
from reports.self_test import draw, lines, tabulate


@pytest.fixture(scope="module")
def findings() -> list[Finding]:
    return check(conditions=64)


def test_every_designated_measure_catches_its_damage(findings: list[Finding]) -> None:
    assert len(CORRUPTIONS) == 14
    assert len(findings) == (1 + len(CORRUPTIONS)) * len(MEASURES)
    assert [(f.corruption, f.measure) for f in uncaught(findings)] == []
    assert sum(f.designated for f in findings) == len(CORRUPTIONS)


def test_real_clips_are_caught_by_nothing(findings: list[Finding]) -> None:
    untouched = [f for f in findings if f.corruption == "none"]
    assert {f.measure for f in untouched if f.seen != "blind"} == set()
    for f in untouched:
        info = ALL_METRICS[f.measure]
        if f.measure in METRICS and info.target is not None:
            assert f.value == pytest.approx(info.target, abs=0.04), f.measure  # identity gives the optimum


def test_no_measure_sees_everything_and_blindness_is_said(findings: list[Finding]) -> None:
    for measure in MEASURES:
        assert any(f.seen != "caught" for f in findings if f.measure == measure and f.corruption != "none"), measure
    assert ("blur", "direction") in {(f.corruption, f.measure) for f in findings if f.seen == "blind"}


def test_the_legend_of_the_reports_is_what_the_measures_do(findings: list[Finding]) -> None:
    """Write it again: flgbench check-metrics --conditions 64 --out X && cp X/check-metrics.csv reports/blind_spots.csv"""
    told = pd.read_csv(blind_spots.FILE).set_index(["corruption", "measure"])["seen"].to_dict()
    assert told == {(f.corruption, f.measure): f.seen for f in findings}
    rows = {row.key: row.entries for row in blind_spots.table().rows}
    assert "blur" in rows["direction"]["blind"].text and "blur" in rows["interpolation_ratio"]["caught"].text


def test_damage_is_deterministic_and_keeps_the_shape() -> None:
    factors = shapes.draw_factors("validation", range(16))
    real = shapes.render(factors)
    before = real.clone()
    for corruption in CORRUPTIONS:
        damaged = corruption.damage(real, factors)
        assert damaged.shape == real.shape and damaged.dtype == real.dtype
        assert (damaged == corruption.damage(real, factors)).all(), corruption.name
        alone = corruption.designated == "turn_diversity"  # nothing to collapse where no condition comes twice
        assert (damaged != real).any() != alone, corruption.name
    assert (real == before).all()


def test_seeds_of_a_condition_differ_in_the_turn_only() -> None:
    factors, condition = seeds_of(3)
    assert condition.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    videos = shapes.render(factors).view(3, 8, *shapes.render(factors).shape[1:])
    assert (videos[:, :, : shapes.TURN_FRAME + 1] == videos[:, :1, : shapes.TURN_FRAME + 1]).all()
    assert (videos[:, :, -1] != videos[:, :1, -1]).any()


def test_seed_diversity() -> None:
    law = (0.25,) * 4
    conditions = np.repeat(np.arange(500), 8)
    drawn = np.random.default_rng(0).integers(0, 4, 4000).astype(float)
    names, ratio = sets.seed_diversity(drawn, conditions, law)
    assert len(names) == 500 and ratio.mean() == pytest.approx(1, abs=0.02)
    collapsed = drawn[np.arange(4000) // 8 * 8]
    assert sets.total_variation(collapsed, law) < 0.1  # over many conditions the law still holds
    assert (sets.seed_diversity(collapsed, conditions, law)[1] == 0).all()
    drawn[:8] = np.nan  # nothing could be told in condition 0, and one seed is no pair
    drawn[8:15] = np.nan
    assert sets.seed_diversity(drawn, conditions, law)[0].tolist() == list(range(2, 500))


def test_too_few_conditions() -> None:
    with pytest.raises(ValueError, match="at least 16"):
        check(conditions=8)


def test_table_lines_and_heat_map(findings: list[Finding], tmp_path: Path) -> None:
    table = pd.read_csv(tabulate(findings, tmp_path))
    assert len(table) == len(findings) and set(table["seen"]) <= {"caught", "blind", "wrong way"}
    said = lines(findings)
    assert sum("caught" in line for line in said) == len(CORRUPTIONS)
    assert all(path.stat().st_size > 10_000 for path in draw(findings, tmp_path))


def test_the_verb_refuses_what_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(app, ["check-metrics", "--out", str(tmp_path / "file" / "below")])
    assert result.exit_code != 0 and "below" in f"{result.exception}"
    assert CliRunner().invoke(app, ["check-metrics", "--conditions", "4"]).exit_code == 2
