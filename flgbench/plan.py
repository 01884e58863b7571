"""Settings to a graph of steps: a pure function, printable, with nothing of the disk or the machine in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from flgbench.contracts import Baseline, Family, FamilyPreset, Method, OpenModel, StageSpec
from flgbench.data.encoded import check_fits
from flgbench.data.suite import Prompt, read_suite
from flgbench.data.suite import digest as suite_digest
from flgbench.errors import NotDefined, UsageError
from flgbench.external import Found, described
from flgbench.metrics.judges import fingerprint
from flgbench.registry import registry, target_of
from flgbench.sampling import SamplerSettings
from flgbench.settings import Settings, build_settings, digest
from flgbench.sweeps import Variant, merged
from flgbench.training import LoopSettings

TINY = "tiny"  # the one scale whose networks are trained whole
ABSENT = "not on this machine"
NO_TRUTH = "the suite has no true videos"


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


@dataclass(frozen=True)
class Plan:
    steps: dict[str, Step]  # by key, parents before children
    cells: list[Cell]
    skipped: tuple[Skipped, ...] = ()

    def children(self, key: str) -> list[str]:
        return [k for k, s in self.steps.items() if key in s.inputs.values()]


class RunSettings(Settings):
    """Everything that decides the results of a run."""

    later: ClassVar[frozenset[str]] = frozenset({"training", "recipe"})

    model: str = "wanx"
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
    conditions: int = Field(64, ge=2)
    split: Literal["test", "validation"] = Field("test", description="conditions of the evaluation; a search has its own")
    repeated_conditions: int = Field(4, ge=0, description="conditions sampled with 8 seeds, for the hidden factors")
    pairs: int = Field(20, ge=3, description="timed conditions of the latency protocol")
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


def plan(run: RunSettings, hardware: Mapping[str, Any], weights_needed: bool = True) -> Plan:
    """The steps of `run`; `hardware` keys latency, which is not comparable between machines or library versions.

    Without `weights_needed` a published scale's may be elsewhere, for a plan that is only read: its keys are not a run's.
    Raises UsageError for unknown names and settings, before anything has started.
    """
    family: Family = registry("families").get(run.model)(run.checkpoint, run.revision)
    if run.scale not in family.scales:
        raise UsageError(f"--scale {run.scale}: family '{run.model}' has {', '.join(family.scales)}")
    preset = family.preset(run.scale)
    if run.teacher_guidance == "cfg":
        if not preset.guidance_is_embedded:
            raise UsageError(
                f"teacher guidance 'cfg': the teacher of family '{run.model}' is guided so anyway; leave it out"
            )
        preset = replace(preset, guidance_is_embedded=False)
    for owner in run.method_settings:
        if owner not in (*run.methods, *run.baselines, *(v.method for v in run.variants)):
            kind = "baselines" if owner in registry("baselines").names() else "methods"
            registry(kind).check(owner)
            raise UsageError(f"--set {owner}.…: '{owner}' is not among the {kind} of this run")

    steps: dict[str, Step] = {}

    def add(step: Step) -> str:
        steps[step.key] = step
        return step.key

    place = run.place()
    weights = _weights(family, run, weights_needed)
    teacher = add(Step("teacher", run.model, place | {"weights": weights}))
    training = add(_training_step(run, weights, preset, teacher))
    suite = read_suite(run.suite, preset.clip[1:]) if run.suite else None
    conditions = min(run.conditions, len(suite)) if suite else run.conditions
    test_step = _test_step(run, suite, teacher)
    test = add(test_step)
    evaluated = place if run.split == "test" else place | {"split": run.split}
    if suite:
        evaluated = place | {"suite": test_step.settings["suite"]}

    judges = fingerprint()

    def measure(name: str, producer: dict[str, Any], student: str | None) -> tuple[str, str]:
        # What several noises of one condition are for is told by the truth alone.
        counts = {"conditions": conditions, "repeated_conditions": 0 if suite else run.repeated_conditions}
        inputs = {"teacher": teacher, "data": test} | ({"student": student} if student else {})
        sample = add(Step("sample", name, evaluated | producer | counts, inputs, version=3))
        return sample, add(
            Step("quality", name, evaluated | {"judges": judges}, {"data": test, "sample": sample}, version=6)
        )

    cells: list[Cell] = []
    generators: dict[str, dict[str, Any]] = {}  # open models by name: timed with pipelines of their own
    for name in run.baselines:
        cls = registry("baselines").get(name)
        baseline: Baseline = cls(preset, build_settings(cls.Settings, run.method_settings.get(name, {}), name))
        sampler = baseline.sampler()
        producer = {"sampler": sampler.record()} if sampler else _generator(baseline)
        if baseline.kind == "open":
            generators[name] = producer
        skipped = NO_TRUTH if suite and cls.needs_truth else ""
        sample, quality = ("", "") if skipped else measure(name, producer, None)
        shown = sampler.record() if sampler else baseline.settings.model_dump(mode="json", exclude_none=True)
        notes = [{"setting": k, "value": shown[k], "note": note} for k, note in cls.inferred.items()]
        told = (name, baseline.row_label(), cls.kind, "none", cls.changes, sampler, shown, notes)
        cells.append(Cell(*told, stages=[], student=None, timed=None, sample=sample, quality=quality, skipped=skipped))
    undefined: list[Skipped] = []
    for name in run.methods:
        roles = {"teacher": teacher, "data": training}
        try:
            first = _method_cell(run, name, preset, place, roles, add, measure)
        except NotDefined as error:
            cls = registry("methods").get(name)
            undefined.append(Skipped(name, cls.label, cls.kind, cls.family, cls.changes, str(error)))
            continue
        trained = any(steps[key].settings.get("loop") for _, key in first.stages)  # nothing varies without training
        repeats = range(1, run.seeds if trained else 1)
        cells += [first, *(_method_cell(run, name, preset, place, roles, add, measure, repeat=r) for r in repeats)]
    roles = {"teacher": teacher, "data": training}
    cells += [_method_cell(run, v.method, preset, place, roles, add, measure, variant=v) for v in run.variants]
    cells += [_external_cell(found, place, teacher, add, measure) for found in run.external]

    if undefined and not cells:
        raise UsageError(undefined[0].reason)
    names = [c.name for c in cells]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise UsageError(f"the sweep has {', '.join(twice)} twice: give every value once")

    timed = {c.name: c for c in cells if c.measures_latency}
    students = {f"student:{c.name}": c.timed for c in timed.values() if c.timed}
    samplers = {c.name: c.sampler.record() for c in timed.values() if c.sampler}
    reference = next((c.name for c in cells if c.kind == "reference"), None)
    latency_settings = place | {
        "samplers": samplers,
        "reference": reference,
        "pairs": run.pairs,
        "threads": run.threads,
        "hardware": dict(hardware),
    }
    if generators:
        latency_settings["generators"] = generators
    if suite:
        latency_settings["suite"] = test_step.settings["suite"]
    if reference:
        inputs = {"teacher": teacher, "data": test} | students
        add(Step("latency", "interleaved", latency_settings, inputs, exclusive=True))
    return Plan(steps, cells, tuple(undefined))


def _weights(family: Family, run: RunSettings, needed: bool) -> str:
    try:
        return family.fingerprint(run.scale)
    except UsageError:
        if needed or run.checkpoint or run.scale == TINY:
            raise
        return ABSENT


def _generator(baseline: Baseline) -> dict[str, Any]:
    """What decides the clips of a baseline that generates them."""
    told: dict[str, Any] = {"baseline": target_of(type(baseline))}
    if isinstance(baseline, OpenModel):
        told |= {"settings": baseline.settings.model_dump(mode="json"), "weights": dict(baseline.fingerprint())}
    return told


def _training_step(run: RunSettings, weights: str, preset: FamilyPreset, teacher: str) -> Step:
    """Brings the clips that methods train on: procedural ones, or an encoded set by its manifest's hash."""
    if run.data is None:
        return Step("data", "train", run.place() | {"split": "train", "count": run.training_clips}, {"teacher": teacher})
    frames, height, width = preset.clip
    wanted: dict[str, Any] = {"model": run.model, "scale": run.scale, "fingerprint": weights}
    wanted |= {"frames": frames, "height": height, "width": width, "fps": preset.fps}
    content = run.place() | {"encoded": check_fits(run.data, wanted)}
    return Step("data", "encoded", content, {"teacher": teacher}, location=str(run.data))


def _test_step(run: RunSettings, suite: list[Prompt] | None, teacher: str) -> Step:
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


def _external_cell(found: Found, place: dict, teacher: str, add, measure) -> Cell:
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
