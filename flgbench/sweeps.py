"""Sweeps: a method again with other values of its settings, as further cells of the same plan. Without torch.

An ablation is a named sweep that a distribution registers in the group `flgbench.ablations`: a function of the family's
preset that returns an `Ablation`. Any setting can be swept without one (`--set METHOD.SETTING=A,B,C`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from pydantic import Field

from flgbench.errors import UsageError
from flgbench.settings import Settings, parse_assignments

BUDGET = "budget"  # the axis that is no setting of a method: network passes of its training


class Variant(Settings):
    """One point of a sweep: `method` with `settings` over those of the run."""

    sweep: str
    method: str
    point: dict[str, Any] = Field(description="axis -> value, as tables and figures call them")
    settings: dict[str, Any] = Field(default_factory=dict)
    budget: float | None = Field(None, gt=0)

    @property
    def name(self) -> str:
        """How the cell is called: 'METHOD@alpha=0.5'."""
        return f"{self.method}@" + ",".join(f"{axis}={_text(value)}" for axis, value in self.point.items())


@dataclass(frozen=True)
class Axis:
    """`choices`: value as it is shown -> what it sets, by dotted path below the method (or `budget`)."""

    name: str
    choices: Mapping[Any, Mapping[str, Any]]


def axis(name: str, path: str, values: Sequence[Any]) -> Axis:
    """An axis along one setting."""
    return Axis(name, {value: {path: value} for value in values})


@dataclass(frozen=True)
class Ablation:
    """A sweep over the product of `axes`. `elsewhere`: points of it that another method makes."""

    name: str
    method: str
    axes: Sequence[Axis]
    elsewhere: Sequence[Variant] = field(default_factory=tuple)

    def variants(self) -> list[Variant]:
        """Every point of the grid."""
        found = []
        for choice in product(*(a.choices.items() for a in self.axes)):
            point = {a.name: value for a, (value, _) in zip(self.axes, choice, strict=True)}
            values: dict[str, Any] = {}
            for _, sets in choice:
                values |= sets
            budget = values.pop(BUDGET, None)
            found.append(Variant(sweep=self.name, method=self.method, point=point, settings=nested(values), budget=budget))
        return [*found, *self.elsewhere]

    def with_values(self, values: Sequence[Any]) -> Ablation:
        """The same sweep over other `values` of its one axis. Raises UsageError where it has several, or none such."""
        if len(self.axes) != 1:
            names = ", ".join(a.name for a in self.axes)
            raise UsageError(f"--values: ablation '{self.name}' has several axes ({names}): use --set instead")
        if len(set(values)) < len(values):
            raise UsageError(f"--values {','.join(map(_text, values))}: a value is given twice")
        (only,) = self.axes
        known = dict(only.choices)
        paths = {path for sets in known.values() for path in sets}
        for value in values:
            if value not in known and (len(paths) != 1 or not isinstance(value, int | float)):
                raise UsageError(f"--values {value}: ablation '{self.name}' knows {', '.join(map(_text, known))}")
        chosen = {v: known.get(v) or dict.fromkeys(paths, v) for v in values}
        return replace(self, axes=(Axis(only.name, chosen),), elsewhere=())


def of_assignments(assignments: Sequence[str]) -> tuple[list[Ablation], list[str]]:
    """`["m.lr=1e-5,1e-4", "m.steps=2"]` -> one sweep over the product of all lists, and the assignments without any.

    Raises UsageError for lists that belong to several methods.
    """
    lists: dict[str, list[Any]] = {}
    plain = []
    for assignment in assignments:
        path, _, text = assignment.partition("=")
        if "," in text and not text.lstrip().startswith(("[", "{", '"')):
            lists[path.strip()] = [_value(part) for part in text.split(",")]
        else:
            plain.append(assignment)
    if not lists:
        return [], plain
    methods = {path.partition(".")[0] for path in lists}
    if len(methods) > 1:
        raise UsageError(f"--set: one sweep is of one method, not of {', '.join(sorted(methods))}: run them one by one")
    for path in lists:  # the same complaints as everywhere about a path that is none
        parse_assignments([f"{path}=0"])
    (method,) = methods
    below = {path.partition(".")[2]: values for path, values in lists.items()}
    return [Ablation("+".join(below), method, [axis(path, path, values) for path, values in below.items()])], plain


def values_of(text: str) -> list[Any]:
    """`"0,0.25"` -> `[0, 0.25]`. Raises UsageError for an empty value."""
    return [_value(part) for part in text.split(",")]


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """`{"match.beta2": 0}` -> `{"match": {"beta2": 0}}`."""
    found: dict[str, Any] = {}
    for path, value in values.items():
        *groups, last = path.split(".")
        place = found
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value
    return found


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`, group by group."""
    both = {
        k: merged(below[k], v) if isinstance(v, Mapping) and isinstance(below.get(k), Mapping) else v
        for k, v in above.items()
    }
    return {**below, **both}


def _value(text: str) -> Any:
    if not text.strip():
        raise UsageError(f"an empty value in a list of values: {text!r} stands between two commas")
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text.strip()


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
