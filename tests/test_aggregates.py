"""Numbers derived from the tidy table, against what numpy says of the same values."""

from __future__ import annotations

import numpy as np
import pytest
from test_claims import coins, make_run

from reports.aggregates import ninth_decile, paired_difference
from reports.main_table import speed


def test_a_ninth_decile_needs_thirty_six_samples() -> None:
    seconds = np.random.default_rng(0).lognormal(0, 0.1, 36)
    enough = ninth_decile(make_run({}, {"euler": seconds}), "euler", "denoise_s")
    assert enough.value == pytest.approx(np.quantile(seconds, 0.9)) and enough.n == 36
    few = ninth_decile(make_run({}, {"euler": seconds[:35]}), "euler", "denoise_s")
    assert few.value is None
    assert few.reason == "a 90th percentile needs 36 timed conditions (--pairs 36), has 35"
    assert ninth_decile(make_run({}), "euler", "denoise_s").reason == "not measured"


def test_the_speed_table_says_why_there_is_none() -> None:
    rows = {r.key: r.entries for r in speed(make_run({"euler": coins(0.9, 9)})).rows}
    assert rows["euler"]["p90"].text == "" and rows["euler"]["p90"].note == "not measured"


def test_a_paired_difference_is_the_difference_of_the_means() -> None:
    run = make_run({"euler": coins(0.9, 50), "dmd2": coins(0.6, 50)})
    found = paired_difference(run, "dmd2", "euler", "joint")
    assert found is not None and found.value == pytest.approx(-0.3) and found.low < -0.3 < found.high
    assert paired_difference(run, "dmd2", "lcm", "joint") is None
