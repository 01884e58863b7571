"""Steps to job arrays: a pure function. Every task of an array has the same resources and the same kind of dependency.

SLURM gives one dependency to a whole array. So that one failed parent never stops another task, an array is made only
of steps that wait for the same steps, or of steps that each wait for the task of the same index in an earlier array.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from flgbench.plan import Plan
from flgbench.settings import digest
from slurm.profiles import Profile, Resources

LARGEST = 1000  # tasks of an array; SLURM's usual limit is 1001


@dataclass(frozen=True)
class Array:
    """Steps submitted at once. All wait for `after`; task i also for task i of array number `corresponding`."""

    kind: str
    keys: tuple[str, ...]
    resources: Resources
    after: tuple[str, ...] = ()
    corresponding: int | None = None


def group(plan: Plan, pending: Collection[str], profile: Profile, queued: Collection[str] = ()) -> list[Array]:
    """Arrays for the steps in `pending`, parents first. Parents in neither `pending` nor `queued` count as done."""
    chosen, open_parents = set(pending), {*pending, *queued}
    waits = {k: open_parents.intersection(step.inputs.values()) for k, step in plan.steps.items() if k in chosen}
    resources = {kind: profile.resources(kind) for kind in {plan.steps[k].kind for k in waits}}
    depth: dict[str, int] = {}
    for key, parents in waits.items():
        depth[key] = 1 + max((depth[p] for p in parents if p in depth), default=-1)
    shapes = _shapes(plan, waits)

    levels: dict[tuple[int, str], list[str]] = defaultdict(list)
    for key in waits:
        levels[depth[key], shapes[key]].append(key)
    arrays: list[Array] = []
    home: dict[str, tuple[int, int]] = {}  # step -> (array, index in it)
    for (_, _), keys in sorted(levels.items(), key=lambda item: item[0][0]):
        kind = plan.steps[keys[0]].kind
        for members, after, corresponding in _split(keys, waits, home, arrays):
            for start in range(0, len(members), LARGEST) if corresponding is None else (0,):
                part = members[start : start + LARGEST]
                home |= {key: (len(arrays), index) for index, key in enumerate(part)}
                arrays.append(Array(kind, tuple(part), resources[kind], tuple(sorted(after)), corresponding))
    return arrays


def _shapes(plan: Plan, waits: dict[str, set[str]]) -> dict[str, str]:
    """For each step what follows it: steps of one shape have alike chains, which can go on index to index."""
    children: dict[str, list[str]] = defaultdict(list)
    for key, parents in waits.items():
        for parent in parents:
            children[parent].append(key)
    shapes: dict[str, str] = {}
    for key in reversed(list(waits)):
        shapes[key] = digest([plan.steps[key].kind, sorted({shapes[c] for c in children[key]})])
    return shapes


def _split(
    keys: list[str], waits: dict[str, set[str]], home: dict[str, tuple[int, int]], arrays: list[Array]
) -> Iterable[tuple[list[str], set[str], int | None]]:
    """Parts of `keys` that may form an array: (steps, what all wait for, array to follow index to index)."""
    common = set.intersection(*(waits[k] for k in keys))
    by_array: dict[int, dict[int, str]] = defaultdict(dict)
    rest: dict[frozenset[str], list[str]] = defaultdict(list)
    for key in keys:
        own = waits[key] - common
        place = home.get(next(iter(own))) if len(own) == 1 else None
        if place and place[1] not in by_array[place[0]]:
            by_array[place[0]][place[1]] = key
        else:
            rest[frozenset(own)].append(key)
    for array, tasks in by_array.items():
        if len(tasks) > 1 and len(tasks) == len(arrays[array].keys):
            yield [tasks[i] for i in sorted(tasks)], common, array
        else:
            for key in tasks.values():
                rest[frozenset(waits[key] - common)].append(key)
    for own_parents, members in rest.items():
        yield members, common | own_parents, None
