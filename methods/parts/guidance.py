"""The guidance that a student learns when nothing else is asked for: in proportion to its teacher's own."""

from __future__ import annotations

from flgbench.contracts import FamilyPreset
from flgbench.settings import SettingsT


def unless_set(settings: SettingsT, field: str, value: float) -> SettingsT:
    """`settings` with `value` in `field` unless that was set."""
    if field in settings.model_fields_set:
        return settings
    return settings.model_copy(update={field: value})


def with_teacher_guidance(settings: SettingsT, field: str, preset: FamilyPreset, share: float = 1.0) -> SettingsT:
    """`settings` with `share` of the family's guidance scale in `field` unless that was set."""
    return unless_set(settings, field, share * preset.guidance_scale)
