"""Settings to a graph of steps: a pure function, printable, with nothing of the disk or the machine in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flgbench.cells import (
    Cell,
    Skipped,
    Step,
    external_cell,
    generator_content,
    method_cell,
    teacher_weights,
    test_step,
    training_step,
)
from flgbench.contracts import Baseline, Family
from flgbench.data.suite import read_suite
from flgbench.errors import NotDefined, UsageError
from flgbench.metrics.judges import fingerprint
from flgbench.registry import registry
from flgbench.run_settings import RunSettings
from flgbench.settings import build_settings

NO_TRUTH = "the suite has no true videos"


@dataclass(frozen=True)
class Plan:
    steps: dict[str, Step]  # by key, parents before children
    cells: list[Cell]
    skipped: tuple[Skipped, ...] = ()

    def children(self, key: str) -> list[str]:
        return [k for k, s in self.steps.items() if key in s.inputs.values()]

    def titles(self) -> dict[str, str]:
        """Step -> kind and name, and its family where there are several."""
        several = len({s.settings.get("model") for s in self.steps.values()}) > 1
        told = {k: (s.kind, str(s.settings.get("model", "")) if several else "", s.name) for k, s in self.steps.items()}
        return {key: " ".join(filter(None, parts)) for key, parts in told.items()}


def joined(plans: Sequence[Plan]) -> Plan:
    """The plans of several runs as one: a step that several have is there once, and all are in one queue."""
    steps = {key: step for each in plans for key, step in each.steps.items()}
    skipped = tuple(s for each in plans for s in each.skipped)
    return Plan(steps, [c for each in plans for c in each.cells], skipped)


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
    weights = teacher_weights(family, run, weights_needed)
    teacher = add(Step("teacher", run.model, place | {"weights": weights}))
    training = add(training_step(run, weights, preset, teacher))
    suite = read_suite(run.suite, preset.clip[1:]) if run.suite else None
    conditions = min(run.conditions, len(suite)) if suite else run.conditions
    conditions_step = test_step(run, suite, teacher)
    test = add(conditions_step)
    evaluated = place if run.split == "test" else place | {"split": run.split}
    if suite:
        evaluated = place | {"suite": conditions_step.settings["suite"]}

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
        producer = {"sampler": sampler.record()} if sampler else generator_content(baseline)
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
            first = method_cell(run, name, preset, place, roles, add, measure)
        except NotDefined as error:
            cls = registry("methods").get(name)
            undefined.append(Skipped(name, cls.label, cls.kind, cls.family, cls.changes, str(error)))
            continue
        trained = any(steps[key].settings.get("loop") for _, key in first.stages)  # nothing varies without training
        repeats = range(1, run.seeds if trained else 1)
        cells += [first, *(method_cell(run, name, preset, place, roles, add, measure, repeat=r) for r in repeats)]
    roles = {"teacher": teacher, "data": training}
    cells += [method_cell(run, v.method, preset, place, roles, add, measure, variant=v) for v in run.variants]
    cells += [external_cell(found, place, teacher, add, measure) for found in run.external]

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
        latency_settings["suite"] = conditions_step.settings["suite"]
    if reference:
        inputs = {"teacher": teacher, "data": test} | students
        add(Step("latency", "interleaved", latency_settings, inputs, version=2, exclusive=True))
    if not any(training in step.inputs.values() for step in steps.values()):
        del steps[training]  # nothing is trained
    return Plan(steps, cells, tuple(undefined))
