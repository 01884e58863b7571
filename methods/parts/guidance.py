"""The guidance that a student learns when nothing else is asked for: its teacher's own."""

from __future__ import annotations

from flgbench.contracts import FamilyPreset
from flgbench.settings import SettingsT


def with_teacher_guidance(settings: SettingsT, field: str, preset: FamilyPreset) -> SettingsT:
    """`settings` with the family's guidance scale in `field` unless that was set."""
    return settings if field in settings.model_fields_set else settings.model_copy(update={field: preset.guidance_scale})
