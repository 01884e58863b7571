"""Frozen, strict settings; their canonical JSON; and `--set a.b=value`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from flgbench.errors import UsageError
from flgbench.registry import did_you_mean


class Settings(BaseModel):
    """Base of all settings: immutable, and an unknown key is an error.

    A field whose description starts with INFERRED is a default that no source states; reports list it as such.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def inferred(cls) -> dict[str, str]:
        """Field name -> description of every default marked INFERRED."""
        return {
            name: field.description
            for name, field in cls.model_fields.items()
            if field.description and field.description.startswith("INFERRED")
        }


SettingsT = TypeVar("SettingsT", bound=Settings)


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal settings give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """First 12 hex digits of the SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:12]


def parse_assignments(assignments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`["dmd2.lr=1e-5"]` -> `{"dmd2": {"lr": 1e-05}}`. Values are JSON; what is not JSON is text."""
    parsed: dict[str, dict[str, Any]] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        owner, dot, field = path.strip().partition(".")
        if not (equals and dot and owner and field):
            raise UsageError(f"--set {assignment}: expected METHOD.SETTING=VALUE, for example dmd2.student_lr=1e-5")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        if field in parsed.setdefault(owner, {}):
            raise UsageError(f"--set {owner}.{field} is given twice: keep one of them")
        parsed[owner][field] = value
    return parsed


def build_settings(cls: type[SettingsT], values: dict[str, Any], owner: str) -> SettingsT:
    """Validate `values`; the first problem becomes one line that names owner, setting and what would be right."""
    unknown = sorted(set(values) - set(cls.model_fields))
    if unknown:
        hint = did_you_mean(unknown[0], cls.model_fields)
        raise UsageError(f"{owner} has no setting '{unknown[0]}'{hint}. Settings: {', '.join(cls.model_fields)}")
    try:
        return cls(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        got = f", got {first['input']!r}" if where else ""
        raise UsageError(f"{owner}{'.' if where else ''}{where}: {first['msg']}{got}") from None
