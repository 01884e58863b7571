"""One report of several runs: what each is, every cell in one table, families side by side, each section's own tables."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import reports
from reports import families, page, summary, trainings
from reports.aggregates import estimate, ordered_cells, speedups
from reports.catalogue import BY_KEY, HEADLINE, seconds
from reports.comparable import settings_apart
from reports.data import Cell, RunData, load_run
from reports.ledger import basis
from reports.main_table import counted, estimated, ratio
from reports.main_table import tables as main_tables
from reports.merge import Group, Section, merge
from reports.tables import Column, Entry, Row, Table, write

SHOWN = tuple(BY_KEY[key] for key in (HEADLINE, "motion_ratio", "turn_diversity"))
FIGURES = ("pareto", "profile")


def build(folders: Sequence[Path], out: Path) -> Path:
    """Write out/index.html, out/tables/ and one whole report for each group of runs, out/GROUP/index.html.

    Returns the path of out/index.html. Raises RunFolderError when one of the folders is not readable.
    """
    sections = merge([load_run(folder) for folder in folders])
    groups = [g for s in sections for g in s.groups]
    out.mkdir(parents=True, exist_ok=True)
    for group in groups:
        reports.write(group.run, basis([m.run.folder for m in group.members]), out / stem(group))
    work = Path(tempfile.mkdtemp(prefix=".merged-", dir=out))
    try:
        for table in tables(sections):
            write([table], work / "tables", table.name)
        summary.write(summary_lines(sections), work)
        index = work / "index.html"
        index.write_text(page.template("merged.html.j2", content(sections, out)), encoding="utf-8")
        reports.swap(work / "tables", out / "tables")
        index.replace(out / "index.html")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return out / "index.html"


def summary_lines(sections: Sequence[Section]) -> list[str]:
    """The terminal's text: each group's own table, then families side by side where there are several."""
    groups = [g for s in sections for g in s.groups]
    found = [line for g in groups for line in (f"{g.letters}: {g.run.run.name}", *summary.lines(g.run), "")]
    return [*found, *families.lines(groups)]


def stem(group: Group) -> str:
    """Folder of a group's own report: 'A', or 'A-C' where two runs differ by the seed."""
    return "-".join(m.letter for m in group.members)


def tables(sections: Sequence[Section]) -> list[Table]:
    """The runs, all their cells, and families side by side where there are several."""
    beside = families.table([g for s in sections for g in s.groups])
    return [runs_table(sections), cells_table(sections), *([beside] if beside else [])]


def runs_table(sections: Sequence[Section]) -> Table:
    """What each run is, and what keeps it apart or was set differently."""
    columns = (
        Column("name", "Run"),
        Column("section", "Section", meaning="quality is compared within a section only"),
        Column("family", "Family"),
        Column("scale", "Scale"),
        Column("seed", "Seed"),
        Column("seconds", "Took"),
        Column("commit", "Commit"),
        Column("timed_on", "Timed on", meaning="latencies of different hardware are never compared"),
        Column("differs", "Differs from A"),
    )
    first = sections[0].groups[0].members[0].run
    rows = []
    for number, section in enumerate(sections, start=1):
        for group in section.groups:
            for member in group.members:
                told, own = member.run.run, member.run.run.environment
                machine = own.get("gpu") if own.get("gpu") not in (None, "none") else own.get("cpu")
                apart = [*section.apart, *settings_apart(first, member.run)]
                entries = {
                    "name": Entry(told.name),
                    "section": Entry(str(number)),
                    "family": Entry(group.family),
                    "scale": Entry(group.scale),
                    "seed": Entry(str(told.settings["seed"])) if "seed" in told.settings else Entry(note="not recorded"),
                    "seconds": Entry(seconds(told.seconds), told.seconds) if told.seconds else Entry(note="not finished"),
                    "commit": Entry(str(own["commit"])) if own.get("commit") else Entry(note="not recorded"),
                    "timed_on": Entry(str(machine)) if machine else Entry(note="not recorded"),
                    "differs": Entry("yes" if apart else "no", note="; ".join(dict.fromkeys(apart))),
                }
                rows.append(Row(member.letter, member.letter, "run", entries))
    legend = "Runs that differ only by the seed are trainings of the same methods. What differs from A is in the footnotes."
    return Table("runs", "Runs", "The runs of this report.", columns, tuple(rows), legend)


def cells_table(sections: Sequence[Section]) -> Table:
    """Every cell of every run: trainings of one method in one row, with a column for what the runs differ in."""
    groups = [(number, g) for number, s in enumerate(sections, start=1) for g in s.groups]
    told: dict[str, tuple[str, Callable[[int, Group], str]]] = {
        "run": ("Run", lambda _, g: g.letters),
        "section": ("Section", lambda n, _: str(n)),
        "family": ("Family", lambda _, g: g.family),
        "scale": ("Scale", lambda _, g: g.scale),
    }
    differing = {k: v for k, v in told.items() if len({v[1](n, g) for n, g in groups}) > 1}
    columns = [
        *(Column(key, title) for key, (title, _) in differing.items()),
        Column("trainings", "Trainings"),
        Column("nfe", "NFE", meaning="network passes for one clip; guidance counts two"),
        *(Column(s.key, s.title, s.unit, s.arrow, s.meaning) for s in SHOWN),
        Column("nominal", "Nominal", "speed-up", "↑", "NFE × kept blocks, reference over this one: arithmetic"),
        Column("denoise", "Denoise", "speed-up", "↑", "over the reference of the same run"),
        Column("end_to_end", "End to end", "speed-up", "↑", "over the reference of the same run"),
    ]
    rows = []
    for number, group in groups:
        own = {key: Entry(of(number, group)) for key, (_, of) in differing.items()}
        rows += [
            Row(f"{stem(group)}:{c[0].cell}", c[0].label, c[0].kind, own | _entries(group.run, c)) for c in _cells(group.run)
        ]
    legend = (
        "Brackets: 95 % intervals; of one training clustered by condition, of several over trainings and conditions. "
        "Speed-ups are over the reference that was timed with them, by the first of a group's runs. Rows of different "
        "sections have other conditions, models or measures: they are not to be compared."
    )
    return Table("cells", "All runs", "Every cell of every run.", tuple(columns), tuple(rows), legend)


def _cells(run: RunData) -> list[list[Cell]]:
    """The rows of one group: each cell, with all trainings of a method or of a point of a sweep together."""
    rows: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in (*ordered_cells(run), *run.variants):
        trained = cell.kind in ("method", "variant")
        rows.setdefault((cell.method, cell.sweep, str(cell.point)) if trained else (cell.cell,), []).append(cell)
    return list(rows.values())


def _entries(run: RunData, cells: list[Cell]) -> dict[str, Entry]:
    good = [c for c in cells if not c.failed]
    bad = "; ".join(f"{c.label} {c.status}: {c.reason or 'no reason recorded'}" for c in cells if c.failed)
    first, ups = cells[0], speedups(run, cells[0])
    trained = first.kind in ("method", "variant")
    found = {
        "trainings": Entry(str(len(good)), float(len(good)), note=bad) if trained else Entry(note="not trained"),
        "nfe": counted(first.nfe, first),
        **{name: ratio(getattr(ups, name)) for name in ("nominal", "denoise", "end_to_end")},
    }
    for s in SHOWN:
        one = estimated(s, estimate(run, (good or cells)[0].cell, s.key))
        found[s.key] = trainings.over(run, good, s) if len(good) > 1 else one
    return found


def content(sections: Sequence[Section], out: Path) -> dict[str, Any]:
    """Everything that the template shows."""
    shown = []
    for number, section in enumerate(sections, start=1):
        groups = []
        for group in section.groups:
            own = main_tables(group.run)
            several = trainings.table(group.run)
            drawn = [f for f in page.figures(group.run, out / stem(group)) if f["name"] in FIGURES]
            groups.append(
                {
                    "letters": group.letters,
                    "name": group.run.run.name,
                    "page": f"{stem(group)}/index.html",
                    "tables": [*([several] if several.rows else []), *own],
                    "figures": drawn,
                    "colours": page.colours(group.run),
                }
            )
        shown.append({"number": number, "apart": section.apart, "groups": groups})
    return {"tables": tables(sections), "sections": shown}
