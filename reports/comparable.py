"""What of two runs may be compared: cells whose evaluation cards agree, latencies timed on the same hardware and software.

Every refusal names the field and both of its values.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from flgbench.metrics.table import METRICS, SET_METRICS
from reports.aggregates import ordered_cells
from reports.data import Cell, RunData
from reports.verdicts import differences

HARDWARE = ("cpu", "threads", "gpu", "torch", "diffusers")  # of run.json's environment, what a latency depends on
A, B = "A", "B"


class NotComparableError(ValueError):
    """No cell of the two runs can be compared; the message says why, in one line."""


@dataclass(frozen=True)
class Pair:
    """One cell name in two runs. `apart` says which fields forbid a comparison of quality; empty when none does."""

    a: Cell | None
    b: Cell | None
    apart: tuple[str, ...] = ()
    same: bool = False  # every quality number is equal: nothing was measured again

    @property
    def cell(self) -> Cell:
        found = self.a or self.b
        assert found is not None
        return found

    @property
    def both(self) -> bool:
        return self.a is not None and self.b is not None


def told(run: RunData) -> str:
    """A run as a reader finds it again: name, start, commit."""
    commit = run.run.environment.get("commit")
    parts = (run.run.name, run.run.started or "", f"commit {commit}" if commit else "")
    return ", ".join(p for p in parts if p)


def pairs(a: RunData, b: RunData) -> list[Pair]:
    """Every cell of either run, in the main table's order, A's first."""
    in_b = {c.cell: c for c in b.cells}
    found = [Pair(c, in_b.get(c.cell)) for c in ordered_cells(a)]
    names = {c.cell for c in a.cells}
    found += [Pair(None, c) for c in ordered_cells(b) if c.cell not in names]
    return [_judged(a, b, p) for p in found]


def _judged(a: RunData, b: RunData, pair: Pair) -> Pair:
    if pair.a is None or pair.b is None:
        return pair
    apart = tuple(_apart(a, b, pair.a, pair.b))
    return replace(pair, apart=apart, same=not apart and _identical(a, b, pair.cell.cell))


def _apart(a: RunData, b: RunData, mine: Cell, other: Cell) -> list[str]:
    """Fields that forbid a comparison of two cells' quality, as 'torch: 2.13 and 2.14'."""
    named = (("family", "model"), ("scale", "scale"))
    fields = [(name, a.run.settings.get(key), b.run.settings.get(key)) for name, key in named]
    fields.append(("teacher weights", _key(a, "teacher"), _key(b, "teacher")))
    for kind in ("sample", "quality"):
        before, after = (_version(_key(run, kind, mine.cell)) for run in (a, b))
        fields.append((f"version of {'the measures' if kind == 'quality' else 'sampling'}", before, after))
    found = [f"{name}: {x} and {y}" for name, x, y in fields if x and y and x != y]
    if mine.failed or other.failed:
        return found
    # Within a run an unknown field forbids nothing; two runs that do not tell their conditions may have any.
    silent = [label for label, c in ((A, mine), (B, other)) if not c.card.get("conditions_sha256")]
    return found + [f"conditions of {label}: not recorded" for label in silent] + differences(mine, other)


def runs_apart(a: RunData, b: RunData) -> list[str]:
    """Fields that forbid a comparison of quality between two runs, from the cells that both have finished.

    Runs that have no finished cell in common are told apart by family, scale and teacher alone.
    """
    common = [p for p in pairs(a, b) if p.both]
    finished = [p for p in common if p.a and p.b and not (p.a.failed or p.b.failed)] or common
    if not finished and a.cells and b.cells:
        return _apart(a, b, a.cells[0], b.cells[0])
    return list(dict.fromkeys(reason for p in finished for reason in p.apart))


def _key(run: RunData, kind: str, cell: str = "") -> str:
    """Key of the run's (or of one cell's) step of a kind; '' when there is none."""
    return next((s.key for s in run.steps if s.kind == kind and (not cell or cell in s.cells)), "")


def _version(key: str) -> str:
    found = re.search(r"-v(\d+)-[0-9a-f]+$", key)
    return found.group(1) if found else ""


def _identical(a: RunData, b: RunData, cell: str) -> bool:
    """True when every quality number of the cell is equal in both runs."""
    keys = ["metric", "condition", "sample"]
    found = []
    for run in (a, b):
        table = run.results[(run.results["cell"] == cell) & run.results["metric"].isin([*METRICS, *SET_METRICS])]
        found.append(table.set_index(keys)["value"].sort_index())
    return bool(len(found[0])) and found[0].equals(found[1])


def hardware_apart(a: RunData, b: RunData) -> list[str]:
    """Why no latency of A may be compared with one of B; empty when hardware and software agree and are known."""
    facts = [run.run.environment | {"timing threads": run.run.settings.get("threads")} for run in (a, b)]
    if not all(f.get("cpu") or f.get("gpu") for f in facts):
        return ["hardware: not recorded"]
    names = (*HARDWARE, "timing threads")
    told = ((n, facts[0].get(n), facts[1].get(n)) for n in names)
    return [f"{n}: {_spoken(x)} and {_spoken(y)}" for n, x, y in told if x != y]


def _spoken(value: object) -> str:
    return "not recorded" if value is None else str(value)


def settings_apart(a: RunData, b: RunData) -> list[str]:
    """What was run differently on purpose, as 'budget: 8000.0 and 16000.0'."""
    mine, other = a.run.settings, b.run.settings
    names = sorted(set(mine) | set(other))
    return [f"{n}: {_spoken(mine.get(n))} and {_spoken(other.get(n))}" for n in names if mine.get(n) != other.get(n)]


def check(a: RunData, b: RunData, found: list[Pair]) -> None:
    """Raise NotComparableError, which names the differing fields, unless some cell can be compared."""
    common = [p for p in found if p.both]
    if not common:
        raise NotComparableError(f"nothing to compare: {told(a)} and {told(b)} have no cell in common")
    finished = [p for p in common if not any(c is None or c.failed for c in (p.a, p.b))]
    if not finished:
        raise NotComparableError(f"nothing to compare: no cell is finished in both {told(a)} and {told(b)}")
    if all(p.apart for p in finished):
        why = "; ".join(dict.fromkeys(reason for p in finished for reason in p.apart))
        raise NotComparableError(
            f"nothing to compare: {len(finished)} cells are finished in both runs, all are refused: {why}"
        )


def why_not(pair: Pair) -> str:
    """Why there is no difference, whatever the measure; '' when nothing forbids one."""
    if not pair.both:
        return "only in A" if pair.a else "only in B"
    if pair.apart:
        return f"not compared: {'; '.join(pair.apart)}"
    assert pair.a is not None and pair.b is not None
    bad = [f"{n} {c.status}: {c.reason or 'no reason recorded'}" for n, c in ((A, pair.a), (B, pair.b)) if c.failed]
    return "; ".join(bad)
