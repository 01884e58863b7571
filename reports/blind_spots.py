"""What each measure notices, what it is blind to, and what makes it better than it should be.

From the committed result of `flgbench check-metrics` (`blind_spots.csv`), which a test holds to the code; not from this run.
"""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

from reports.catalogue import BY_KEY
from reports.data import RunData
from reports.tables import Column, Entry, Row, Table

FILE = Path(__file__).with_name("blind_spots.csv")
SEEN = ("caught", "blind", "wrong way")
HEADINGS = ("Notices", "Blind to", "Better under")


@cache
def findings() -> dict[str, dict[str, list[str]]]:
    """Measure -> 'caught', 'blind' or 'wrong way' -> kinds of damage."""
    found: dict[str, dict[str, list[str]]] = {}
    with FILE.open(newline="") as file:
        for line in csv.DictReader(file):
            if line["corruption"] != "none":
                kinds = found.setdefault(line["measure"], {seen: [] for seen in SEEN})
                kinds[line["seen"]].append(line["corruption"])
    return found


def build(run: RunData, out: Path) -> list[Path]:
    """What each measure notices and does not: tables/blind_spots.md."""
    path = out / "tables" / "blind_spots.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(table().markdown(), encoding="utf-8")
    return [path]


def table() -> Table:
    """One row a measure, in the order of the tables."""
    known = findings()
    columns = tuple(Column(seen, heading) for seen, heading in zip(SEEN, HEADINGS, strict=True))
    rows = []
    for key in [key for key in BY_KEY if key in known]:
        entries = {seen: Entry(", ".join(known[key][seen]) or "nothing") for seen in SEEN}
        rows.append(Row(key, BY_KEY[key].title, "measure", entries))
    caption = "What the measures see of 64 real clips damaged in known ways (flgbench check-metrics)."
    legend = "Notices: worse than undamaged, beyond the 95 % interval of the change. No measure sees everything."
    return Table("blind_spots", "Blind spots", caption, columns, tuple(rows), legend)
