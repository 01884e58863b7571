"""Trainings at size as a program of several processes: python sized_worker.py FOLDER SCENARIO...

Everything is imported once and then forked: a scenario's processes start at once. Each leaves in FOLDER/SCENARIO what its
first process says: `curve.jsonl`, the student's `transformer`, `facts.json`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import build_tiny_data, build_tiny_model
from train_worker import AveragedRecovery, RecoverySettings

from flgbench import distributed, training
from flgbench.checkpoint import check_saved
from flgbench.loop_settings import LoopSettings
from flgbench.models.wanx import cast
from flgbench.stage import Roles, TrainedStage
from methods.parts.content import ContentDistillation, ContentSettings
from methods.parts.distribution_matching import DistributionMatching, MatchSettings
from methods.parts.weak_to_strong import WeakToStrong, WeakToStrongSettings

FP32 = {"precision": "fp32", "checkpoint_seconds": 1e9}
EVERY = {"checkpoint_seconds": 1e-9}  # a checkpoint after each iteration


@dataclass(frozen=True)
class Scenario:
    stage: str
    processes: int
    sized: dict[str, Any] | None = None
    accumulate: int = 1
    iterations: int = 6
    kill_at: int | None = None  # every process ends itself by SIGKILL in this iteration
    folder: str = ""  # of another scenario, which this one continues
    stored: torch.dtype = torch.float32  # of the teacher's large matrices, as a real checkpoint is read


SCENARIOS = {
    "recovery-plain": Scenario("recovery", 1, accumulate=2),
    "recovery-sized": Scenario("recovery", 2, FP32, accumulate=2),
    "recovery-eager": Scenario("recovery", 2, FP32 | {"defer_reduction": False}, accumulate=2),
    "recovery-alone": Scenario("recovery", 1, FP32, accumulate=2),
    "recovery-offload": Scenario("recovery", 2, FP32 | {"offload": True}, accumulate=2),
    "recovery-killed": Scenario("recovery", 2, FP32 | EVERY, accumulate=2, kill_at=3),
    "recovery-resumed": Scenario("recovery", 2, FP32 | EVERY, accumulate=2, folder="recovery-killed"),
    "dmd2-plain": Scenario("dmd2", 1, iterations=4),
    "dmd2-bf16": Scenario("dmd2", 2, {"sample_every": 1}, iterations=4),
    "magic-plain": Scenario("magic", 1, iterations=4),
    "magic-sized": Scenario("magic", 2, FP32, iterations=4),
    "adapted-plain": Scenario("adapted", 1, iterations=4),
    "adapted-sized": Scenario("adapted", 2, FP32, iterations=4),
    "adapted-bf16": Scenario("adapted", 2, {}, iterations=4, stored=torch.bfloat16),
    "icmd-plain": Scenario("icmd", 1, iterations=4),
    "icmd-bf16": Scenario("icmd", 2, {}, iterations=4, stored=torch.bfloat16),
}


def make(name: str, roles: Roles) -> TrainedStage:
    if name == "dmd2":
        return DistributionMatching(MatchSettings(lr=1e-3, fake_lr=1e-3, fake_updates=2), roles)
    if name == "adapted":
        adapted = MatchSettings(lr=1e-3, fake_lr=1e-2, critic="lora", critic_rank=4)
        return DistributionMatching(adapted, roles)
    if name == "magic":
        return WeakToStrong(WeakToStrongSettings(lr=1e-3, rank=2), roles)
    if name == "icmd":
        return ContentDistillation(ContentSettings(keep=0.5, lr=1e-3, discriminator_width=8), roles)
    return AveragedRecovery(RecoverySettings(lr=1e-3), roles)


def run(name: str, root: Path) -> None:
    torch.set_num_threads(1)
    training.LOG_EVERY = 1
    scenario = SCENARIOS[name]
    folder = root / (scenario.folder or name)
    (folder / "work").mkdir(parents=True, exist_ok=True)
    (folder / "importance.json").write_text(json.dumps({"redundant": [0, 2]}))
    teacher = build_tiny_model()
    data = build_tiny_data(teacher)
    cast(teacher.transformer, scenario.stored)
    if scenario.sized and distributed.rank() > 0:
        teacher.transformer.to("meta")  # the first process's weights are enough
    artifacts = {"importance": folder} if scenario.stage == "recovery" else {}
    stage = make(scenario.stage, Roles(teacher, data, artifacts))
    reductions = count_reductions()

    def log(**line: float) -> None:
        with (folder / "curve.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    after = stage.after_step

    def killing(iteration: int, losses: dict[str, torch.Tensor]) -> None:
        after(iteration, losses)
        if iteration == scenario.kill_at:
            distributed.barrier()  # else one could die before the other has written its last shard
            os.kill(os.getpid(), signal.SIGKILL)

    stage.after_step = killing  # type: ignore[method-assign]
    settings = LoopSettings(
        batch=4, accumulate=scenario.accumulate, iterations=scenario.iterations, warmup=2, sized=scenario.sized
    )
    facts = training.train(stage, stage.roles.data, settings, teacher.tally, folder / "work", log, 1e9, 1e12)
    if distributed.rank() == 0:
        stage.student().save(folder / "transformer")
        check_saved(folder / "transformer", stage.student().transformer)
        (folder / "facts.json").write_text(json.dumps(facts | {"reductions": len(reductions)}))


def count_reductions() -> list[int]:
    """Grows by one with every reduction of gradients over the processes."""
    calls: list[int] = []
    original = dist.reduce_scatter_single

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return original(*args, **kwargs)

    dist.reduce_scatter_single = counted
    return calls


def enter(rank: int, name: str, root: Path) -> None:
    processes = SCENARIOS[name].processes
    if processes > 1:
        dist.init_process_group("gloo", init_method=f"file://{root / name}.meet", rank=rank, world_size=processes)
    run(name, root)
    distributed.barrier()
    sys.stdout.flush()
    os._exit(0)  # see flgbench.models.tiny.parallel


if __name__ == "__main__":
    root = Path(sys.argv[1])
    for name in sys.argv[2:]:
        try:
            mp.start_processes(enter, (name, root), SCENARIOS[name].processes, start_method="fork")
        except mp.ProcessExitedException as error:
            if SCENARIOS[name].kill_at is None or error.signal_name != "SIGKILL":
                raise
