"""Ablations: each sweep of a method's settings as a table, beside the method as it is, the teacher and the paper."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from reports import paper_numbers
from reports.aggregates import Estimate, estimate, nominal, paired_difference
from reports.catalogue import BY_KEY, HEADLINE, Shown, times
from reports.data import Cell, RunData
from reports.tables import Column, Entry, Row, Table, write

SHOWN = tuple(BY_KEY[key] for key in (HEADLINE, "motion_ratio", "turn_error", "sharpness_ratio", "turn_diversity"))
TITLES = {
    "alpha": "Stage II: distillation against ground truth (Table 4)",
    "beta2": "Guidance of the dense over the pruned teacher (Table 5)",
    "beta1": "Guidance over the negative caption",
    "guidance": "Both guidances",
    "keep": "Share of blocks kept (Table 7)",
    "steps": "Passes of the student",
    "steps-keep": "Steps and size (Figure 1)",
    "teacher": "Strength of the teacher",
    "budget": "Length of the training",
}


def build(run: RunData, out: Path) -> list[Path]:
    """One table a sweep: tables/sweep-NAME.md, .csv and .tex; [] for a run without sweeps."""
    found = []
    for name in names(run):
        there = [out / "tables" / f"{stem(name)}{end}" for end in (".md", ".csv", ".tex")]
        found += there if all(p.exists() for p in there) else write([table(run, name)], out / "tables", stem(name))
    return found


def names(run: RunData) -> list[str]:
    """The sweeps of a run, in its order."""
    return list(dict.fromkeys(v.sweep for v in run.variants))


def title(sweep: str) -> str:
    return TITLES.get(sweep, sweep)


def points(run: RunData, sweep: str) -> list[Cell]:
    """The variants of one sweep, in its order; of several trainings the first."""
    return [v for v in run.variants if v.sweep == sweep and v.repeat == 0]


def tables(run: RunData) -> list[Table]:
    """One table a sweep."""
    return [table(run, name) for name in names(run)]


def told(value: Any) -> str:
    """A setting as it is printed."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def paper_value(variant: Cell) -> str:
    """The paper's average at this point, empty where none is known."""
    place = paper_numbers.place_of(variant)
    found = [r for r in paper_numbers.load() if (r["table"], r["row"]) == place and r["metric"] == "average"]
    return found[0]["value"] if found else ""


def base(run: RunData, sweep: str) -> Cell | None:
    """The method of a sweep with its settings as they are in this run."""
    method = points(run, sweep)[0].method
    return next((c for c in run.cells if c.method == method and c.repeat == 0), None)


def table(run: RunData, sweep: str) -> Table:
    """The points of one sweep; the difference is to the method as it is, paired by condition."""
    own = base(run, sweep)
    variants = points(run, sweep)
    has_paper = any(paper_numbers.place_of(v) for v in variants)
    columns = [
        Column("nfe", "NFE", meaning="network passes for one clip; guidance counts two"),
        Column("kept", "Kept", "blocks", meaning="share of the teacher's blocks that remain"),
        Column("nominal", "Nominal", "speed-up", "↑", "NFE × kept blocks, reference over this one: arithmetic"),
        *(Column(s.key, s.title, s.unit, s.arrow, s.meaning) for s in SHOWN),
        Column(
            "difference",
            "Difference",
            "points",
            "↑",
            "joint accuracy minus that of the method as it is, by condition",
        ),
        *(
            (
                Column(
                    "paper",
                    "Paper",
                    "average",
                    meaning="VBench average of the paper: another model, other data, another scale",
                ),
            )
            if has_paper
            else ()
        ),
    ]
    beside = [c for c in (run.reference, own) if c is not None]
    rows = [_row(run, c, c.label, own, has_paper) for c in beside]
    rows += [_row(run, v, ", ".join(f"{k} = {told(x)}" for k, x in v.point.items()), own, has_paper) for v in variants]
    legend = (
        "Brackets: 95 % intervals, clustered by condition. One student was trained for each row: they do not tell how much "
        "another training would differ. The nominal speed-up is arithmetic, as in the paper's Figure 1."
    )
    caption = f"{title(sweep)}. Everything else as in the row without a value."
    return Table(stem(sweep), title(sweep), caption, tuple(columns), tuple(rows), legend)


def _row(run: RunData, cell: Cell, label: str, own: Cell | None, has_paper: bool) -> Row:
    if cell.failed:
        failed = Entry(note=f"{cell.status}: {cell.reason or 'no reason recorded'}")
        keys = ["nfe", "kept", "nominal", *(s.key for s in SHOWN), "difference", "paper"]
        return Row(cell.cell, label, cell.kind, dict.fromkeys(keys, failed))
    up = nominal(run, cell)
    entries = {
        "nfe": Entry(str(cell.nfe), float(cell.nfe)) if cell.nfe else Entry(note="not recorded"),
        "kept": Entry(f"{100 * cell.kept_blocks:.0f} %", cell.kept_blocks)
        if cell.kept_blocks
        else Entry(note="not recorded"),
        "nominal": Entry(times(up.value), up.value) if up.value else Entry(note=up.reason),
        **{s.key: entry(s, estimate(run, cell.cell, s.key)) for s in SHOWN},
        "difference": _difference(run, cell, own),
    }
    if has_paper:
        value = paper_value(cell) if cell.kind == "variant" else ""
        entries["paper"] = Entry(value, float(value)) if value else Entry(note="not known")
    return Row(cell.cell, label, cell.kind, entries)


def entry(shown: Shown, found: Estimate) -> Entry:
    """An estimate as tables print it."""
    low, high = (shown.text(x) if found.has_interval else "" for x in (found.low, found.high))
    return Entry(shown.text(found.value), found.value, found.low, found.high, low, high, found.n or None, found.reason)


def _difference(run: RunData, cell: Cell, own: Cell | None) -> Entry:
    if own is None:
        return Entry(note="the method itself is not in this run")
    if same_clips(cell, own):
        return Entry(note="itself")
    found = paired_difference(run, cell.cell, own.cell, HEADLINE)
    if found is None:
        return Entry(note="fewer than two conditions in common")
    value, low, high = (f"{100 * x:+.1f}".replace("-", "−") for x in (found.value, found.low, found.high))
    return replace(Entry(value, found.value, found.low, found.high, low, high), n=found.n)


def same_clips(a: Cell, b: Cell) -> bool:
    """Whether two rows show the same clips: of one cell, or of the same trained network sampled in the same way."""
    made = [(c.stages, c.sampler, c.num_inference_steps, c.guidance_scale, c.nfe) for c in (a, b)]
    return a.cell == b.cell or (bool(a.stages) and made[0] == made[1])


def stem(sweep: str) -> str:
    """Name of its files: what is neither letter, digit nor dot becomes a dash."""
    return "sweep-" + "".join(c if c.isalnum() or c == "." else "-" for c in sweep)
