"""The training loop: an interrupted training ends exactly where the uninterrupted one does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import train_worker
from pydantic import ValidationError

from flgbench import training
from flgbench.checkpoint import load_checkpoint
from flgbench.errors import StageFailure
from flgbench.loop_settings import LoopSettings
from flgbench.models.wanx import WanX
from flgbench.stage import Batch, Roles, TrainingData
from flgbench.training import check_collapse
from methods.parts.distribution_matching import DistributionMatching, MatchSettings
from methods.parts.recovery import Recovery, RecoverySettings

Lines = dict[int, dict[str, float]]


class Stopped(Exception):
    """Our own way to end a training in the middle."""


class Recorder:
    """Keeps the last line of each iteration, and may stop at one."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.lines: Lines = {}
        self.stop_at = stop_at

    def __call__(self, **line: float) -> None:
        self.lines[int(line["iteration"])] = line
        if line["iteration"] == self.stop_at:
            raise Stopped


@pytest.fixture(autouse=True)
def log_every_iteration(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(training, "LOG_EVERY", 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # another number of threads may sum in another order
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(tiny_model: WanX, tiny_data: TrainingData, tmp_path_factory: pytest.TempPathFactory) -> tuple[Lines, Any]:
    """Lines and student weights of a training that nothing interrupted."""
    torch.set_num_threads(1)
    recorder = Recorder()
    stage = train_worker.run(tiny_model, tiny_data, tmp_path_factory.mktemp("whole"), recorder)
    return recorder.lines, stage.model.transformer.state_dict()


def assert_same_curve(found: Lines, expected: Lines) -> None:
    assert found.keys() <= expected.keys() and max(found) == max(expected)
    for iteration, line in found.items():
        for name in ("loss", "distillation", "ground_truth", "passes", "fraction"):
            assert line[name] == pytest.approx(expected[iteration][name], abs=1e-6), (iteration, name)


def assert_same_weights(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6, msg=name)


def test_resume_continues_the_same_curve(
    whole: tuple[Lines, Any], tiny_model: WanX, tiny_data: TrainingData, tmp_path: Path
) -> None:
    lines, weights = whole
    middle = len(lines) // 2
    with pytest.raises(Stopped):
        train_worker.run(tiny_model, tiny_data, tmp_path, Recorder(stop_at=middle))
    resumed = Recorder()
    stage = train_worker.run(tiny_model, tiny_data, tmp_path, resumed)
    assert min(resumed.lines) == middle  # the iteration that had logged but not saved, and no earlier one
    assert_same_curve(resumed.lines, lines)
    assert_same_weights(stage.model.transformer.state_dict(), weights)
    assert resumed.lines[middle + 1]["seconds"] > 0


def test_kill_9_and_resume(whole: tuple[Lines, Any], tiny_model: WanX, tiny_data: TrainingData, tmp_path: Path) -> None:
    """A real process killed with a signal that it cannot catch, at whatever moment that hits."""
    lines, weights = whole
    log = tmp_path / "log.jsonl"
    command = [sys.executable, str(Path(train_worker.__file__)), str(tmp_path / "work"), str(log)]
    path = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    try:
        while not log.exists() or log.read_text().count("\n") < 4:
            assert process.poll() is None, process.communicate()[1].decode()
            assert time.monotonic() < deadline, "the worker did not start"
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    before = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
    assert 4 <= len(before) < len(lines), "killed in the middle"
    assert process.returncode == -signal.SIGKILL
    resumed = Recorder()
    stage = train_worker.run(tiny_model, tiny_data, tmp_path / "work", resumed)
    assert 1 < min(resumed.lines) <= len(before) + 1  # from a checkpoint, not from the start
    assert_same_curve({line["iteration"]: line for line in before} | resumed.lines, lines)
    assert_same_weights(stage.model.transformer.state_dict(), weights)


def test_a_half_written_checkpoint_is_not_read(
    whole: tuple[Lines, Any], tiny_model: WanX, tiny_data: TrainingData, tmp_path: Path
) -> None:
    with pytest.raises(Stopped):
        train_worker.run(tiny_model, tiny_data, tmp_path, Recorder(stop_at=5))
    (tmp_path / "checkpoint.partial").write_bytes(b"cut off")
    resumed = Recorder()
    train_worker.run(tiny_model, tiny_data, tmp_path, resumed)
    assert_same_curve(resumed.lines, whole[0])


def test_budget_is_spent_and_not_overspent(whole: tuple[Lines, Any]) -> None:
    """The last iteration is the one that reaches the budget; one costs at most 2 x (1 + 1 + 3) passes at batch 2."""
    lines, last = whole[0], max(whole[0])
    assert lines[last - 1]["passes"] < train_worker.BUDGET <= lines[last]["passes"] < train_worker.BUDGET + 10
    assert lines[last]["fraction"] == 1
    steps = [lines[i + 1]["passes"] - lines[i]["passes"] for i in range(1, last)]
    assert min(steps) >= 2 + 6 * 2 / 4 and max(steps) <= 2 + 6 + 2


class Watched(Recovery):
    """Remembers the student's weights after every step."""

    ema_decay = 0.5

    def __init__(self, settings: RecoverySettings, roles: Roles) -> None:
        super().__init__(settings, roles)
        self.history: list[torch.Tensor] = []

    def after_step(self, iteration: int, losses: dict[str, torch.Tensor]) -> None:
        self.history.append(self.model.transformer.proj_out.weight.detach().clone())

    def moves_student(self, iteration: int) -> bool:
        return iteration % 2 == 0


def test_ema_is_left_in_the_student(tiny_model: WanX, tiny_data: TrainingData, tmp_path: Path) -> None:
    """Moved once after every step that moved the student, from the weights it started with."""
    (tmp_path / "importance.json").write_text('{"redundant": [1]}')
    stage = Watched(RecoverySettings(lr=1e-3), Roles(tiny_model, tiny_data, {"importance": tmp_path}))
    average = stage.model.transformer.proj_out.weight.detach().clone()
    settings = LoopSettings(budget=60, batch=2)
    training.train(stage, tiny_data, settings, tiny_model.tally, tmp_path, Recorder())
    assert len(stage.history) > 5
    for iteration, weight in enumerate(stage.history):
        if iteration % 2 == 0:
            average = 0.5 * average + 0.5 * weight
    torch.testing.assert_close(stage.model.transformer.proj_out.weight.detach(), average, rtol=0, atol=1e-6)
    assert not torch.equal(stage.history[-1], average)


class Halves(Recovery):
    """Remembers the first number of each batch."""

    def __init__(self, settings: RecoverySettings, roles: Roles) -> None:
        super().__init__(settings, roles)
        self.first: list[float] = []

    def train_step(self, batch: Batch, iteration: int) -> dict[str, torch.Tensor]:
        self.first.append(batch.latents[0, 0, 0, 0, 0].item())
        return super().train_step(batch, iteration)


def test_accumulation_draws_a_batch_a_part(tiny_model: WanX, tiny_data: TrainingData, tmp_path: Path) -> None:
    (tmp_path / "importance.json").write_text('{"redundant": [1]}')
    stage = Halves(RecoverySettings(), Roles(tiny_model, tiny_data, {"importance": tmp_path}))
    settings = LoopSettings(budget=60, batch=2, accumulate=3)
    facts = training.train(stage, tiny_data, settings, tiny_model.tally, tmp_path, Recorder())
    assert len(stage.first) == 3 * facts["iterations"]
    assert len(set(stage.first[:3])) > 1


def test_checkpoint_holds_everything(tiny_model: WanX, tiny_data: TrainingData, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train_worker.run(tiny_model, tiny_data, tmp_path, Recorder(stop_at=4))
    fresh = tiny_model.copy().requires_grad_(True).transformer
    optimizer = torch.optim.AdamW(fresh.parameters(), lr=1e-3)
    path = tmp_path / "checkpoint.safetensors"
    ema, scalars = load_checkpoint(path, {"student": fresh}, {"student": optimizer})
    assert scalars["iteration"] == 3 and scalars["passes"] > 0
    assert ema.keys() == dict(fresh.named_parameters()).keys()
    # Blocks that were skipped in an iteration took no step in it.
    assert {int(state["step"]) for state in optimizer.state_dict()["state"].values()} <= {1, 2, 3}
    assert optimizer.state[fresh.proj_out.weight]["step"] == 3
    assert not torch.equal(fresh.proj_out.weight, tiny_model.transformer.proj_out.weight)


@pytest.mark.parametrize("wrong", [{"budget": 0}, {"batch": 0}, {"accumulate": 0}, {"clip_norm": 0}, {"lr": 1}])
def test_wrong_loop_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        LoopSettings(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("word", ["NaN", "static", "solid", "saturated"])
def test_collapse_has_a_name(word: str) -> None:
    real = torch.randn(8, 16, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    check_collapse(real[:2] + 0.1, real)  # healthy
    broken = {
        "NaN": real[:2].where(real[:2] < 3, torch.nan),
        "static": real[:2, :, :1].expand(-1, -1, 5, -1, -1),
        "solid": real[:2, :, :, :1, :1].expand(-1, -1, -1, 8, 8),
        "saturated": 6 * real[:2],
    }
    with pytest.raises(StageFailure) as failure:
        check_collapse(broken[word], real)
    assert failure.value.word == word


def test_collapsed_student_ends_its_training(tiny_model: WanX, tiny_data: TrainingData, tmp_path: Path) -> None:
    """The guard must see the student although only every fourth iteration makes a clean estimate (0, 10, 20 never do)."""
    teacher = tiny_model.copy()
    stage = DistributionMatching(MatchSettings(), Roles(teacher, tiny_data, {}))
    with torch.no_grad():
        stage.student().transformer.proj_out.weight.mul_(500)
    with pytest.raises(StageFailure, match=r"^saturated"):
        training.train(stage, tiny_data, LoopSettings(budget=2000, batch=2), teacher.tally, tmp_path, Recorder())


def test_learning_rates_rise_and_fall(tiny_model: WanX, tiny_data: TrainingData, tmp_path: Path) -> None:
    stage = DistributionMatching(MatchSettings(lr=1e-4, fake_lr=4e-4), Roles(tiny_model.copy(), tiny_data, {}))
    seen: list[tuple[float, ...]] = []
    stage.after_step = lambda iteration, losses: seen.append(  # type: ignore[method-assign]
        tuple(o.param_groups[0]["lr"] for o in stage.all_optimizers().values())
    )
    settings = LoopSettings(budget=400, batch=2, decay=0.5, warmup=4)
    lines: list[dict[str, float]] = []
    training.train(stage, tiny_data, settings, stage.generator.tally, tmp_path, lambda **line: lines.append(line))
    spent = [0.0, *(line["fraction"] for line in lines[:-1])]
    assert len(seen) > 8
    for i, (share, (student, fake)) in enumerate(zip(spent, seen, strict=True)):
        factor = min(1, (i + 1) / 4, (1 - share) / 0.5)
        assert student == pytest.approx(1e-4 * factor) and fake == pytest.approx(4 * student)
    assert seen[0] == pytest.approx((0.25e-4, 1e-4)) and seen[3] == (1e-4, 4e-4) and seen[-1][0] < 0.2e-4
