"""A small recovery training as a program, so that a test can kill it: python train_worker.py WORK LOG."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from conftest import build_tiny_data, build_tiny_model

from flgbench import training
from flgbench.loop_settings import LoopSettings
from flgbench.models.wanx import WanX
from flgbench.stage import Roles, TrainingData
from methods.parts.recovery import Recovery, RecoverySettings

BUDGET = 220.0  # about 30 iterations
Log = Callable[..., None]


class AveragedRecovery(Recovery):
    """Recovery that leaves an EMA of its weights, fast enough to matter in a short training."""

    ema_decay = 0.9


def run(model: WanX, data: TrainingData, work: Path, log: Log, budget: float = BUDGET) -> AveragedRecovery:
    """Train in `work`, saving a checkpoint after every iteration; `log` gets every iteration's line."""
    work.mkdir(parents=True, exist_ok=True)
    (work / "importance.json").write_text(json.dumps({"redundant": [1, 2]}))
    stage = AveragedRecovery(RecoverySettings(lr=1e-3), Roles(model, data, {"importance": work}))
    training.LOG_EVERY = 1
    settings = LoopSettings(budget=budget, batch=2, checkpoint_seconds=1e-9)
    training.train(stage, data, settings, model.tally, work, log)
    return stage


if __name__ == "__main__":
    torch.set_num_threads(1)
    work, log_path = map(Path, sys.argv[1:])

    def append(**line: float) -> None:
        with log_path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    teacher = build_tiny_model()
    run(teacher, build_tiny_data(teacher), work, append)
