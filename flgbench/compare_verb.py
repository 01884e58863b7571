"""`flgbench compare`: two runs side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flgbench.errors import UsageError
from flgbench.options import AsJson
from flgbench.status import find_single

if TYPE_CHECKING:
    from reports.data import RunData
    from reports.tables import Entry, Table


def compare(
    run_a: Annotated[str, typer.Argument(metavar="RUN_A", help="Name or folder of the run that is subtracted.")],
    run_b: Annotated[str, typer.Argument(metavar="RUN_B", help="Name or folder of the run it is subtracted from.")],
    runs: Annotated[Path, typer.Option("--runs", help="Folder for artifacts and runs, where names are looked up.")] = Path(
        "flgbench-out"
    ),
    out: Annotated[Path | None, typer.Option("--out", help="Also write compare.md, .csv and .tex there.")] = None,
    as_json: AsJson = False,
) -> None:
    """B − A of every cell in two runs, with intervals. Refuses what is not comparable, and says which field differs."""
    folders = [find_single(runs, name) for name in (run_a, run_b)]
    if out is not None:
        from flgbench.runs import check_writable

        check_writable(out)
    from reports import comparable
    from reports.compare import summary, tables
    from reports.data import RunFolderError, load_run
    from reports.tables import write

    try:
        a, b = (load_run(folder) for folder in folders)
        found = tables(a, b) if as_json or out is not None else []
        paths = write(found, out, "compare") if out is not None else []
        if as_json:
            apart = {"settings": comparable.settings_apart(a, b), "hardware": comparable.hardware_apart(a, b)}
            runs_told = {"a": comparable.told(a), "b": comparable.told(b)}
            print(json.dumps({**runs_told, "apart": apart, "rows": records(found), "files": [str(p) for p in paths]}))
            return
        _show(a, b, summary(a, b))
    except (RunFolderError, comparable.NotComparableError) as error:
        raise UsageError(str(error)) from None
    if paths:
        print(f"all measures: {paths[0]}")


def records(found: list[Table]) -> list[dict[str, Any]]:
    """One record a cell and measure: A's, B's and their difference (for speeds the ratio) as value, low, high, n, note."""
    made = []
    for table in found:
        for i in range(0, len(table.rows), 3):
            a, b, third = (row.entries for row in table.rows[i : i + 3])
            cell = table.rows[i].key.rpartition(":")[0]
            for column in table.columns:
                parts = zip(("a", "b", "b_against_a"), (a, b, third), strict=True)
                numbers = {name: _numbers(part[column.key]) for name, part in parts}
                made.append({"cell": cell, "table": table.name, "measure": column.key} | numbers)
    return made


def _numbers(entry: Entry) -> dict[str, Any]:
    bounds = {"value": entry.value, "low": entry.low, "high": entry.high}
    finite = {k: None if v is not None and abs(v) == float("inf") else v for k, v in bounds.items()}
    return finite | {"n": entry.n, "note": entry.note}


def _show(a: RunData, b: RunData, table: Table) -> None:
    """The short table in the terminal, with what was run differently and why something is not compared."""
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    from reports.comparable import settings_apart, told

    console = Console()
    grid = Grid(box=None, pad_edge=False)
    grid.add_column("")
    for column in table.columns:
        grid.add_column(Text(column.heading), justify="right")
    for row in table.rows:
        entries = (row.entries[c.key] for c in table.columns)
        texts = [f"{e.text or '-'} {e.interval}".rstrip() + (f" ({table.mark(e)})" if e.note else "") for e in entries]
        grid.add_row(*map(Text, (row.label, *texts)))
    lines = [f"A: {told(a)} ({a.folder})", f"B: {told(b)} ({b.folder})"]
    lines += [f"differs: {each}" for each in settings_apart(a, b)]
    console.print(Text("\n".join(lines)))
    console.print(grid)
    console.print(Text("\n".join([f"({letter}) {why}" for why, letter in table.notes.items()] + [table.legend])))
