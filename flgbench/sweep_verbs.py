"""The verbs `ablate`, one sweep, and `paper`, the main comparison with every ablation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from flgbench import sweeps
from flgbench.errors import UsageError
from flgbench.launch import launch
from flgbench.models import DEFAULT_FAMILY
from flgbench.options import (
    AsJson,
    Baselines,
    Budget,
    Checkpoint,
    Conditions,
    Data,
    Executor,
    MaxJobs,
    Methods,
    Model,
    Out,
    Pairs,
    ProfileName,
    RecipeName,
    Revision,
    Scale,
    Seed,
    Seeds,
    Set,
    Suite,
    Where,
    run_settings,
)
from flgbench.several import Chosen, each_family

BESIDE = "euler,euler-4,euler-4-no-cfg,real,frozen_image"  # what a sweep is read against


def ablate(
    name: Annotated[str | None, typer.Argument(help="An ablation, see `flgbench list ablations`; or --set.")] = None,
    values: Annotated[str | None, typer.Option(help="Other values of the ablation's axis, separated by commas.")] = None,
    model: Model = DEFAULT_FAMILY,
    scale: Scale = "tiny",
    checkpoint: Checkpoint = None,
    revision: Revision = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="METHOD.SETTING=VALUE, or =A,B,C to sweep it; may be repeated.")
    ] = None,
    recipe: RecipeName = None,
    budget: Budget = None,
    conditions: Conditions = None,
    pairs: Pairs = None,
    seed: Seed = None,
    out: Out = Path("flgbench-out"),
    executor: Where = Executor.local,
    profile: ProfileName = None,
    max_jobs: MaxJobs = None,
    slots: Annotated[int | None, typer.Option(min=1, help="local: steps at a time; default: one a GPU or core.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and its cost, and stop.")] = False,
    data: Data = None,
    suite: Suite = None,
    as_json: AsJson = False,
) -> None:
    """One setting at several values: trained, measured and drawn beside the method's default and the teacher."""
    teacher = {"checkpoint": checkpoint, "revision": revision}
    options: dict[str, Any] = {"recipe": recipe, "budget": budget, "conditions": conditions, "pairs": pairs, "seed": seed}
    options |= teacher | {"data": data, "suite": suite}
    settings = []
    for one in each_family(model, scale, assignments or [], teacher | {"data": data}):
        listed, plain = sweeps.of_assignments(one.assignments)
        if (name is None) == (not listed):
            known = "an ablation (see `flgbench list ablations`) or one --set METHOD.SETTING=A,B,C"
            raise UsageError(f"ablate takes {known}{', not both' if name else ''}")
        chosen = _named([name], one, teacher) if name else listed
        if values is not None:
            if not name:
                raise UsageError("--values goes with a named ablation: give the values in --set")
            chosen = [chosen[0].with_values(sweeps.values_of(values))]
        variants = tuple(variant for ablation in chosen for variant in ablation.variants())
        settings.append(run_settings(chosen[0].method, BESIDE, one.model, one.scale, plain, variants=variants, **options))
    launch(settings, out, executor, profile, max_jobs, slots=slots, dry_run=dry_run, as_json=as_json)


def paper(
    methods: Methods = "all",
    baselines: Baselines = "all",
    model: Model = DEFAULT_FAMILY,
    scale: Scale = "tiny",
    checkpoint: Checkpoint = None,
    revision: Revision = None,
    assignments: Set = None,
    recipe: RecipeName = None,
    budget: Budget = None,
    conditions: Conditions = None,
    pairs: Pairs = None,
    seed: Seed = None,
    seeds: Seeds = None,
    out: Out = Path("flgbench-out"),
    executor: Where = Executor.local,
    profile: ProfileName = None,
    max_jobs: MaxJobs = None,
    slots: Annotated[int | None, typer.Option(min=1, help="local: steps at a time; default: one a GPU or core.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and its cost, and stop.")] = False,
    data: Data = None,
    suite: Suite = None,
    as_json: AsJson = False,
) -> None:
    """The main comparison and every ablation as one run: each table and figure of the paper that is known, beside ours."""
    from flgbench.registry import registry

    teacher = {"checkpoint": checkpoint, "revision": revision}
    options: dict[str, Any] = {"recipe": recipe, "budget": budget, "conditions": conditions, "pairs": pairs, "seed": seed}
    options |= teacher | {"seeds": seeds, "data": data, "suite": suite}
    settings = []
    for one in each_family(model, scale, assignments or [], teacher | {"data": data}):
        chosen = _named(registry("ablations").names(), one, teacher)
        variants = tuple(variant for ablation in chosen for variant in ablation.variants())
        settings.append(
            run_settings(methods, baselines, one.model, one.scale, one.assignments, variants=variants, **options)
        )
    launch(settings, out, executor, profile, max_jobs, slots=slots, dry_run=dry_run, as_json=as_json)


def _named(names: Sequence[str], one: Chosen, teacher: dict[str, str | None]) -> list[sweeps.Ablation]:
    """Registered ablations, for the family's preset at a scale. Raises UsageError with suggestions for an unknown one."""
    from flgbench.registry import family_of, registry

    for name in names:
        registry("ablations").check(name)
    preset = family_of({"model": one.model, **teacher}).preset(one.scale)
    return [registry("ablations").get(name)(preset) for name in names]


EXAMPLES: dict[Callable[..., None], str] = {
    ablate: "Examples:  flgbench ablate beta2  |  flgbench ablate alpha --values 0,0.5,1  |  "
    "flgbench ablate --set dmd2.lr=5e-5,1e-4,2e-4 --dry-run  |  "
    "flgbench ablate keep --scale 14b --recipe fastlightgen-paper --data encoded --suite vbench-i2v --dry-run",
    paper: "Examples:  flgbench paper --model wanx  |  flgbench paper --model wanx,hunyuan --dry-run",
}
