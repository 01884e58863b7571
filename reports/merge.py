"""Several runs as one report: what belongs together, and what must be kept apart.

Runs that differ by nothing but the seed are one group: their students are trainings of the same methods. Groups whose
quality may be compared stand in one section; a section says which fields keep it apart from the first.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from reports.catalogue import LATENCY_KEYS, MEMORY
from reports.comparable import runs_apart
from reports.data import Cell, Gallery, RunData, RunInfo

SEEDS = ("seed", "seeds")


@dataclass(frozen=True)
class Member:
    """One of the runs, with the letter that it has in tables."""

    letter: str
    run: RunData


@dataclass(frozen=True)
class Group:
    """Runs that differ by the seed only; `run` is all of them as one, with a cell for each training."""

    members: tuple[Member, ...]
    run: RunData

    @property
    def letters(self) -> str:
        return ", ".join(m.letter for m in self.members)

    @property
    def family(self) -> str:
        return str(self.run.run.settings.get("model", "not recorded"))

    @property
    def scale(self) -> str:
        return str(self.run.run.settings.get("scale", "not recorded"))


@dataclass(frozen=True)
class Section:
    """Groups whose quality may be compared. `apart`: what keeps them apart from the first section, '' of the first."""

    groups: tuple[Group, ...]
    apart: tuple[str, ...] = ()


def merge(runs: Sequence[RunData]) -> list[Section]:
    """The runs in sections, in their order. Each run belongs to one group of one section."""
    members = [Member(letter(i), run) for i, run in enumerate(runs)]
    together: list[list[Member]] = []
    for member in members:
        home = next((g for g in together if _only_seeds(g[0].run, member.run)), None)
        if home is None:
            together.append([member])
        else:
            home.append(member)
    found: list[list[Group]] = []
    for group in (Group(tuple(g), joined(g)) for g in together):
        home_ = next((s for s in found if not runs_apart(s[0].members[0].run, group.members[0].run)), None)
        if home_ is None:
            found.append([group])
        else:
            home_.append(group)
    first = found[0][0].members[0].run
    return [Section(tuple(g), tuple(runs_apart(first, g[0].members[0].run)) if i else ()) for i, g in enumerate(found)]


def letter(index: int) -> str:
    """A, B, …, Z, AA, AB, …"""
    letters = string.ascii_uppercase
    return letters[index] if index < 26 else letters[index // 26 - 1] + letters[index % 26]


def _only_seeds(a: RunData, b: RunData) -> bool:
    """True when the second run could have been the first with another seed."""
    mine, other = ({k: v for k, v in run.run.settings.items() if k not in SEEDS} for run in (a, b))
    return bool(mine) and mine == other and not runs_apart(a, b)


def joined(members: Sequence[Member]) -> RunData:
    """Runs of one group as one run: cells of the first, then every student that another run trained with another seed.

    Latency is the first run's: the others' students have the same networks, and were timed at another time, perhaps on
    another machine. What is the same in all of them (samplers, controls, the same training) is taken once.
    """
    first = members[0].run
    if len(members) == 1:
        return first
    cells, variants, parts = list(first.cells), list(first.variants), [first.results]
    curves = dict(first.curves)
    videos = dict(first.gallery.videos) if first.gallery else {}
    for member in members[1:]:
        run = member.run
        for cell in (*run.cells, *run.variants):
            here = variants if cell.kind == "variant" else cells
            if cell.kind not in ("method", "variant") or any(_same_student(cell, c) for c in here):
                continue
            name, repeat = _named(run, cell, here)
            old = next((c for c in here if c.cell == cell.cell), cell)
            label = cell.label if repeat == 0 else f"{old.label}, {name.rpartition('-')[2].replace('seed', 'seed ')}"
            here.append(cell.model_copy(update={"cell": name, "repeat": repeat, "label": label}))
            parts.append(_quality(run, cell, name, members[0]))
            curves |= {f"{name}.{k.partition('.')[2]}": c for k, c in run.curves.items() if k.partition(".")[0] == cell.cell}
            if run.gallery and first.gallery and cell.cell in run.gallery.videos:
                videos[name] = run.gallery.videos[cell.cell]
    known = {s.key for s in first.steps}
    steps = [*first.steps, *(s for m in members[1:] for s in m.run.steps if s.key not in known)]
    return replace(
        first,
        run=_told(members),
        cells=tuple(cells),
        variants=tuple(variants),
        steps=tuple({s.key: s for s in steps}.values()),
        results=pd.concat(parts, ignore_index=True),
        curves=curves,
        gallery=Gallery(first.gallery.conditions, videos) if first.gallery else None,
        memory={},
    )


def _same_student(a: Cell, b: Cell) -> bool:
    """The same stages with the same keys: the same weights. Without stages nothing was trained, so the name decides."""
    keys = [[s.key for s in cell.stages] for cell in (a, b)]
    return (a.method, a.sweep, a.point) == (b.method, b.sweep, b.point) and keys[0] == keys[1]


def _named(run: RunData, cell: Cell, here: Sequence[Cell]) -> tuple[str, int]:
    """Name and number of a training among those that are there, as `--seeds` gives them: 'dmd2-seed1'."""
    others = [c for c in here if (c.method, c.sweep, c.point) == (cell.method, cell.sweep, cell.point)]
    if not others:
        return cell.cell, 0
    taken = {c.cell for c in here}
    first = min(others, key=lambda c: c.repeat).cell
    seed = int(run.run.settings.get("seed", 0)) + cell.repeat
    names = (f"{first}-seed{seed}{'' if i == 0 else f'-{i}'}" for i in range(len(taken) + 1))
    return next(n for n in names if n not in taken), max(c.repeat for c in others) + 1


def _quality(run: RunData, cell: Cell, name: str, timed: Member) -> pd.DataFrame:
    """Rows of one cell under its new name; its latencies are missing, with the reason."""
    rows = run.results[run.results["cell"] == cell.cell].assign(cell=name)
    speed = rows["metric"].isin([*LATENCY_KEYS, MEMORY.key])
    first = rows[speed].drop_duplicates("metric")
    reason = f"not timed here: {timed.letter} timed the network of {cell.method}"
    hidden = first.assign(condition=-1, sample=0, value=np.nan, status="missing", reason=reason)
    return pd.concat([rows[~speed], hidden])


def _told(members: Sequence[Member]) -> RunInfo:
    """What is said of a group: what all its runs share, and the span of their times."""
    told = [m.run.run for m in members]
    shared = {k: v for k, v in told[0].environment.items() if all(t.environment.get(k) == v for t in told)}
    seconds = [t.seconds for t in told if t.seconds is not None]
    finished = [t.finished for t in told]
    return told[0].model_copy(
        update={
            "name": " + ".join(t.name for t in told),
            "command": "\n".join(dict.fromkeys(t.command for t in told if t.command)),
            "environment": shared,
            "settings": told[0].settings | {"seed": [t.settings.get("seed") for t in told]},
            "started": min((t.started for t in told if t.started), default=None),
            "finished": None if None in finished else max(f for f in finished if f),
            "seconds": sum(seconds) if len(seconds) == len(told) else None,
        }
    )
