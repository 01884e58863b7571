"""Names to classes, lazily: an entry is "module:Class" and nothing is imported before it is used."""

from __future__ import annotations

import ast
import difflib
import importlib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flgbench.errors import UsageError

SINGULAR = {
    "methods": "method",
    "baselines": "baseline",
    "families": "family",
    "metrics": "metric",
    "reports": "report",
    "ablations": "ablation",
    "searches": "search",
}
KINDS = tuple(SINGULAR)

CONTROL = "control_"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """How an error about an unknown name goes on: a suggestion, or the full stop."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f": did you mean '{close[0]}'?" if close else "."


class Registry:
    """Everything of one kind: the entry points of group `flgbench.<kind>` plus what `register` adds."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._targets: dict[str, str] = {}
        self._owners: dict[str, str] = {}
        for entry in entry_points(group=f"flgbench.{kind}"):
            owner = entry.dist.name if entry.dist else "unknown"
            # An editable and a plain install of one distribution may both list an entry; that is no conflict.
            if self._targets.get(entry.name) != entry.value or self._owners[entry.name] != owner:
                self.register(entry.name, entry.value, owner)

    def register(self, name: str, target: str, owner: str = "this process") -> None:
        """Add `name` -> "module:Class". Raises UsageError, naming both owners, when the name is taken."""
        if name in self._targets:
            raise UsageError(
                f"{self.kind}: '{name}' is registered twice, by {self._owners[name]} ({self._targets[name]}) "
                f"and by {owner} ({target}): rename one"
            )
        self._targets[name], self._owners[name] = target, owner

    def names(self) -> list[str]:
        return sorted(self._targets)

    def groups(self) -> dict[str, list[str]]:
        """What `all`, `controls` and `none` stand for: controls are named `control_...` and run only when asked for."""
        controls = [name for name in self.names() if name.startswith(CONTROL)]
        return {"all": [name for name in self.names() if name not in controls], "controls": controls, "none": []}

    def check(self, name: str) -> str:
        if name not in self._targets:
            raise UsageError(
                f"no {SINGULAR[self.kind]} '{name}'{did_you_mean(name, self._targets)} Known: {', '.join(self.names())}"
            )
        return name

    def get(self, name: str) -> Any:
        """The registered class. Raises UsageError with suggestions for an unknown name."""
        return resolve(self._targets[self.check(name)])

    def describe(self, name: str) -> str:
        """First docstring line of the target, read from its source without importing it."""
        module, _, attribute = self._targets[self.check(name)].partition(":")
        spec = find_spec(module)
        if spec is None or not spec.origin:
            return ""
        tree = ast.parse(Path(spec.origin).read_text())
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == attribute:
                text = ast.get_docstring(node)
                if text:
                    return text.splitlines()[0]
        return (ast.get_docstring(tree) or "").splitlines()[0] if ast.get_docstring(tree) else ""


def resolve(target: str) -> Any:
    """Import "module:Class"."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def target_of(cls: type) -> str:
    """The "module:Class" text that `resolve` turns back into `cls`."""
    return f"{cls.__module__}:{cls.__qualname__}"


@cache
def registry(kind: str) -> Registry:
    """The one registry of a kind, of `KINDS`."""
    return Registry(kind)


def family_of(settings: Mapping[str, Any]) -> Any:
    """The family that the settings of a run or step name, at the checkpoint that they name."""
    return registry("families").get(settings["model"])(settings.get("checkpoint"), settings.get("revision"))
