"""Settings to a graph of steps: a pure function, printable, with nothing of the disk or the machine in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from pydantic import Field

from flgbench.contracts import Baseline, Family, FamilyPreset, Method
from flgbench.errors import UsageError
from flgbench.metrics.judges import fingerprint
from flgbench.registry import registry, target_of
from flgbench.sampling import SamplerSettings
from flgbench.settings import Settings, build_settings, digest
from flgbench.sweeps import Variant, merged
from flgbench.training import LoopSettings


@dataclass(frozen=True)
class Step:
    """One job. The key hashes kind, name, version, settings and the parents' keys; nothing else."""

    kind: str
    name: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)  # role -> key of another step
    version: int = 1
    exclusive: bool = False  # wants the machine for itself (timing)

    @cached_property
    def key(self) -> str:
        content = [self.kind, self.name, self.version, dict(self.settings), dict(self.inputs)]
        return f"{self.kind}-{self.name}-v{self.version}-{digest(content)}"


@dataclass(frozen=True)
class Cell:
    """One row of the main table: a method or baseline with its settings, and the steps that measure it."""

    name: str
    label: str
    kind: str  # reference, method, baseline, control, variant
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

    @property
    def measures_latency(self) -> bool:
        """Variants are compared by their nominal speed-up, as in the paper's Figure 1."""
        return self.sampler is not None and self.repeat == 0 and self.kind != "variant"


@dataclass(frozen=True)
class Plan:
    steps: dict[str, Step]  # by key, parents before children
    cells: list[Cell]

    def children(self, key: str) -> list[str]:
        return [k for k, s in self.steps.items() if key in s.inputs.values()]


class RunSettings(Settings):
    """Everything that decides the results of a run."""

    model: str = "wanx"
    scale: str = "tiny"
    checkpoint: str | None = Field(None, description="folder in diffusers layout or hub id; none: the scale's own")
    revision: str | None = Field(None, description="of a hub id: a commit, branch or tag")
    methods: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ()
    method_settings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    budget: float = Field(8_000, gt=0, description="network passes of training a method, see flgbench.training")
    training_clips: int = Field(
        1024, ge=16, description="with 256, students of distribution matching favour some of the hidden turns"
    )
    conditions: int = Field(64, ge=2)
    split: Literal["test", "validation"] = Field("test", description="conditions of the evaluation; a search has its own")
    repeated_conditions: int = Field(4, ge=0, description="conditions sampled with 8 seeds, for the hidden factors")
    pairs: int = Field(20, ge=3, description="timed conditions of the latency protocol")
    seed: int = Field(0, ge=0)
    seeds: int = Field(1, ge=1, le=100, description="trainings of each method, with seeds from `seed` on")
    variants: tuple[Variant, ...] = Field((), description="points of sweeps, further cells of the same plan")
    threads: int = Field(1, ge=1, description="threads of a latency measurement")

    def place(self) -> dict[str, str]:
        """The teacher that every step of the run starts from, as steps name it: a scale's own has no checkpoint."""
        names = ("model", "scale", "checkpoint", "revision")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def plan(run: RunSettings, hardware: Mapping[str, Any]) -> Plan:
    """The steps of `run`; `hardware` keys latency, which is not comparable between machines or library versions.

    Raises UsageError for unknown names and settings, before anything has started.
    """
    family: Family = registry("families").get(run.model)(run.checkpoint, run.revision)
    if run.scale not in family.scales:
        raise UsageError(f"--scale {run.scale}: family '{run.model}' has {', '.join(family.scales)}")
    preset = family.preset(run.scale)
    for owner in run.method_settings:
        if owner not in (*run.methods, *(v.method for v in run.variants)):
            registry("methods").check(owner)
            raise UsageError(f"--set {owner}.…: '{owner}' is not among the methods of this run")

    steps: dict[str, Step] = {}

    def add(step: Step) -> str:
        steps[step.key] = step
        return step.key

    place = run.place()
    teacher = add(Step("teacher", run.model, place | {"weights": family.fingerprint(run.scale)}))
    clips = {"split": "train", "count": run.training_clips}
    training = add(Step("data", "train", place | clips, {"teacher": teacher}))
    test_clips = {"split": run.split, "count": max(run.conditions, run.pairs)}
    test = add(Step("data", run.split, place | test_clips, {"teacher": teacher}))
    evaluated = place if run.split == "test" else place | {"split": run.split}

    judges = fingerprint()

    def measure(name: str, producer: dict[str, Any], student: str | None) -> tuple[str, str]:
        counts = {"conditions": run.conditions, "repeated_conditions": run.repeated_conditions}
        inputs = {"teacher": teacher, "data": test} | ({"student": student} if student else {})
        sample = add(Step("sample", name, evaluated | producer | counts, inputs, version=3))
        return sample, add(
            Step("quality", name, evaluated | {"judges": judges}, {"data": test, "sample": sample}, version=6)
        )

    cells: list[Cell] = []
    for name in run.baselines:
        cls = registry("baselines").get(name)
        baseline: Baseline = cls(preset)
        sampler = baseline.sampler()
        producer = {"sampler": _record(sampler)} if sampler else {"baseline": target_of(cls)}
        sample, quality = measure(name, producer, None)
        shown = _record(sampler) if sampler else {}
        notes = [{"setting": k, "value": shown[k], "note": note} for k, note in cls.inferred.items()]
        told = (name, cls.label, cls.kind, "none", cls.changes, sampler, shown, notes)
        cells.append(Cell(*told, stages=[], student=None, timed=None, sample=sample, quality=quality))
    for name in run.methods:
        roles = {"teacher": teacher, "data": training}
        first = _method_cell(run, name, preset, place, roles, add, measure)
        trained = any(steps[key].settings.get("loop") for _, key in first.stages)  # nothing varies without training
        repeats = range(1, run.seeds if trained else 1)
        cells += [first, *(_method_cell(run, name, preset, place, roles, add, measure, repeat=r) for r in repeats)]
    roles = {"teacher": teacher, "data": training}
    cells += [_method_cell(run, v.method, preset, place, roles, add, measure, variant=v) for v in run.variants]

    names = [c.name for c in cells]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise UsageError(f"the sweep has {', '.join(twice)} twice: give every value once")

    timed = {c.name: c for c in cells if c.measures_latency}
    students = {f"student:{c.name}": c.timed for c in timed.values() if c.timed}
    samplers = {c.name: _record(c.sampler) for c in timed.values() if c.sampler}
    reference = next((c.name for c in cells if c.kind == "reference"), None)
    latency_settings = place | {
        "samplers": samplers,
        "reference": reference,
        "pairs": run.pairs,
        "threads": run.threads,
        "hardware": dict(hardware),
    }
    if reference:
        inputs = {"teacher": teacher, "data": test} | students
        add(Step("latency", "interleaved", latency_settings, inputs, exclusive=True))
    return Plan(steps, cells)


def _record(sampler: SamplerSettings) -> dict[str, Any]:
    """A sampler as keys and reports have it. What is not used is left out, so that a new option changes no old key."""
    return sampler.model_dump(mode="json", exclude_none=True)


def _inferred(prefix: str, settings: Settings) -> list[dict[str, Any]]:
    """What reports list of the defaults that no source states."""
    return [{"setting": prefix + k, "value": getattr(settings, k), "note": why} for k, why in settings.inferred().items()]


def _method_cell(
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
            loops.append(LoopSettings(budget=spec.budget, seed=run.seed + repeat))
            content["loop"] = loops[-1].model_dump(mode="json", exclude={"checkpoint_seconds"})
        keys[spec.name] = add(Step("train", spec.name, content, inputs | parents, version=spec.stage.version))
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
    sample, quality = measure(own, {"sampler": _record(sampler)}, student)
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
