"""flgbench from Python: `flgbench.run`, `flgbench.load_student`, `flgbench.results`.

The names are attributes of the package and nothing heavy is imported before one is called.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flgbench.errors import UsageError
from flgbench.models import DEFAULT_FAMILY

if TYPE_CHECKING:
    import pandas as pd

    from flgbench.students import Student

DEFAULT_OUT = "flgbench-out"


@dataclass(frozen=True)
class Results:
    """A finished run. `failed`: step -> reason, empty when all went well.

    Of several families `table` and `main` hold the rows of all, with a column `family`, and `families` each one's own.
    """

    folder: Path
    failed: Mapping[str, str] = field(default_factory=dict)

    @property
    def families(self) -> dict[str, Results]:
        """Family -> its results."""
        from flgbench.status import runs_of

        folders = runs_of(self.folder)
        plans = {folder: json.loads((folder / "plan.json").read_text()) for folder in folders}
        mine = {f: {k: why for k, why in self.failed.items() if k in {s["key"] for s in plans[f]["steps"]}} for f in folders}
        return {plans[folder]["settings"]["model"]: Results(folder, mine[folder]) for folder in folders}

    @property
    def table(self) -> pd.DataFrame:
        """The tidy table: one row a number, with cell, metric, condition, value, unit, status and reason."""
        import pandas as pd

        from reports.data import RunFolderError, load_run

        try:
            return pd.concat([load_run(each.folder).results for each in self.families.values()], ignore_index=True)
        except RunFolderError as error:
            raise UsageError(str(error)) from None

    @property
    def main(self) -> pd.DataFrame:
        """The main table: one row a cell, each measure with `_low` and `_high` of its 95 % interval, `_n` and `_note`."""
        import pandas as pd

        paths = list(self.folder.glob("report/tables/main.csv")) or sorted(self.folder.glob("report/*/tables/main.csv"))
        if not paths:
            raise UsageError(f"run {self.folder.name} has no report yet: let the run finish, or see `flgbench report`")
        if len(paths) == 1:
            return pd.read_csv(paths[0])
        parts = zip(self.families, paths, strict=True)  # the report's parts are in the order of the families
        return pd.concat([pd.read_csv(path).copy().assign(family=name) for name, path in parts], ignore_index=True)

    @property
    def report(self) -> Path:
        """The HTML page."""
        return self.folder / "report" / "index.html"

    def student(self, cell: str) -> Student:
        """The student of method `cell`, loaded. Raises UsageError, see `load_student`, and for a run of several families."""
        return load_student(f"{self.folder}/{cell}")


def run(
    methods: str | Sequence[str] = "all",
    baselines: str | Sequence[str] = "all",
    *,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    out: Path | str = DEFAULT_OUT,
    executor: Literal["inline", "local"] = "inline",
    slots: int | None = None,
    model: str = DEFAULT_FAMILY,
    scale: str = "tiny",
    **options: Any,
) -> Results:
    """Train every method, measure, write the report; what is finished is found in `out` and not done again.

    `model`: a family, or several separated by commas. `settings`: method -> its settings, as `{"dmd2": {"lr": 1e-5}}`, of
    one family alone as `{"FAMILY:dmd2": …}`. `options`: budget, conditions, seeds and the other
    fields of `flgbench.run_settings.RunSettings`; `external`: TOML files of students from elsewhere. 'inline' works in this
    process; 'local' in `slots` worker processes, for which a script needs `if __name__ == "__main__":`. Raises UsageError
    for wrong names and values, before any work.
    """
    from flgbench import environment, runs
    from flgbench.options import run_settings
    from flgbench.several import each_family, settings_of

    if executor not in ("inline", "local"):
        raise UsageError(f"executor '{executor}': from Python runs are inline or local")
    names = [n if isinstance(n, str) else ",".join(n) for n in (methods, baselines)]
    of_one = {key: options.get(key) for key in ("checkpoint", "revision", "external", "data")}
    families = each_family(model, scale, of_one=of_one)
    given = {of: settings_of(settings or {}, of.model, [f.model for f in families]) for of in families}
    resolved = [
        run_settings(names[0], names[1], of.model, of.scale, None, method_settings=given[of], **options) for of in families
    ]
    workers = slots or len(environment.gpus()) or environment.cores()
    folder, status = runs.execute(resolved, Path(out), executor, workers, "flgbench.run")
    return Results(folder.resolve(), {key: state.reason for key, state in runs.failed(status).items()})


def results(name: str = "latest", out: Path | str = DEFAULT_OUT) -> Results:
    """Results of run `name`: its name in `out`, its folder, or 'latest'. Raises UsageError if there is none."""
    from flgbench.status import find_run
    from flgbench.students import LATEST

    return Results(find_run(Path(out), None if name == LATEST else name).resolve())


def load_student(name: str, out: Path | str = DEFAULT_OUT) -> Student:
    """The student 'RUN/CELL' of a run in `out`: `.sample(image, prompt, seed)` makes a clip (T, H, W, 3) uint8.

    RUN is a name, a folder or 'latest'. Raises UsageError where there is no such run, cell or trained student.
    """
    from flgbench import students

    return students.load_student(name, out)
