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
    executor: Annotated[Executor, typer.Option(help="Where steps run.")] = Executor.local,
    slots: Annotated[int | None, typer.Option(min=1, help="Steps at a time (local); default: one a core.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train every method from one teacher, measure quality and latency, write the report. Continues what was stopped."""
    if executor == Executor.inline and slots is not None:
        raise UsageError("--executor inline runs one step at a time: leave out --slots")
    settings = _settings(
        methods, baselines, model, scale, assignments, budget=budget, conditions=conditions, pairs=pairs, seed=seed
    )
    if dry_run:
        _print_plan(settings, out, as_json)
        return
    from flgbench import environment
    from flgbench import run as work

    command = "flgbench " + " ".join(sys.argv[1:])
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
    as_json: AsJson = False,
) -> None:
    """Print every step of a run: cached or to run. The same as `run --dry-run`."""
    settings = _settings(
        methods, baselines, model, scale, assignments, budget=budget, conditions=conditions, pairs=pairs, seed=seed
    )
    _print_plan(settings, out, as_json)


def _print_plan(settings: Any, out: Path, as_json: bool) -> None:
    from flgbench import run as work
    from flgbench.runner import initial_status

    steps, store = work.prepare(settings, out)
    status = initial_status(steps, store)
    if as_json:
        states = {k: s.state for k, s in status.items()}
        print(json.dumps(work.plan_record(steps, settings) | {"status": states}))
    else:
        work.print_plan(steps, status)


def _run_folder(out: Path, name: str | None) -> Path:
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
    """Where a run stands, from its files alone."""
    from flgbench.store import Store

    folder = _run_folder(out, name)
    store = Store(folder.parent.parent / "store")
    lines = []
    for step in json.loads((folder / "plan.json").read_text())["steps"]:
        events = store.events(step["key"])
        last = events[-1] if events else {"event": "waiting"}
        state = (
            "done"
            if store.is_done(step["key"])
            else {"progress": "running", "started": "running"}.get(last["event"], last["event"])
        )
        attempts = sum(e["event"] == "started" for e in events)
        details = {k: v for k, v in last.items() if k in ("fraction", "loss", "reason", "seconds")}
        lines.append({"step": f"{step['kind']} {step['name']}", "state": state, "attempts": attempts} | details)
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

    folder = _run_folder(out, name)
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
        check = work
        from flgbench.run import check_writable

        check_writable(check)
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
