"""The parts of a plan: its steps, its cells, and how a method's, an external student's and the data's are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from flgbench.contracts import Baseline, Family, FamilyPreset, Method, OpenModel, StageSpec
from flgbench.data.encoded import check_fits
from flgbench.data.suite import Prompt
from flgbench.data.suite import digest as suite_digest
from flgbench.errors import UsageError
from flgbench.external import Found, described
from flgbench.loop_settings import LoopSettings
from flgbench.registry import registry, target_of
from flgbench.run_settings import TINY, RunSettings
from flgbench.sampling import SamplerSettings
from flgbench.settings import Settings, build_settings, digest
from flgbench.sweeps import Variant, merged

ABSENT = "not on this machine"


@dataclass(frozen=True)
class Step:
    """One job. The key hashes kind, name, version, settings and the parents' keys; nothing else."""

    kind: str
    name: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)  # role -> key of another step
    version: int = 1
    exclusive: bool = False  # wants the machine for itself (timing)
    location: str = ""  # where what it brings in lies on this machine: its content is in the settings, so this is not hashed

    @cached_property
    def key(self) -> str:
        content = [self.kind, self.name, self.version, dict(self.settings), dict(self.inputs)]
        return f"{self.kind}-{self.name}-v{self.version}-{digest(content)}"


@dataclass(frozen=True)
class Cell:
    """One row of the main table: a method or baseline with its settings, and the steps that measure it."""

    name: str
    label: str
    kind: str  # reference, method, external, baseline, open, control, variant
    family: str
    changes: str
    sampler: SamplerSettings | None
    settings: Mapping[str, Any]
    inferred: list[dict[str, Any]]
    stages: list[tuple[str, str]]  # (stage name, step key)
    student: str | None  # key of the step that holds the student
    timed: str | None  # the same where the student's network is not the teacher's: only then its latency needs it
    sample: str
    quality: str
    repeat: int = 0  # of several trainings of one method: 0 is the first, which is timed
    method: str = ""  # of a method's cell its name, which all repeats and variants share
    sweep: str = ""  # of a variant: the sweep it is a point of
    point: Mapping[str, Any] = field(default_factory=dict)  # and where: axis -> value
    skipped: str = ""  # why it is not run at all: then it has no steps

    @property
    def measures_latency(self) -> bool:
        """Variants are compared by their nominal speed-up, as in the paper's Figure 1."""
        return (self.sampler is not None or self.kind == "open") and self.repeat == 0 and self.kind != "variant"


@dataclass(frozen=True)
class Skipped:
    """A method that is not defined for the family: a row without steps, and the reason."""

    name: str
    label: str
    kind: str
    family: str
    changes: str
    reason: str


def teacher_weights(family: Family, run: RunSettings, needed: bool) -> str:
    try:
        return family.fingerprint(run.scale)
    except UsageError:
        if needed or run.checkpoint or run.scale == TINY:
            raise
        return ABSENT


def generator_content(baseline: Baseline) -> dict[str, Any]:
    """What decides the clips of a baseline that generates them."""
    told: dict[str, Any] = {"baseline": target_of(type(baseline))}
    if isinstance(baseline, OpenModel):
        told |= {"settings": baseline.settings.model_dump(mode="json"), "weights": dict(baseline.fingerprint())}
    return told


def training_step(run: RunSettings, weights: str, preset: FamilyPreset, teacher: str) -> Step:
    """Brings the clips that methods train on: procedural ones, or an encoded set by its manifest's hash."""
    if run.data is None:
        return Step("data", "train", run.place() | {"split": "train", "count": run.training_clips}, {"teacher": teacher})
    frames, height, width = preset.clip
    wanted: dict[str, Any] = {"model": run.model, "scale": run.scale, "fingerprint": weights}
    wanted |= {"frames": frames, "height": height, "width": width, "fps": preset.fps}
    content = run.place() | {"encoded": check_fits(run.data, wanted)}
    return Step("data", "encoded", content, {"teacher": teacher}, location=str(run.data))


def test_step(run: RunSettings, suite: list[Prompt] | None, teacher: str) -> Step:
    """Brings the conditions that clips are made from, and timed on: of a split, or of a suite by its content's hash."""
    count = max(run.conditions, run.pairs)
    if suite is None:
        return Step("data", run.split, run.place() | {"split": run.split, "count": count}, {"teacher": teacher})
    told = {"suite": suite_digest(suite[:count]), "count": min(count, len(suite))}
    return Step("data", "suite", run.place() | told, {"teacher": teacher}, location=str(run.suite))


def _inferred(prefix: str, settings: Settings) -> list[dict[str, Any]]:
    """What reports list of the defaults that no source states."""
    return [{"setting": prefix + k, "value": getattr(settings, k), "note": why} for k, why in settings.inferred().items()]


def _loop(run: RunSettings, spec: StageSpec, seed: int) -> LoopSettings:
    """How a stage is trained: what the run says, and at size sharded. Raises UsageError for settings that are none."""
    values = dict(run.training)
    for name in ("budget", "seed"):
        if name in values:
            raise UsageError(f"training.{name}: use --{name}")
    iterations = values.pop("iterations", None)
    if isinstance(iterations, Mapping):
        iterations = iterations.get(spec.name)
    if run.scale != TINY:
        values.setdefault("sized", {})
    own = {"budget": spec.budget, "seed": seed, "iterations": iterations}
    return build_settings(LoopSettings, values | own, "training")


def external_cell(found: Found, place: dict, teacher: str, add, measure) -> Cell:
    told, sampler = found.student, found.student.sampler_settings()
    brought = add(Step("external", told.name, place | found.content(), {"teacher": teacher}, location=found.place))
    sample, quality = measure(told.name, {"sampler": sampler.record()}, brought)
    return Cell(
        told.name,
        f"{told.label or told.name} (external)",
        "external",
        "external",
        f"weights from {told.source}",
        sampler,
        described(found),
        inferred=[],
        stages=[("bring in", brought)],
        student=brought,
        timed=None if found.keeps_network else brought,
        sample=sample,
        quality=quality,
    )


def method_cell(
    run: RunSettings,
    name: str,
    preset: FamilyPreset,
    place: dict,
    inputs: dict,
    add,
    measure,
    repeat: int = 0,
    variant: Variant | None = None,
) -> Cell:
    cls = registry("methods").get(name)
    values = merged(run.method_settings.get(name, {}), variant.settings if variant else {})
    method: Method = cls(build_settings(cls.Settings, values, name), preset)
    budget = variant.budget if variant and variant.budget else run.budget
    keys: dict[str, str] = {}
    inferred: list[dict[str, Any]] = []
    loops: list[LoopSettings] = []
    for spec in method.stages(budget):
        parents = {role: keys[earlier] for role, earlier in spec.inputs.items()}
        content = place | {"stage": target_of(spec.stage), "settings": spec.settings.model_dump(mode="json")}
        if spec.budget > 0:
            loops.append(_loop(run, spec, run.seed + repeat))
            content["loop"] = loops[-1].model_dump(mode="json", exclude={"checkpoint_seconds"})
        step = Step("train", spec.name, content, inputs | parents, version=spec.stage.version, location=str(run.data or ""))
        keys[spec.name] = add(step)
        inferred += _inferred(f"{spec.name}.", spec.settings)
    for loop in loops[:1]:  # all stages are trained alike, but for their budgets
        inferred += _inferred("training.", loop)
    handed_on = {entry["setting"].rpartition(".")[2] for entry in inferred}
    inferred += [entry for entry in _inferred("", method.settings) if entry["setting"] not in handed_on]
    student = list(keys.values())[-1]
    sampler = method.sampler()
    seed = run.seed + repeat
    own = f"{name}-seed{seed}" if repeat else name
    # Steps of a variant bear the method's name: where its settings are the defaults, they are the same steps.
    sample, quality = measure(own, {"sampler": sampler.record()}, student)
    return Cell(
        variant.name if variant else own,
        f"{cls.label}, seed {seed}" if repeat else cls.label,
        "variant" if variant else cls.kind,
        cls.family,
        cls.changes,
        sampler,
        method.settings.model_dump(mode="json"),
        inferred,
        list(keys.items()),
        student,
        None if method.keeps_network() else student,
        sample,
        quality,
        repeat,
        name,
        variant.sweep if variant else "",
        variant.point if variant else {},
    )
