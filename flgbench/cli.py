"""The command line: parse, call, print. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from flgbench.errors import UsageError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Benchmark and ablations for faster image+text-to-video diffusion transformers.",
    epilog="Start with: flgbench run --methods all --model wanx",
)


class Kind(StrEnum):
    methods = "methods"
    baselines = "baselines"
    families = "families"
    metrics = "metrics"
    reports = "reports"


class Executor(StrEnum):
    local = "local"
    inline = "inline"
    slurm = "slurm"


Out = Annotated[Path, typer.Option("--out", help="Folder for artifacts and runs.")]
Methods = Annotated[str, typer.Option("--methods", help="Names, 'all', 'controls' or 'none', separated by commas.")]
Baselines = Annotated[str, typer.Option("--baselines", help="Names or 'all', separated by commas.")]
Model = Annotated[str, typer.Option("--model", help="Model family.")]
Scale = Annotated[str, typer.Option("--scale", help="Size of the family; 'tiny' runs on a laptop.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="METHOD.SETTING=VALUE; may be repeated.")]
Budget = Annotated[float | None, typer.Option("--budget", help="Training budget of each method in network passes.")]
Conditions = Annotated[int | None, typer.Option("--conditions", help="Test conditions (first frame + caption).")]
Pairs = Annotated[int | None, typer.Option("--pairs", help="Timed conditions of the latency protocol.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Training seed.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Where = Annotated[Executor, typer.Option("--executor", help="Where steps run.")]
ProfileName = Annotated[str | None, typer.Option("--profile", help="slurm: resource profile, a name or a .toml file.")]
MaxJobs = Annotated[int | None, typer.Option("--max-jobs", min=1, help="slurm: most jobs of one array at a time.")]


def _names(text: str, kind: str) -> tuple[str, ...]:
    from flgbench.registry import registry

    groups = registry(kind).groups()
    names = tuple(chain.from_iterable(groups.get(t, (t,)) for t in (part.strip() for part in text.split(",")) if t))
    for name in names:
        registry(kind).check(name)
    if len(set(names)) != len(names):
        raise UsageError(f"--{kind} {text}: a name is given twice")
    return names


def _settings(methods: str, baselines: str, model: str, scale: str, assignments: list[str] | None, **options: Any) -> Any:
    from flgbench.settings import build_settings, parse_assignments

    # Names are checked before torch is imported: a typo answers at once.
    values = {
        "methods": _names(methods, "methods"),
        "baselines": _names(baselines, "baselines"),
        "method_settings": parse_assignments(assignments or []),
        "model": model,
        "scale": scale,
    }
    from flgbench.registry import registry

    registry("families").check(model)
    from flgbench import environment
    from flgbench.plan import RunSettings

    given = {k: v for k, v in options.items() if v is not None}
    return build_settings(RunSettings, values | given | {"threads": environment.cores()}, "run")


@app.command(
    epilog="Examples:  flgbench run --methods all --model wanx  |  flgbench run --methods dmd2 --set dmd2.lr=1e-5  |  "
    "flgbench run --methods fastlightgen --set fastlightgen.match.beta2=0 --out /tmp/beta"
)
def run(
    methods: Methods = "all",
    baselines: Baselines = "all",
    model: Model = "wanx",
    scale: Scale = "tiny",
    assignments: Set = None,
    budget: Budget = None,
    conditions: Conditions = None,
    pairs: Pairs = None,
    seed: Seed = None,
    out: Out = Path("flgbench-out"),
    executor: Where = Executor.local,
    profile: ProfileName = None,
    max_jobs: MaxJobs = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="slurm: follow the jobs, or return once submitted.")] = True,
    slots: Annotated[int | None, typer.Option(min=1, help="Steps at a time (local); default: one a core.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train every method from one teacher, measure quality and latency, write the report. Continues what was stopped."""
    if executor == Executor.inline and slots is not None:
        raise UsageError("--executor inline runs one step at a time: leave out --slots")
    if executor == Executor.slurm and slots is not None:
        raise UsageError("--executor slurm takes --max-jobs: leave out --slots")
    if executor != Executor.slurm and not wait:
        raise UsageError("--no-wait needs --executor slurm")
    resources = _profile(executor, profile, max_jobs)
    settings = _settings(
        methods, baselines, model, scale, assignments, budget=budget, conditions=conditions, pairs=pairs, seed=seed
    )
    if dry_run:
        _print_plan(settings, out, as_json, resources, max_jobs)
        return
    from flgbench import environment
    from flgbench import run as work

    command = "flgbench " + " ".join(sys.argv[1:])
    if resources is not None:
        from slurm import cluster

        folder, status, submitted = cluster.execute(settings, out, resources, max_jobs, wait, command)
        if not wait:
            _print_submitted(folder, out, submitted, as_json)
            return
    else:
        folder, status = work.execute(settings, out, executor.value, slots or environment.cores(), command)
    bad = work.failed(status)
    page = folder / "report" / "index.html"
    if as_json:
        print(json.dumps({"run": str(folder), "report": str(page), "failed": {k: s.reason for k, s in bad.items()}}))
    else:
        _print_summary(folder)
        for key, state in bad.items():
            print(f"{state.state}: {key}: {state.reason}")
        print(f"report: {page}")
    if bad:
        raise typer.Exit(1)


def _profile(executor: Executor, name: str | None, max_jobs: int | None) -> Any:
    """The profile of a cluster run, None for other executors. Raises UsageError where the options do not fit."""
    if executor != Executor.slurm:
        if name is not None or max_jobs is not None:
            raise UsageError(f"--{'profile' if name is not None else 'max-jobs'} needs --executor slurm")
        return None
    from slurm.profiles import load_profile, names

    if name is None:
        raise UsageError(f"--executor slurm needs --profile. Known: {', '.join(names())}, or a path ending in .toml")
    return load_profile(name)


def _print_submitted(folder: Path, out: Path, jobs: int, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"run": str(folder), "jobs": jobs}))
        return
    print(f"{folder.name}: {jobs} jobs submitted")
    for verb in ("status", "report", "cancel"):
        print(f"  flgbench {verb} {folder.name} --out {out}")


@app.command(epilog="Example:  flgbench plan --methods fastlightgen,dmd2")
def plan(
    methods: Methods = "all",
    baselines: Baselines = "all",
    model: Model = "wanx",
    scale: Scale = "tiny",
    assignments: Set = None,
    budget: Budget = None,
    conditions: Conditions = None,
    pairs: Pairs = None,
    seed: Seed = None,
    out: Out = Path("flgbench-out"),
    executor: Where = Executor.local,
    profile: ProfileName = None,
    max_jobs: MaxJobs = None,
    as_json: AsJson = False,
) -> None:
    """Print every step of a run: cached or to run. The same as `run --dry-run`."""
    resources = _profile(executor, profile, max_jobs)
    settings = _settings(
        methods, baselines, model, scale, assignments, budget=budget, conditions=conditions, pairs=pairs, seed=seed
    )
    _print_plan(settings, out, as_json, resources, max_jobs)


def _print_plan(settings: Any, out: Path, as_json: bool, profile: Any, max_jobs: int | None) -> None:
    from flgbench import run as work
    from flgbench.runner import initial_status

    arrays: list[dict[str, Any]] = []
    if profile is None:
        steps, store = work.prepare(settings, out)
    else:
        from slurm import cluster

        settings, steps, store, arrays = cluster.preview(settings, out, profile, max_jobs)
    status = initial_status(steps, store)
    if as_json:
        states = {k: s.state for k, s in status.items()}
        more = {"arrays": arrays} if profile is not None else {}
        print(json.dumps(work.plan_record(steps, settings) | {"status": states} | more))
        return
    work.print_plan(steps, status)
    for number, array in enumerate(arrays):
        print(f"array {number}: {len(array['steps'])} {array['kind']}, sbatch {' '.join(array['sbatch'])}")
        if array["index_to_index"] is not None:
            print(f"  each task after its own of array {array['index_to_index']}")
        if array["after"]:
            print(f"  all after {' '.join(array['after'])}")


def run_folder(out: Path, name: str | None) -> Path:
    """The folder of run `name`, or of the latest in `out`. Raises UsageError if there is none."""
    runs = sorted((p.parent for p in out.glob("runs/*/plan.json")), key=lambda p: (p / "plan.json").stat().st_mtime)
    if name is not None:
        folder = Path(name) if (Path(name) / "plan.json").exists() else out / "runs" / name
        if not (folder / "plan.json").exists():
            known = ", ".join(r.name for r in runs) or "none"
            raise UsageError(f"no run '{name}' in {out}. Runs there: {known}")
        return folder
    if not runs:
        raise UsageError(f"no runs in {out}: start one with `flgbench run`, or name its folder with --out")
    return runs[-1]


RunArgument = Annotated[str | None, typer.Argument(help="Run name or folder; default: the latest.")]


@app.command(epilog="Example:  flgbench status --out flgbench-out")
def status(name: RunArgument = None, out: Out = Path("flgbench-out"), as_json: AsJson = False) -> None:
    """Where a run stands, from its files alone; of a run on a cluster also what the scheduler says."""
    from flgbench.store import Store

    folder = run_folder(out, name)
    store = Store(folder.parent.parent / "store")
    steps = json.loads((folder / "plan.json").read_text())["steps"]
    scheduled: dict[str, dict[str, Any]] = {}
    if (folder / "slurm").exists():
        from slurm.state import look

        scheduled = look({s["key"]: list(s["inputs"].values()) for s in steps}, store)
    lines = []
    for step in steps:
        events = store.events(step["key"])
        last = events[-1] if events else {"event": "waiting"}
        state = (
            "done"
            if store.is_done(step["key"])
            else {"progress": "running", "started": "running", "job": "running"}.get(last["event"], last["event"])
        )
        attempts = sum(e["event"] == "started" for e in events)
        details = {k: v for k, v in last.items() if k in ("fraction", "loss", "reason", "seconds")}
        line = {"step": f"{step['kind']} {step['name']}", "state": state, "attempts": attempts} | details
        lines.append(line | scheduled.get(step["key"], {}))
    if as_json:
        print(json.dumps({"run": folder.name, "steps": lines}))
        return
    print(folder.name)
    for line in lines:
        shown = "  ".join(f"{k} {v}" for k, v in line.items() if k not in ("step", "state"))
        print(f"{line['state']:8} {line['step']:30} {shown}")


@app.command(epilog="Example:  flgbench report")
def report(name: RunArgument = None, out: Out = Path("flgbench-out")) -> None:
    """Rewrite every table, figure and the page from a run's results."""
    from flgbench.run import build_report

    folder = run_folder(out, name)
    if (folder / "slurm").exists():
        from slurm import cluster

        cluster.gather(folder)
    if not (folder / "results.parquet").exists():
        raise UsageError(f"run {folder.name} has no results yet: let `flgbench run` finish, or see `flgbench status`")
    from reports.data import RunFolderError

    try:
        page = build_report(folder)
    except RunFolderError as error:
        raise UsageError(str(error)) from None
    _print_summary(folder)
    print(f"report: {page}")


def _print_summary(folder: Path) -> None:
    path = folder / "report" / "tables" / "summary.txt"
    if path.exists():
        print(path.read_text())


@app.command(epilog="Example:  flgbench cancel --out flgbench-out")
def cancel(name: RunArgument = None, out: Out = Path("flgbench-out")) -> None:
    """End the waiting and running jobs that a run has on a cluster. What is finished stays; the same `run` goes on."""
    from slurm.state import cancel_run

    folder = run_folder(out, name)
    if not (folder / "slurm").exists():
        raise UsageError(f"{folder.name} runs on this machine, not on a cluster: end it with Ctrl-C")
    print(f"{folder.name}: {cancel_run(folder)} jobs cancelled")


profile_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Resource profiles of SLURM clusters.")
app.add_typer(profile_app, name="profile")


@profile_app.command("check", epilog="Example:  flgbench profile check devcluster")
def profile_check(name: Annotated[str, typer.Argument(help="Name of a profile, or a .toml file.")]) -> None:
    """Ask the cluster whether it can meet a profile's requests; one line a kind of step."""
    from slurm.check import check_profile
    from slurm.profiles import KINDS, load_profile

    for line in check_profile(load_profile(name), KINDS):
        print(line)


@app.command("list", epilog="Example:  flgbench list methods")
def list_(kind: Annotated[Kind, typer.Argument()] = Kind.methods, as_json: AsJson = False) -> None:
    """Names and one-line descriptions of methods, baselines, families, metrics or reports."""
    from flgbench.registry import registry

    if kind == Kind.metrics:
        from flgbench.metrics.table import METRICS, SET_METRICS

        found = {name: f"[{info.unit}] {info.description}" for name, info in (METRICS | SET_METRICS).items()}
    else:
        entries = registry(kind.value)
        found = {name: entries.describe(name) for name in entries.names()}
    if as_json:
        print(json.dumps(found))
        return
    for name, description in found.items():
        print(f"{name:20} {description}")


@app.command(epilog="Example:  flgbench doctor --json")
def doctor(as_json: AsJson = False) -> None:
    """Versions, devices, weights and what is missing."""
    from flgbench import environment
    from flgbench.registry import registry

    facts = environment.facts()
    for name in registry("families").names():
        family = registry("families").get(name)()
        for scale in family.scales:
            try:
                family.load(scale)
                facts[f"weights {name} {scale}"] = "ok"
            except (UsageError, OSError) as error:
                facts[f"weights {name} {scale}"] = str(error)
    import shutil

    facts["slurm"] = shutil.which("sbatch") or "no sbatch on PATH"
    if as_json:
        print(json.dumps(facts))
        return
    for key, value in facts.items():
        print(f"{key:20} {value}")


@app.command(epilog="Example:  flgbench pretrain --model wanx --work /scratch/wanx")
def pretrain(
    model: Model = "wanx",
    work: Annotated[Path, typer.Option(help="Folder for checkpoints and logs; running again resumes.")] = Path(
        "flgbench-pretrain"
    ),
    target: Annotated[Path | None, typer.Option(help="Folder to write; default: the package's weights.")] = None,
    gates: Annotated[bool, typer.Option("--gates", help="Only measure the gates of the present weights.")] = False,
    conditions: Annotated[int, typer.Option(min=8, help="Held-out conditions of the gates.")] = 256,
) -> None:
    """Train the tiny teacher again (hours on two cores), or measure its gates."""
    from flgbench.registry import registry

    family = registry("families").get(model)()
    from flgbench import environment
    from flgbench.models.tiny import gates as gate
    from flgbench.models.tiny import pretrain as recipe

    folder = target or family.folder("tiny")
    if not gates:
        from flgbench.run import check_writable

        check_writable(work)
        recipe.export(recipe.pretrain(work, environment.cores()), work, folder)
        print(f"weights: {folder}")
    print(json.dumps(gate.measure_gates(family, conditions, folder), indent=1))


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
