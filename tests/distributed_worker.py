"""A small training as a program of several processes, so that a test can compare it with one process.

    python distributed_worker.py STAGE PROCESSES FOLDER [STOP_AT]

Every process writes nothing but the first, which leaves `curve.jsonl` and the student's `transformer` in FOLDER.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from conftest import build_tiny_data, build_tiny_model
from train_worker import AveragedRecovery, RecoverySettings

from flgbench import distributed, training
from flgbench.loop_settings import LoopSettings
from flgbench.models.tiny import parallel
from flgbench.stage import Roles, TrainedStage
from methods.parts.distribution_matching import DistributionMatching, MatchSettings
from methods.parts.weak_to_strong import WeakToStrong, WeakToStrongSettings


class Stopped(Exception):
    """The training ends in the middle, after a checkpoint."""


def make(name: str, roles: Roles) -> TrainedStage:
    if name == "dmd2":
        return DistributionMatching(MatchSettings(lr=1e-3, fake_lr=1e-3, fake_updates=2), roles)
    if name == "magic":
        return WeakToStrong(WeakToStrongSettings(lr=1e-3, rank=2), roles)
    return AveragedRecovery(RecoverySettings(lr=1e-3), roles)


def run(name: str, folder: Path, stop_at: int | None) -> None:
    torch.set_num_threads(1)
    training.LOG_EVERY = 1
    teacher = build_tiny_model()
    (folder / "work").mkdir(parents=True, exist_ok=True)
    artifacts = {"importance": folder} if name == "recovery" else {}
    (folder / "importance.json").write_text(json.dumps({"redundant": [0, 2]}))
    stage = make(name, Roles(teacher, build_tiny_data(teacher), artifacts))

    def log(**line: float) -> None:
        with (folder / "curve.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    try:
        settings = LoopSettings(budget=400, batch=4, checkpoint_seconds=1e-9)
        after = stage.after_step

        def stopping(iteration: int, losses: dict[str, torch.Tensor]) -> None:
            after(iteration, losses)
            if iteration == stop_at:
                raise Stopped

        stage.after_step = stopping  # type: ignore[method-assign]
        facts = training.train(stage, stage.roles.data, settings, teacher.tally, folder / "work", log)
    except Stopped:
        return
    if distributed.rank() == 0:
        stage.student().save(folder / "transformer")
        (folder / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    name, processes, folder, *stop = sys.argv[1:]
    arguments = (name, Path(folder), int(stop[0]) if stop else None)
    if processes == "1":
        run(*arguments)
    else:
        parallel.launch(run, int(processes), *arguments)
