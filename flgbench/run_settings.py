"""Everything that decides the results of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from flgbench.external import Found
from flgbench.models import DEFAULT_FAMILY
from flgbench.settings import Settings
from flgbench.sweeps import Variant

TINY = "tiny"  # the one scale whose networks are trained whole


class RunSettings(Settings):
    """Everything that decides the results of a run."""

    later: ClassVar[frozenset[str]] = frozenset({"training", "recipe"})

    model: str = DEFAULT_FAMILY
    scale: str = "tiny"
    checkpoint: str | None = Field(None, description="folder in diffusers layout or hub id; none: the scale's own")
    revision: str | None = Field(None, description="of a hub id: a commit, branch or tag")
    methods: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ()
    method_settings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    training: dict[str, Any] = Field(
        default_factory=dict, description="settings of the loop, of all stages alike; `iterations` also by name of the stage"
    )
    recipe: str | None = Field(None, description="where the settings are from; they are in the others already")
    budget: float = Field(8_000, gt=0, description="network passes of training a method, see flgbench.training")
    training_clips: int = Field(
        1024, ge=16, description="with 256, students of distribution matching favour some of the hidden turns"
    )
    conditions: int = Field(48, ge=2)
    split: Literal["test", "validation"] = Field("test", description="conditions of the evaluation; a search has its own")
    repeated_conditions: int = Field(4, ge=0, description="conditions sampled with 8 seeds, for the hidden factors")
    pairs: int = Field(12, ge=3, description="timed conditions of the latency protocol; for percentiles 36 and more")
    seed: int = Field(0, ge=0)
    seeds: int = Field(1, ge=1, le=100, description="trainings of each method, with seeds from `seed` on")
    teacher_guidance: Literal["own", "cfg"] = Field(
        "own", description="cfg: a guidance-distilled teacher is sampled by two passes a step instead of an embedded scale"
    )
    variants: tuple[Variant, ...] = Field((), description="points of sweeps, further cells of the same plan")
    threads: int = Field(1, ge=1, description="threads of a latency measurement")
    external: tuple[Found, ...] = Field((), description="students from elsewhere, evaluated and timed without training")
    data: Path | None = Field(None, description="clips that `flgbench encode` wrote, all of them; none: procedural clips")
    suite: Path | None = Field(None, description="images and prompts in VBench-I2V's layout; none: procedural conditions")

    @field_validator("data", "suite")
    @classmethod
    def _from_anywhere(cls, folder: Path | None) -> Path | None:
        """A job may run in another folder than the command."""
        return folder and folder.absolute()

    def place(self) -> dict[str, str]:
        """The teacher that every step of the run starts from, as steps name it: a scale's own has no checkpoint."""
        names = ("model", "scale", "checkpoint", "revision")
        return {name: value for name in names if (value := getattr(self, name)) is not None}
