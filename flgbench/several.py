"""One command for several families: `--model A,B`, their scales, and what is set of one of them alone. Without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flgbench.errors import UsageError
from flgbench.sweeps import merged


@dataclass(frozen=True)
class Chosen:
    """What a command says of one family."""

    model: str
    scale: str
    assignments: tuple[str, ...]


def each_family(
    model: str, scale: str, assignments: Sequence[str] = (), of_one: Mapping[str, Any] | None = None
) -> list[Chosen]:
    """The families of `--model` in their order, each with its scale and with its share of `--set`.

    `scale` is one for all, or one for each. An assignment is of all families, `FAMILY:METHOD.SETTING=VALUE` of one, where it
    goes over that of all. `of_one` are options, by name, that say something of a single teacher. Raises UsageError for a
    family that is unknown or given twice, a scale that it does not have, and options of one family where there are several.
    """
    from flgbench.registry import registry

    known = registry("families")
    names = [known.check(name.strip()) for name in model.split(",")]
    if len(set(names)) < len(names):
        raise UsageError(f"--model {model}: a family is given twice")
    scales = [text.strip() for text in scale.split(",")]
    if len(scales) not in (1, len(names)):
        raise UsageError(f"--scale {scale}: one for all families of --model {model}, or one for each in their order")
    if len(names) > 1:
        for option, value in (of_one or {}).items():
            if value:
                raise UsageError(f"--{option} is of one family: leave it out, or run {' and '.join(names)} one by one")
    scales *= len(names) // len(scales)
    for name, its in zip(names, scales, strict=True) if len(names) > 1 else ():  # of one family the plan asks the same
        if its not in (has := known.get(name).scales):
            raise UsageError(f"--scale {its}: family '{name}' has {', '.join(has)}")
    shares = {name: _share(name, assignments, names) for name in names}
    return [Chosen(name, its, shares[name]) for name, its in zip(names, scales, strict=True)]


def owner(path: str, names: Sequence[str]) -> tuple[str, str]:
    """`"FAMILY:METHOD.SETTING"` -> family ('' for all) and the rest. Raises UsageError for one not among `names`."""
    family, colon, rest = path.partition(":")
    if not colon:
        return "", path
    if family.strip() not in names:
        raise UsageError(f"--set {path}: '{family.strip()}' is not among the families of this run: {', '.join(names)}")
    return family.strip(), rest


def settings_of(settings: Mapping[str, Mapping[str, Any]], name: str, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What settings by method say of one of the families `names`: its own, below `FAMILY:METHOD`, over those for all."""
    found: dict[str, dict[str, Any]] = {}
    for key, values in sorted(settings.items(), key=lambda item: ":" in item[0]):
        family, method = owner(key, names)
        if family in ("", name):
            found[method] = merged(found.get(method, {}), values)
    return found


def _share(name: str, assignments: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """The assignments for one family: its own in the place of those for all."""
    common: list[tuple[str, str]] = []
    own: dict[str, str] = {}
    for assignment in assignments:
        path, equals, value = assignment.partition("=")
        family, rest = owner(path, names)
        if not family:
            common.append((path, assignment))
        elif family == name:
            if rest in own:
                raise UsageError(f"--set {path} is given twice: keep one of them")
            own[rest] = f"{rest}{equals}{value}"
    return (*(assignment for path, assignment in common if path not in own), *own.values())
