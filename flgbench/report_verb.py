"""`flgbench report`: a run's report again, or one report of several runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flgbench.errors import UsageError
from flgbench.options import Out
from flgbench.printing import show_summary
from flgbench.status import find_run, runs_of, unfinished


def report(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN]...", help="Names or folders of runs; default: the latest.")
    ] = None,
    out: Out = Path("flgbench-out"),
    merged: Annotated[
        Path | None, typer.Option("--merged", "-o", help="Of several runs: folder to write; default: OUT/merged.")
    ] = None,
) -> None:
    """Rewrite tables, figures and page from a run's results, even of one in progress; of several runs, one report.

    What is there already and was made from the same results stays. Several runs: those that differ only by the seed are
    trainings of the same methods; those that may not be compared stand in sections, which say what differs.
    """
    named = list(dict.fromkeys(find_run(out, name).resolve() for name in names)) if names else [find_run(out, None)]
    folders = list(dict.fromkeys(run for folder in named for run in runs_of(folder)))
    if merged is not None and len(folders) < 2:
        raise UsageError("-o is for a report of several runs: name at least two, for example `flgbench report A B -o DIR`")
    own = named[0] / "report" if len(named) == 1 and len(folders) > 1 else None  # of one command for several families
    target = merged or own or out / "merged"
    if len(folders) > 1:
        from flgbench.runs import check_writable

        if (target / "plan.json").exists():
            raise UsageError(f"-o {target} is a run: choose another folder")
        check_writable(target)
    for folder in folders:
        _gather(folder)
    from flgbench.runs import build_merged, build_report
    from reports.data import RunFolderError

    try:
        page = build_merged(folders, target) if len(folders) > 1 else build_report(folders[0])
    except RunFolderError as error:
        raise UsageError(str(error)) from None
    if len(named) == 1 and merged is None:
        show_summary(named[0])
    print(f"report: {page}")


def _gather(folder: Path) -> None:
    """Collect what a run that is not finished has so far."""
    if (folder / "slurm").exists():
        from slurm import cluster

        cluster.gather(folder)
    elif unfinished(folder):
        from flgbench.runs import gather

        gather(folder)


EXAMPLES = {
    report: "Examples:  flgbench report  |  flgbench report wanx-tiny-c190f962f1e1  |  "
    "flgbench report RUN_SEED_0 RUN_SEED_1 -o /tmp/seeds",
}
