"""The options of the command line, and what they say together: settings of a run, a cluster's profile. Without torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from flgbench.errors import UsageError


class Kind(StrEnum):
    methods = "methods"
    baselines = "baselines"
    families = "families"
    metrics = "metrics"
    reports = "reports"
    ablations = "ablations"
    recipes = "recipes"


class Executor(StrEnum):
    local = "local"
    inline = "inline"
    slurm = "slurm"


Out = Annotated[Path, typer.Option("--out", help="Folder for artifacts and runs.")]
Methods = Annotated[str, typer.Option("--methods", help="Names, 'all', 'controls' or 'none', separated by commas.")]
Baselines = Annotated[str, typer.Option("--baselines", help="Names, 'all' or 'none', separated by commas.")]
Model = Annotated[str, typer.Option("--model", help="Model family; runs take several, separated by commas.")]
Scale = Annotated[str, typer.Option("--scale", help="Size of the family: 'tiny' runs on a laptop; 5b, 14b, 14b-720p.")]
Checkpoint = Annotated[
    str | None, typer.Option("--checkpoint", help="Folder in diffusers layout, or a hub id in the local cache.")
]
Revision = Annotated[str | None, typer.Option("--revision", help="Commit, branch or tag of a hub id.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="NAME.SETTING=VALUE of a method, a baseline or training; FAMILY:NAME.… of one family."),
]
RecipeName = Annotated[
    str | None, typer.Option("--recipe", help="Published settings, see `flgbench list recipes`; --set goes over them.")
]
External = Annotated[
    list[Path] | None, typer.Option("--external", help="TOML file of students from elsewhere; may be repeated.")
]
Budget = Annotated[float | None, typer.Option("--budget", help="Training budget of each method in network passes.")]
Conditions = Annotated[int | None, typer.Option("--conditions", help="Test conditions (first frame + caption).")]
Pairs = Annotated[int | None, typer.Option("--pairs", help="Timed conditions of the latency protocol.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Training seed.")]
Seeds = Annotated[int | None, typer.Option("--seeds", help="Trainings of each method, with seeds from --seed on.")]
Data = Annotated[Path | None, typer.Option("--data", help="Train on these clips, which `flgbench encode` wrote.")]
Suite = Annotated[Path | None, typer.Option("--suite", help="Evaluate on images and prompts in VBench-I2V's layout.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Where = Annotated[Executor, typer.Option("--executor", help="Where steps run.")]
ProfileName = Annotated[str | None, typer.Option("--profile", help="slurm: resource profile, a name or a .toml file.")]
MaxJobs = Annotated[int | None, typer.Option("--max-jobs", min=1, help="slurm: most jobs of one array at a time.")]
RunArgument = Annotated[str | None, typer.Argument(help="Run name or folder; default: the latest.")]


def _names(text: str, kind: str) -> tuple[str, ...]:
    from flgbench.registry import registry

    groups = registry(kind).groups()
    names = tuple(chain.from_iterable(groups.get(t, (t,)) for t in (part.strip() for part in text.split(",")) if t))
    for name in names:
        registry(kind).check(name)
    if len(set(names)) != len(names):
        raise UsageError(f"--{kind} {text}: a name is given twice")
    return names


def _with_recipe(name: str, scale: str, methods: tuple[str, ...], given: dict[str, Any], options: dict[str, Any]) -> Any:
    """The settings with the recipe's below them; its budget goes into `options` unless one is there."""
    from flgbench.recipes import with_recipe
    from flgbench.registry import registry

    recipe = registry("recipes").get(name)()
    settings = with_recipe(name, recipe, methods, given, options.get("budget"))
    if options.get("budget") is None:
        options["budget"] = recipe.budget
    if scale != recipe.scale:
        print(f"recipe {name} is of scale {recipe.scale}: at {scale} its values are a start, not a result", file=sys.stderr)
    return settings


def run_settings(
    methods: str, baselines: str, model: str, scale: str, assignments: Sequence[str] | None, **options: Any
) -> Any:
    """The checked `RunSettings`; an option that is None keeps its default. Raises UsageError."""
    from flgbench.settings import build_settings, parse_assignments

    # Names are checked before torch is imported: a typo answers at once.
    values: dict[str, Any] = {
        "methods": _names(methods, "methods"),
        "baselines": _names(baselines, "baselines"),
        "model": model,
        "scale": scale,
    }
    from flgbench.registry import registry

    registry("families").check(model)
    settings = options.pop("method_settings", None) or parse_assignments(assignments or [])
    recipe = options.pop("recipe", None)
    if recipe is not None:
        settings = _with_recipe(recipe, scale, values["methods"], settings, options)
    values |= {"recipe": recipe, "training": settings.pop("training", {}), "method_settings": settings}
    from flgbench import environment
    from flgbench.run_settings import RunSettings

    given = {k: v for k, v in options.items() if v is not None}
    if "checkpoint" in given and Path(given["checkpoint"]).is_dir():  # steps run in other folders
        given["checkpoint"] = str(Path(given["checkpoint"]).resolve())
    if files := given.pop("external", None):
        from flgbench.external import read

        of_teacher = {key: given[key] for key in ("checkpoint", "revision") if key in given}
        teacher = registry("families").get(model)(**of_teacher).folder(scale)
        given["external"] = read([Path(file) for file in files], teacher)
    return build_settings(RunSettings, values | given | {"threads": environment.cores()}, "run")


def resource_profile(executor: Executor, name: str | None, max_jobs: int | None) -> Any:
    """The profile of a cluster run, None for other executors. Raises UsageError where the options do not fit."""
    if executor != Executor.slurm:
        if name is not None or max_jobs is not None:
            raise UsageError(f"--{'profile' if name is not None else 'max-jobs'} needs --executor slurm")
        return None
    from slurm.profiles import load_profile, names

    if name is None:
        raise UsageError(f"--executor slurm needs --profile. Known: {', '.join(names())}, or a path ending in .toml")
    return load_profile(name)
