"""Frozen, strict settings; their canonical JSON; and `--set a.b=value`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer

from flgbench.errors import UsageError
from flgbench.registry import did_you_mean


class Settings(BaseModel):
    """Base of all settings: immutable, and an unknown key is an error.

    A field whose description starts with INFERRED is a default that no source states; reports list it as such.
    `later` names fields that came after artifacts had been made: while they have their defaults a dump leaves them out, so
    that those artifacts keep their keys.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    later: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        unset = {name for name in self.later if getattr(self, name) == fields[name].get_default(call_default_factory=True)}
        return {name: value for name, value in dump(self).items() if name not in unset}

    @classmethod
    def inferred(cls) -> dict[str, str]:
        """Field name -> description of every default marked INFERRED."""
        return {
            name: field.description
            for name, field in cls.model_fields.items()
            if field.description and field.description.startswith("INFERRED")
        }


class NoSettings(Settings):
    """Of what has nothing to set."""


SettingsT = TypeVar("SettingsT", bound=Settings)


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal settings give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """First 12 hex digits of the SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:12]


def parse_assignments(assignments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`["dmd2.lr=1e-5"]` -> `{"dmd2": {"lr": 1e-05}}`; more dots nest. Values are JSON; what is not JSON is text."""
    parsed: dict[str, dict[str, Any]] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        *groups, field = path.strip().split(".")
        if not (equals and groups and field and all(groups)):
            raise UsageError(f"--set {assignment}: expected METHOD.SETTING=VALUE, for example dmd2.lr=1e-5")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        place: Any = parsed
        for group in groups:
            place = place.setdefault(group, {}) if isinstance(place, dict) else None
        if not isinstance(place, dict) or field in place:
            raise UsageError(f"--set {path.strip()} is given twice: keep one of them")
        place[field] = value
    return parsed


def build_settings(cls: type[SettingsT], values: dict[str, Any], owner: str) -> SettingsT:
    """Validate `values`; the first problem becomes one line that names owner, setting and what would be right."""
    _refuse_unknown(cls, values, owner)
    try:
        return cls(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        got = f", got {first['input']!r}" if where else ""
        raise UsageError(f"{owner}{'.' if where else ''}{where}: {first['msg']}{got}") from None


def _refuse_unknown(cls: type[Settings], values: dict[str, Any], owner: str) -> None:
    """Raise UsageError for the first key that `cls`, or the settings inside it, do not have."""
    for name, value in values.items():
        if name not in cls.model_fields:
            hint = did_you_mean(name, cls.model_fields)
            raise UsageError(f"{owner} has no setting '{name}'{hint} Settings: {', '.join(cls.model_fields)}")
        inner = cls.model_fields[name].annotation
        if isinstance(value, dict) and isinstance(inner, type) and issubclass(inner, Settings):
            _refuse_unknown(inner, value, f"{owner}.{name}")
