"""A training over two processes has the losses and weights of one, also when it was interrupted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flgbench import distributed
from flgbench.errors import UsageError
from flgbench.loop_settings import LoopSettings
from flgbench.models.wanx import WanX
from flgbench.stage import Roles, TrainingData
from flgbench.training import train
from methods.parts.distribution_matching import DistributionMatching, MatchSettings

WORKER = Path(__file__).with_name("distributed_worker.py")


def worker(*arguments: object) -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", WORKER, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def curve(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stage", ["dmd2", "recovery", "magic"])
def test_two_processes_train_as_one(stage: str, tmp_path: Path) -> None:
    """Also: weights that random blocks were skipped of, an EMA, and adapters on frozen weights."""
    one, two = tmp_path / "one", tmp_path / "two"
    worker(stage, 1, one)
    worker(stage, 2, two)
    alone, together = curve(one), curve(two)
    assert len(alone) == len(together) > 5
    for a, b in zip(alone, together, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        assert b["passes"] == pytest.approx(a["passes"])
    mine, theirs = (load_file(f / "transformer" / "diffusion_pytorch_model.safetensors") for f in (one, two))
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-4, atol=1e-5)


def test_an_interrupted_training_of_two_goes_on_with_one(tmp_path: Path) -> None:
    """Checkpoints are whole: the number of processes may change."""
    plain, stopped = tmp_path / "plain", tmp_path / "stopped"
    worker("recovery", 1, plain)
    worker("recovery", 2, stopped, 5)
    assert len(curve(stopped)) == 5
    worker("recovery", 1, stopped)
    assert curve(stopped)[-1]["iteration"] == curve(plain)[-1]["iteration"]
    assert curve(stopped)[-1]["loss"] == pytest.approx(curve(plain)[-1]["loss"], rel=1e-5)


def test_shares_of_a_batch_are_those_of_the_whole(tiny_data: TrainingData) -> None:
    whole = tiny_data.batch(4, torch.Generator().manual_seed(3))
    parts = [tiny_data.batch(4, torch.Generator().manual_seed(3), share, 2) for share in range(2)]
    for draw in (lambda b: b.noise(), lambda b: b.uniform(1.0, 2.0), lambda b: b.integers(50), lambda b: b.latents):
        assert torch.equal(torch.cat([draw(p) for p in parts]), draw(whole))


def test_a_batch_that_cannot_be_shared(
    tiny_model: WanX, tiny_data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "processes", lambda: 3)
    stage = DistributionMatching(MatchSettings(), Roles(tiny_model, tiny_data, {}))
    with pytest.raises(UsageError, match="8 clips cannot be shared by 3"):
        train(stage, tiny_data, LoopSettings(batch=8), tiny_model.tally, tmp_path, print)
