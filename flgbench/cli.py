"""The command line: parse, call, print. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from flgbench import encode_verb, latency_verb, report_verb, student_verbs, sweep_verbs, tune_verb, upkeep
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
    External,
    Kind,
    MaxJobs,
    Methods,
    Model,
    Out,
    Pairs,
    ProfileName,
    RecipeName,
    Revision,
    RunArgument,
    Scale,
    Seed,
    Seeds,
    Set,
    Suite,
    Where,
    run_settings,
)
from flgbench.several import each_family
from flgbench.status import as_text, find_run, step_lines, watched
from flgbench.vbench.verbs import app as vbench_app

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Benchmark and ablations for faster image+text-to-video diffusion transformers.",
    epilog="Start with: flgbench run --methods all --model wanx",
)


@app.command(
    epilog="Examples:  flgbench run --methods all --model wanx  |  flgbench run --methods dmd2 --set dmd2.lr=1e-5  |  "
    "flgbench run --methods fastlightgen --set fastlightgen.match.beta2=0 --out /tmp/beta  |  "
    "flgbench run --methods fastlightgen --scale 14b --checkpoint /data/Wan2.1-I2V-14B-480P-Diffusers  |  "
    "flgbench run --methods dmd2 --scale 14b --recipe dmd2-self-forcing-plus --set training.batch=32  |  "
    "flgbench run --methods dmd2 --external students.toml  |  flgbench run --data encoded --suite vbench-i2v  |  "
    "flgbench run --model wanx,hunyuan --set hunyuan:dmd2.lr=5e-5"
)
def run(
    methods: Methods = "all",
    baselines: Baselines = "all",
    model: Model = DEFAULT_FAMILY,
    scale: Scale = "tiny",
    checkpoint: Checkpoint = None,
    revision: Revision = None,
    assignments: Set = None,
    recipe: RecipeName = None,
    external: External = None,
    budget: Budget = None,
    conditions: Conditions = None,
    pairs: Pairs = None,
    seed: Seed = None,
    seeds: Seeds = None,
    out: Out = Path("flgbench-out"),
    executor: Where = Executor.local,
    profile: ProfileName = None,
    max_jobs: MaxJobs = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="slurm: follow the jobs, or return once submitted.")] = True,
    slots: Annotated[int | None, typer.Option(min=1, help="local: steps at a time; default: one a GPU or core.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    data: Data = None,
    suite: Suite = None,
    as_json: AsJson = False,
    teacher_guidance: Annotated[
        str, typer.Option(help="own, or cfg: sample a guidance-distilled teacher by two passes a step.")
    ] = "own",
) -> None:
    """Train every method from one teacher, measure quality and latency, write the report. Continues what was stopped."""
    of_one = {"checkpoint": checkpoint, "revision": revision, "external": external, "data": data}
    settings = [
        run_settings(
            methods,
            baselines,
            one.model,
            one.scale,
            one.assignments,
            recipe=recipe,
            checkpoint=checkpoint,
            revision=revision,
            external=external,
            budget=budget,
            conditions=conditions,
            pairs=pairs,
            seed=seed,
            seeds=seeds,
            data=data,
            suite=suite,
            teacher_guidance=teacher_guidance,
        )
        for one in each_family(model, scale, assignments or [], of_one)
    ]
    launch(settings, out, executor, profile, max_jobs, wait, slots, dry_run, as_json)


@app.command(
    epilog="Examples:  flgbench plan --methods fastlightgen,dmd2  |  "
    "flgbench plan --methods fastlightgen --scale 14b --recipe fastlightgen-paper"
)
def plan(
    methods: Methods = "all",
    baselines: Baselines = "all",
    model: Model = DEFAULT_FAMILY,
    scale: Scale = "tiny",
    checkpoint: Checkpoint = None,
    revision: Revision = None,
    assignments: Set = None,
    recipe: RecipeName = None,
    external: External = None,
    budget: Budget = None,
    conditions: Conditions = None,
    pairs: Pairs = None,
    seed: Seed = None,
    seeds: Seeds = None,
    out: Out = Path("flgbench-out"),
    executor: Where = Executor.local,
    profile: ProfileName = None,
    max_jobs: MaxJobs = None,
    data: Data = None,
    suite: Suite = None,
    as_json: AsJson = False,
) -> None:
    """Print every step of a run, cached or to run, with what it will cost. The same as `run --dry-run`."""
    run(
        methods,
        baselines,
        model,
        scale,
        checkpoint,
        revision,
        assignments,
        recipe,
        external,
        budget,
        conditions,
        pairs,
        seed,
        seeds,
        out,
        executor,
        profile,
        max_jobs,
        dry_run=True,
        data=data,
        suite=suite,
        as_json=as_json,
    )


@app.command(epilog="Examples:  flgbench status --out flgbench-out  |  flgbench status --watch")
def status(
    name: RunArgument = None,
    out: Out = Path("flgbench-out"),
    watch: Annotated[bool, typer.Option("--watch", help="Look again every 5 s until no step waits or runs.")] = False,
    as_json: AsJson = False,
) -> None:
    """Where a run stands, from its files alone; of a run on a cluster also what the scheduler says."""
    folder = find_run(out, name)
    for lines in watched(folder) if watch else [step_lines(folder)]:
        if as_json:
            print(json.dumps({"run": folder.name, "steps": lines}), flush=True)
            continue
        if watch:
            from rich.console import Console

            Console().clear()  # on a terminal
        print("\n".join([folder.name, *map(as_text, lines)]), flush=True)


@app.command(epilog="Example:  flgbench cancel --out flgbench-out")
def cancel(name: RunArgument = None, out: Out = Path("flgbench-out")) -> None:
    """End the waiting and running jobs that a run has on a cluster. What is finished stays; the same `run` goes on."""
    from slurm.state import cancel_run

    folder = find_run(out, name)
    if not (folder / "slurm").exists():
        raise UsageError(f"{folder.name} runs on this machine, not on a cluster: end it with Ctrl-C")
    print(f"{folder.name}: {cancel_run(folder)} jobs cancelled")


profile_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Resource profiles of SLURM clusters.")
app.add_typer(profile_app, name="profile")
app.add_typer(vbench_app, name="vbench")


@profile_app.command("check", epilog="Example:  flgbench profile check devcluster")
def profile_check(name: Annotated[str, typer.Argument(help="Name of a profile, or a .toml file.")]) -> None:
    """Ask the cluster whether it can meet a profile's requests; one line a kind of step."""
    from slurm.check import check_profile
    from slurm.profiles import KINDS, load_profile

    for line in check_profile(load_profile(name), KINDS):
        print(line)


@app.command("list", epilog="Example:  flgbench list methods")
def list_(kind: Annotated[Kind, typer.Argument()] = Kind.methods, as_json: AsJson = False) -> None:
    """Names and one-line descriptions of methods, baselines and so on; of recipes every value with its source."""
    from flgbench.recipes import lines
    from flgbench.registry import registry

    if kind == Kind.metrics:
        from flgbench.metrics.table import ALL_METRICS

        found = {name: f"[{info.unit}] {info.description}" for name, info in ALL_METRICS.items()}
    else:
        entries = registry(kind.value)
        found = {name: entries.describe(name) for name in entries.names()}
    if as_json:
        print(json.dumps(found))
        return
    for name, description in found.items():
        print(f"{name:20} {description}")
        if kind == Kind.recipes:
            print("\n".join(f"  {line}" for line in lines(registry("recipes").get(name)())))


VERBS = (report_verb, sweep_verbs, tune_verb, latency_verb, student_verbs, encode_verb, upkeep)
for examples in (module.EXAMPLES for module in VERBS):
    for verb, epilog in examples.items():
        app.command(verb.__name__.replace("_", "-"), epilog=epilog)(verb)


def main() -> None:
    """Entry point. Wrong use is one line and exit code 2; an interrupt is 130."""
    try:
        # Without standalone mode typer.Exit(code) is not raised but returned.
        sys.exit(app(standalone_mode=False))
    except UsageError as error:
        print(f"flgbench: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        # typer's own parser errors carry a message and a code; everything else is a fault and shows its trace.
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            print(f"flgbench: {error.format_message()}", file=sys.stderr)
            sys.exit(2)
        raise
