"""The paper's tables with our rows beneath: a file each, rows and columns in its order, for a reader who has it open."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from reports.data import RunData
from reports.paper_numbers import PaperNumber, beside
from reports.tables import Column, Entry, Row, Table, write

TITLES = {
    "Table 1": "Open video models and FastLightGen",
    "Table 2": "Step distillation, pruning and both, WanX-TI2V",
    "HunyuanVideo table": "Step distillation, pruning and both, HunyuanVideo-ATI2V",
    "Table 4": "Stage II: weight alpha of distillation",
    "Table 5": "Guidance beta2 of the dense over the pruned teacher",
    "Table 7": "Pruning ratio, HunyuanVideo",
    "Figure 1": "Steps and size",
    "Speed": "Speed-ups",
}
LEGEND = (
    "Each row of the paper, and ours under it: the nearest measure of this run, named in its footnote. The full paper was "
    "not at hand; confidence of its numbers: P primary, S secondary source, CALC arithmetic on those. A dash of the paper "
    "is a number that was not found. None of ours may be compared with it: the question is shared, the scale is not."
)
COMPARABLE, CONFIDENCE = Column("comparable", "Comparable?"), Column("confidence", "Confidence")


def build(run: RunData, out: Path) -> list[Path]:
    """The paper's tables with ours beneath: tables/paper-table-2.md, .csv, .tex, and so on for each."""
    return [path for table in tables(beside(run)) for path in write([table], out / "tables", table.name)]


def stem(name: str) -> str:
    """'paper-table-2' for 'Table 2'."""
    return f"paper-{re.sub('[^a-z0-9]+', '-', name.lower())}"


def tables(numbers: Iterable[PaperNumber]) -> list[Table]:
    """One table for each of the paper's, in the order of `numbers`."""
    by_table: dict[str, list[PaperNumber]] = {}
    for number in numbers:
        by_table.setdefault(number.table, []).append(number)
    return [_table(name, found) for name, found in by_table.items()]


def _table(name: str, numbers: list[PaperNumber]) -> Table:
    metrics = list(dict.fromkeys(n.metric for n in numbers))
    by_row: dict[str, dict[str, PaperNumber]] = {}
    for number in numbers:
        by_row.setdefault(number.row, {})[number.metric] = number
    rows = [row for label, found in by_row.items() for row in _rows(label, found, metrics)]
    words = {m: m.capitalize().partition("_") for m in metrics}  # a narrow heading: the second word under the first
    columns = (*(Column(m, first, rest) for m, (first, _, rest) in words.items()), COMPARABLE, CONFIDENCE)
    title = f"{name} of the paper: {TITLES[name]}" if name in TITLES else f"{name} of the paper"
    return Table(stem(name), title, f"{title}.", columns, tuple(rows), LEGEND)


def _rows(label: str, found: dict[str, PaperNumber], metrics: list[str]) -> list[Row]:
    """The paper's row and ours."""
    first = next(iter(found.values()))
    known = [n for n in found.values() if n.value]
    told = "; ".join(part for part in (first.source, first.protocol, first.hardware, first.note) if part)
    none = Entry(note="not among the paper's numbers")
    paper = {m: Entry(text=found[m].value) if m in found else none for m in metrics}
    paper |= {COMPARABLE.key: Entry(), CONFIDENCE.key: Entry(text=known[0].confidence if known else "", note=told)}
    ours = {m: _ours(found[m]) if m in found else none for m in metrics}
    answers = dict.fromkeys((n.comparable, n.why) for n in found.values() if n.comparable)
    why = "; ".join(why for _, why in answers)
    ours |= {COMPARABLE.key: Entry(text="no", note=why) if answers else Entry(), CONFIDENCE.key: Entry()}
    # Of one kind: LaTeX leaves room between kinds.
    return [Row(f"{label}:paper", label, label, paper), Row(f"{label}:ours", f"{label}, ours", label, ours)]


def _ours(number: PaperNumber) -> Entry:
    """Our number: its interval apart, its footnote naming the measure; or why there is none."""
    if not number.ours:
        return Entry(note=number.why)
    value, _, interval = number.ours.partition(" [")
    low, _, high = interval.rstrip("]").partition(", ")
    return Entry(text=value, low_text=low, high_text=high, note=f"our measure: {number.our_metric}")
