"""Verbs that run no benchmark: what this machine has, whether the measures work, and how the tiny teachers are made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from flgbench.compare_verb import compare
from flgbench.errors import UsageError
from flgbench.models import DEFAULT_FAMILY
from flgbench.options import AsJson, Model


def doctor(as_json: AsJson = False) -> None:
    """Versions, devices, weights and what is missing."""
    from flgbench import environment
    from flgbench.metrics import judges
    from flgbench.metrics.judges.lpips_first_frame import why_not
    from flgbench.registry import registry
    from flgbench.shipped import verify

    facts = environment.facts()
    for name in registry("families").names():
        family = registry("families").get(name)()
        for scale in family.scales:
            try:
                family.load(scale)
                facts[f"weights {name} {scale}"] = "ok"
            except (UsageError, OSError) as error:
                facts[f"weights {name} {scale}"] = str(error)
    for name in judges.SHIPPED:
        try:
            verify(judges.WEIGHTS / name)
            facts[f"judge {name}"] = "ok"
        except UsageError as error:
            facts[f"judge {name}"] = str(error)
    facts["judge lpips"] = why_not() or "ok"
    facts["slurm"] = shutil.which("sbatch") or "no sbatch on PATH"
    if as_json:
        print(json.dumps(facts))
        return
    for key, value in facts.items():
        print(f"{key:20} {value}")


def pretrain(
    model: Model = DEFAULT_FAMILY,
    work: Annotated[Path, typer.Option(help="Folder for checkpoints and logs; running again resumes.")] = Path(
        "flgbench-pretrain"
    ),
    target: Annotated[Path | None, typer.Option(help="Folder to write; default: the package's weights.")] = None,
    continue_from: Annotated[
        Path | None, typer.Option(help="A teacher's folder to go on from, each part that its recipe trains on.")
    ] = None,
    judge: Annotated[str | None, typer.Option(help="Train a judge of the evaluation instead: classifier or clip.")] = None,
    gates: Annotated[bool, typer.Option("--gates", help="Only measure the gates of the present weights.")] = False,
    conditions: Annotated[int, typer.Option(min=8, help="Held-out conditions of the gates.")] = 256,
    seeds: Annotated[int, typer.Option(min=1, help="Noises that the gates sample each condition with.")] = 3,
) -> None:
    """Train the tiny teacher (hours on two cores), a judge of the evaluation, or measure the teacher's gates.

    hunyuan's is distilled from wanx's, hunyuan-ati2v's is hunyuan's with adapters for sound.
    """
    if judge is not None:
        if gates or continue_from is not None:
            raise UsageError("--judge trains a judge: leave out --gates and --continue-from")
        print(json.dumps(_pretrain_judge(judge, work, target), indent=1))
        return
    if gates and continue_from is not None:
        raise UsageError("--gates trains nothing: leave out --continue-from")
    from flgbench.registry import registry

    family = registry("families").get(model)()
    from importlib import import_module

    from flgbench import environment
    from flgbench.models.tiny import gates as gate

    recipe = import_module(family.recipe)

    folder = target or family.folder("tiny")
    if gates and not (folder / "flgbench.json").exists():
        raise UsageError(f"--gates: no teacher in {folder}; make it with `flgbench pretrain --model {model}`")
    if not gates:
        from flgbench.runs import check_writable

        check_writable(work)
        if continue_from is not None:
            if not (continue_from / "recipe.json").exists():
                raise UsageError(f"--continue-from {continue_from}: no teacher's folder, it has no recipe.json")
            recipe.start_from(continue_from, work)
        recipe.export(recipe.pretrain(work, environment.cores()), work, folder)
        print(f"weights: {folder}")
    print(json.dumps(gate.measure_gates(family, conditions, seeds, folder), indent=1))


def _pretrain_judge(name: str, work: Path, target: Path | None) -> dict[str, float]:
    """The gate's shares of the judge that is now in `target`, by default the package."""
    from flgbench.metrics.judges import SHIPPED, WEIGHTS

    if name not in SHIPPED:
        raise UsageError(f"--judge {name}: no such judge. Known: {', '.join(SHIPPED)}")
    from flgbench.runs import check_writable

    check_writable(work)
    from importlib import import_module

    return import_module(f"flgbench.metrics.judges.train_{name}").make(work / name, target or WEIGHTS / name)


def check_metrics(
    conditions: Annotated[int, typer.Option(min=16, help="Real clips that are damaged in every way.")] = 64,
    out: Annotated[Path, typer.Option(help="Folder for the table and the heat map.")] = Path("flgbench-check-metrics"),
    as_json: AsJson = False,
) -> None:
    """Damage real clips in known ways and see which measure notices. Exit code 1 if a designated one does not."""
    from flgbench.runs import check_writable

    check_writable(out)
    from rich.progress import Progress

    from flgbench.metrics.selftest import check, check_sound, uncaught
    from reports.self_test import draw, lines, tabulate

    with Progress(disable=as_json, transient=True) as bar:
        task = bar.add_task("damaged clips", total=None)
        findings = check(conditions, lambda done, of: bar.update(task, completed=done, total=of))
    of_sound = check_sound(conditions)
    paths = [tabulate(findings, out), *draw(findings, out), tabulate(of_sound, out, "check-sound")]
    missed = uncaught([*findings, *of_sound])
    if as_json:
        print(json.dumps({"uncaught": [[f.corruption, f.measure] for f in missed], "files": [str(p) for p in paths]}))
    else:
        print("\n".join([*lines(findings), "of clips with a sound:", *lines(of_sound)]))
        print(f"table and heat map: {out}")
    if missed:
        raise typer.Exit(1)


EXAMPLES: dict[Callable[..., None], str] = {
    doctor: "Example:  flgbench doctor --json",
    check_metrics: "Example:  flgbench check-metrics --conditions 128 --out /tmp/check",
    compare: "Example:  flgbench compare wanx-tiny-1f2b73004839 /tmp/other/runs/wanx-tiny-1f2b73004839 --out compared",
    pretrain: "Examples:  flgbench pretrain --model wanx --work /scratch/wanx  |  flgbench pretrain --gates  |  "
    "flgbench pretrain --judge classifier",
}
