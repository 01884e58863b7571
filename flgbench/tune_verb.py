"""The verb `tune`: search a method's settings on validation conditions, and say how far the result lies from the paper's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from flgbench.errors import UsageError
from flgbench.models import DEFAULT_FAMILY
from flgbench.options import AsJson, Budget, Conditions, Model, Out, Scale, Seed


def tune(
    name: Annotated[str | None, typer.Argument(help="Method with a registered search; default: the only one.")] = None,
    model: Model = DEFAULT_FAMILY,
    scale: Scale = "tiny",
    trials: Annotated[int, typer.Option(min=2, help="Points of a round.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds: each learns from those before.")] = 2,
    levels: Annotated[int, typer.Option(min=1, help="Budgets, each twice the one before; half of the points go on.")] = 3,
    budget: Budget = None,
    conditions: Conditions = None,
    seed: Seed = None,
    out: Out = Path("flgbench-out"),
    slots: Annotated[int | None, typer.Option(min=1, help="Steps at a time; default: one a GPU or core.")] = None,
    as_json: AsJson = False,
) -> None:
    """Search a method's guidance on validation conditions, many short trainings and few long ones; show the Pareto set."""
    from flgbench.registry import registry

    known = registry("searches").names()
    if name is None and len(known) != 1:
        raise UsageError(f"tune: name the method. With a search: {', '.join(known)}")
    chosen = registry("searches").check(name or known[0])
    registry("families").check(model)
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise UsageError("tune needs Optuna: pip install 'flgbench[tune]'") from None
    from flgbench import runs, tuning
    from flgbench.options import run_settings
    from reports import tuning as report

    runs.check_writable(out)
    wanted = registry("searches").get(chosen)(registry("families").get(model)().preset(scale))
    options: dict[str, Any] = {
        "budget": budget,
        "conditions": conditions,
        "seed": seed,
        "split": "validation",
        "repeated_conditions": 0,
    }
    settings = run_settings("none", "", model, scale, None, **options)
    runs.prepare(settings.model_copy(update={"variants": (wanted.variant(wanted.paper or {}, settings.budget),)}), out)
    evaluate = _evaluation(settings, out, slots)
    found = tuning.search(wanted, evaluate, settings.budget, trials, rounds, levels, settings.seed)
    folder = out / "tuning" / f"{chosen}-{runs.run_name(settings)}"
    paths = report.write(wanted, found, folder)
    print(report.as_json(wanted, found) if as_json else report.lines(wanted, found))
    if not as_json:
        print("\n".join(str(path) for path in paths))


def _evaluation(settings: Any, out: Path, slots: int | None) -> Callable[[Sequence[Any]], list[dict[str, float] | str]]:
    """Train and measure variants as one plan; what was done before is found again."""
    import pandas as pd

    from flgbench import environment, runs, tuning
    from flgbench.progress import Progress
    from flgbench.runner import CACHED, DONE, run_local

    def evaluate(variants: Sequence[Any]) -> list[dict[str, float] | str]:
        plan, store = runs.prepare(settings.model_copy(update={"variants": tuple(variants)}), out)
        with Progress(plan, store) as progress:
            at_once = slots or len(environment.gpus()) or environment.cores()
            status = run_local(plan, store, at_once, environment.cores(), progress.update)
        found: list[dict[str, float] | str] = []
        for cell in plan.cells:
            bad = [status[k] for k in (*(k for _, k in cell.stages), cell.quality) if status[k].state not in (DONE, CACHED)]
            if bad:
                found.append(f"{bad[0].state}: {bad[0].reason}")
                continue
            table = pd.read_parquet(store.path(cell.quality) / "results.parquet")
            good = table[table["status"] == "ok"].groupby("metric")["value"].mean()
            known = all(name in good for name in tuning.OBJECTIVES)
            found.append({name: float(good[name]) for name in tuning.OBJECTIVES} if known else "nothing to measure")
        return found

    return evaluate


EXAMPLES: dict[Callable[..., None], str] = {
    tune: "Examples:  flgbench tune --model wanx  |  flgbench tune --trials 4 --rounds 1 --budget 2000",
}
