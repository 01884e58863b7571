"""A method from outside the repository: one file and one registry line, then it is planned, trained and sampled."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flgbench.contracts import Method
from flgbench.errors import UsageError
from flgbench.loop_settings import LoopSettings
from flgbench.models.wanx import WanX
from flgbench.plan import plan
from flgbench.registry import registry, resolve
from flgbench.run_settings import RunSettings
from flgbench.sampling import SamplerSettings, generate
from flgbench.stage import Roles, TrainingData
from flgbench.training import train

SOURCE = '''
"""Step distillation: the student's one Euler step imitates two of the teacher."""

import torch
from pydantic import Field

from flgbench import flow
from flgbench.contracts import Method, StageSpec
from flgbench.sampling import SamplerSettings
from flgbench.settings import Settings
from flgbench.stage import TrainedStage


class HalvingSettings(Settings):
    steps: int = Field(4, ge=1)
    lr: float = Field(1e-3, gt=0, description="INFERRED: ours")


class Halving(TrainedStage):
    Settings = HalvingSettings

    def __init__(self, settings, roles):
        super().__init__(settings, roles)
        self.model = roles.teacher.copy().requires_grad_(True)
        self.optimizer = torch.optim.Adam(self.model.transformer.parameters(), lr=settings.lr)
        self.times = flow.euler_times(2 * settings.steps, 3.0)

    def student(self):
        return self.model

    def modules(self):
        return {"student": self.model.transformer}

    def all_optimizers(self):
        return {"student": self.optimizer}

    def optimizers(self, iteration):
        return [self.optimizer]

    def train_step(self, batch, iteration):
        i = 2 * int(torch.randint(self.settings.steps, (1,), generator=batch.generator))
        t, middle, s = (time.expand(len(batch.latents)) for time in self.times[i : i + 3])
        x = flow.interpolate(batch.latents, batch.noise(), t)
        with torch.no_grad():
            half = x + flow.per_clip(middle - t, x) * self.roles.teacher.velocity(x, t, batch.condition)
            end = half + flow.per_clip(s - middle, x) * self.roles.teacher.velocity(half, middle, batch.condition)
        target = (end - x) / flow.per_clip(s - t, x)
        return {"loss": (self.model.velocity(x, t, batch.condition) - target).pow(2).mean()}


class StepHalving(Method):
    """Half of the steps, learnt from the teacher's own."""

    label = "step halving"
    family = "step"
    changes = "steps halved"
    Settings = HalvingSettings

    def stages(self, budget):
        return [StageSpec("halve", Halving, self.settings, budget=budget)]

    def sampler(self):
        return SamplerSettings(num_inference_steps=self.settings.steps, shift=self.preset.shift)
'''


@pytest.fixture
def halving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The method's registered name; afterwards the registry is as it was."""
    (tmp_path / "outside_halving.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    registry.cache_clear()
    registry("methods").register("halving", "outside_halving:StepHalving", "a test")
    yield "halving"
    registry.cache_clear()
    sys.modules.pop("outside_halving", None)


def test_it_is_listed_and_built_like_a_built_in_one(halving: str) -> None:
    assert registry("methods").describe(halving) == "Half of the steps, learnt from the teacher's own."
    assert issubclass(registry("methods").get(halving), Method)
    with pytest.raises(UsageError, match="did you mean 'halving'"):
        registry("methods").check("halfing")


def test_it_is_planned(halving: str) -> None:
    settings = {halving: {"steps": 2}}
    made = plan(RunSettings(methods=(halving, "dmd2"), baselines=("euler",), method_settings=settings), {})
    cell = next(c for c in made.cells if c.name == halving)
    assert (cell.label, cell.family, cell.kind) == ("step halving", "step", "method")
    assert cell.sampler is not None and cell.sampler.nfe == 2
    assert cell.inferred[0]["setting"] == "halve.lr"
    (stage,) = cell.stages
    step = made.steps[stage[1]]
    assert step.settings["stage"] == "outside_halving:Halving" and step.settings["settings"]["steps"] == 2
    assert step.settings["loop"]["budget"] == RunSettings().budget  # the same as every other method's
    latency = next(s for s in made.steps.values() if s.kind == "latency")
    assert latency.inputs[f"student:{halving}"] == step.key == made.steps[cell.sample].inputs["student"]
    with pytest.raises(UsageError, match=r"halving has no setting 'step'.*did you mean 'steps'"):
        plan(RunSettings(methods=(halving,), method_settings={halving: {"step": 1}}), {})


def test_it_runs(halving: str, tiny_model: WanX, tiny_data: TrainingData, tmp_path: Path) -> None:
    """As the train step does it: the stage from its name in the plan, the one loop, save, load, sample."""
    cls = resolve("outside_halving:Halving")
    stage = cls(cls.Settings(steps=2), Roles(tiny_model, tiny_data, {}))
    losses: list[float] = []
    settings = LoopSettings(budget=200, batch=2)
    train(stage, tiny_data, settings, tiny_model.tally, tmp_path, lambda **line: losses.append(line["loss"]))
    assert losses[-1] < losses[0]
    stage.student().save(tmp_path / "transformer")
    student = tiny_model.with_transformer(tmp_path / "transformer")
    latents, nfe = generate(
        student, tiny_data.condition.select(slice(0, 1)), [(0, 0)], SamplerSettings(num_inference_steps=2)
    )
    assert nfe == 2 and latents.isfinite().all()
