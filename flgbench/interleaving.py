"""Which cell is timed when: condition by condition in changing order, slow cells in every other condition. No torch."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping, Sequence

SELDOM = 2  # conditions from one clip of a slow cell to the next


def seldom_timed(passes: Mapping[str, int], reference: str | None) -> set[str]:
    """The slow cells among `passes` (name -> NFE): a third of the reference's NFE and more, but for the reference.

    Their clip is the mean of so many passes that it varies little, and they take most of the time.
    """
    least = passes.get(reference or "", 0) / 3
    return {name for name, count in passes.items() if name != reference and count >= least > 0}


def timed_clips(passes: Mapping[str, int], reference: str | None, conditions: int) -> dict[str, int]:
    """How many clips of each cell `interleaved` has over `conditions`."""
    seldom = seldom_timed(passes, reference)
    return {name: len(range(0, conditions, SELDOM if name in seldom else 1)) for name in passes}


def interleaved(cells: Sequence[str], conditions: int, seldom: Collection[str] = ()) -> Iterator[tuple[int, str]]:
    """(condition, cell): condition by condition, the cells each time in another order (seeded), so that drift hits all.

    Those of `seldom` are there in every other condition only, from the first on.
    """
    order, names = random.Random(0), list(cells)
    for condition in range(conditions):
        order.shuffle(names)
        yield from ((condition, name) for name in names if name not in seldom or condition % SELDOM == 0)
