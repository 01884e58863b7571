"""Systems that cheat, end to end: one returns its first frame, one makes the same clip whatever the seed."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from conftest import Flgbench

from flgbench.registry import registry

SOURCE = '''
import torch
from flgbench.contracts import Baseline
from flgbench.data import shapes
from flgbench.sampling import SamplerSettings
from flgbench.steps.loading import true_outcomes


class Reference(Baseline):
    """The teacher in eight steps."""

    label, kind, changes = "Euler 8", "reference", "steps"

    def sampler(self):
        return SamplerSettings(num_inference_steps=8, guidance_scale=2.0, shift=3.0)


class Frozen(Baseline):
    """Returns the image it was given."""

    label, changes = "gamed", "everything"

    def generate(self, model, batch):
        return batch.first_frames[:, None].repeat(1, shapes.FRAMES, 1, 1, 1)


class OneSeed(Baseline):
    """A right clip, but of one condition always the same."""

    label, changes = "collapsed", "everything"

    def generate(self, model, batch):
        return shapes.render(true_outcomes([(condition, 0) for condition, _ in batch.identities]))
'''


@pytest.fixture
def cheats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "outside_cheats.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    registry.cache_clear()
    for name, target in {"quick": "Reference", "gamed": "Frozen", "collapsed": "OneSeed"}.items():
        registry("baselines").register(name, f"outside_cheats:{target}", "a test")
    yield
    registry.cache_clear()
    sys.modules.pop("outside_cheats", None)


def test_they_come_out_last_or_flagged(cheats: None, flgbench: Flgbench, tmp_path: Path) -> None:
    names, out = "real,quick,gamed,collapsed", str(tmp_path / "out")
    small = ("--conditions", "16", "--pairs", "3", "--executor", "inline", "--out", out)
    command = ("run", "--methods", "none", "--baselines", names, *small)
    code, out, _ = flgbench(*command)
    assert code == 0, out
    (folder,) = (tmp_path / "out" / "runs").iterdir()
    table = pd.read_csv(folder / "report" / "tables" / "main.csv").set_index("cell")
    assert table.loc["gamed", "joint"] == 0 and table.loc["gamed", "motion_ratio"] < 0.05
    assert table.loc["gamed", "named_all"] == table["named_all"].min()
    assert table.loc["gamed", "verdict"] == "below"
    # Every clip of the collapsed one is right: only its sameness tells.
    assert table.loc["collapsed", "joint"] == 1 and table.loc["collapsed", "turn_diversity"] == 0
    assert table.loc["collapsed", "verdict"] == "below"
    assert "less diverse" in table.loc["collapsed", "verdict_note"]
    assert table.loc["quick", "turn_diversity"] > 0.3

    # Evaluated again: that step alone runs, and every number is the same.
    store = tmp_path / "out" / "store"
    (quality,) = store.glob("quality-quick-*")
    before = pd.read_parquet(quality / "results.parquet")
    ends = {p.parent: p.stat().st_mtime_ns for p in store.glob("*/done.json")}
    shutil.rmtree(quality)
    assert flgbench(*command)[0] == 0
    pd.testing.assert_frame_equal(before, pd.read_parquet(quality / "results.parquet"))
    again = {p.parent for p in store.glob("*/done.json") if p.stat().st_mtime_ns != ends[p.parent]}
    assert again == {quality}
