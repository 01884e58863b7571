"""`flgbench vbench export | score | import`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from flgbench.errors import UsageError
from flgbench.options import Out

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Bridge to VBench-I2V, which runs in an environment of its own."
)
Folder = Annotated[Path, typer.Argument(help="Folder that `export` wrote.")]


@app.command(epilog="Example:  flgbench vbench export fastlightgen clips --out flgbench-out")
def export(
    cell: Annotated[str, typer.Argument(help="Cell of the run: a method, a baseline, 'real'.")],
    folder: Annotated[Path, typer.Argument(help="New folder for videos, images and manifest.json.")],
    run: Annotated[str | None, typer.Option(help="Name or folder of a run; default: the latest.")] = None,
    out: Out = Path("flgbench-out"),
) -> None:
    """Write the clips of one cell in the layout that VBench reads, with hashes."""
    from flgbench.status import find_single

    found = find_single(out, run)
    from flgbench.vbench.export import export as write

    count = write(found, cell, folder, fps=_fps(found))
    print(f"{count} videos of '{cell}' in {folder}")


@app.command(
    epilog="Example:  flgbench vbench score clips --python ~/vbench-env/bin/python --script ~/VBench/evaluate_i2v.py"
)
def score(
    folder: Folder,
    python: Annotated[Path, typer.Option(help="Python of the environment that VBench is installed in.")],
    script: Annotated[Path, typer.Option(help="VBench's evaluate_i2v.py, in a checkout of its repository.")],
    dimensions: Annotated[str, typer.Option(help="Names separated by commas, or 'all'.")] = "all",
    minutes: Annotated[float, typer.Option(min=0.01, help="Time limit.")] = 120.0,
) -> None:
    """Run VBench on exported clips. It needs a GPU and weights from several hosts, which it downloads itself."""
    from flgbench.vbench.score import ScoringFailed
    from flgbench.vbench.score import score as run
    from flgbench.vbench.scoring import DIMENSIONS

    names = list(DIMENSIONS) if dimensions == "all" else dimensions.split(",")
    if unknown := [n for n in names if n not in DIMENSIONS]:
        raise UsageError(f"--dimensions: '{unknown[0]}' is none of {', '.join(DIMENSIONS)}")
    try:
        made = run(folder, python, script, names, minutes)
    except ScoringFailed as error:
        print(error)
        raise typer.Exit(1) from None
    print("\n".join(str(path) for path in made))


@app.command("import", epilog="Example:  flgbench vbench import clips/results/*_eval_results.json --csv vbench.csv")
def import_(
    files: Annotated[list[Path], typer.Argument(help="VBench's *_eval_results.json, one or several.")],
    csv: Annotated[Path | None, typer.Option(help="File for the table.")] = None,
) -> None:
    """Read VBench's scores: normalised, weighted, with intervals over images; a total only from all nine dimensions."""
    from flgbench.vbench.results import read_scores, tabulate
    from flgbench.vbench.scoring import DIMENSIONS

    scores, remarks = read_scores(files)
    table = tabulate(scores)
    if csv is not None:
        try:
            table.to_csv(csv, index=False)
        except OSError as error:
            raise UsageError(f"--csv {csv}: cannot be written ({error.strerror})") from None
    for row in table.to_dict("records"):
        normalised = "" if row["dimension"] not in DIMENSIONS else f"normalised {row['normalised']:.4f}"
        bounds = f"[{row['low']:.4f}, {row['high']:.4f}]"
        print(f"{row['dimension']:24}{row['score']:8.4f}  {bounds:18}  {row['images']:4} images  {normalised}".rstrip())
    print("\n".join(remarks), end="\n" if remarks else "")
    if missing := [name for name in DIMENSIONS if name not in scores]:
        print(f"no total: {', '.join(missing)} missing")


def _fps(run: Path) -> int:
    from flgbench.registry import family_of

    settings = json.loads((run / "run.json").read_text())["settings"]
    return family_of(settings).preset(settings["scale"]).fps
