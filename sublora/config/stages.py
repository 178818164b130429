"""What a stage's results depend on, collected from the marks beside the keys."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from sublora.config.corpus import Data
from sublora.config.section import Mark, ReachesThrough, Section, Stage, marks_of, stage_marks
from sublora.config.settings import Settings


def stage_settings(settings: Settings, stage: Stage) -> dict[str, Any]:
    """Return the settings whose change must rerun `stage`, as plain JSON values."""

    def counts(mark: Mark) -> bool:
        return stage in (mark.stages or ()) and (mark.when is None or mark.when(settings))

    values: dict[str, Any] = {}
    for name, field in Settings.model_fields.items():
        section = getattr(settings, name)
        for mark in field.metadata:
            if isinstance(mark, ReachesThrough) and stage in mark.stages:
                values[mark.name] = mark.value(section)
        kept = _keys_that_count(section, stage_marks(field), counts)
        if kept:
            values[name] = kept
    return values


def data_settings(data: Data) -> dict[str, Any]:
    """Return the keys of `data` that the prepared files depend on, as plain JSON values."""
    inherited = stage_marks(Settings.model_fields["data"])
    return _keys_that_count(data, inherited, lambda mark: "data" in (mark.stages or ()))


def _keys_that_count(section: Section, inherited: Sequence[Mark], counts: Callable[[Mark], bool]) -> dict[str, Any]:
    """Return the keys of a section, and of those inside it, whose own marks or else the inherited ones count."""
    values, plain = {}, section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        marks, value = stage_marks(field) or inherited, getattr(section, name)
        if value is None and not all(mark.null_counts for mark in marks_of(field)):
            continue
        if isinstance(value, Section):
            kept = _keys_that_count(value, marks, counts)
            if kept:
                values[name] = kept
        elif any(map(counts, marks)):
            values[name] = plain[name]
    return values


def first_difference(found: dict[str, Any], wanted: dict[str, Any]) -> str | None:
    """Return `section.key: 1 there, 2 here` for two settings of a stage, None if they are equal.

    Keys that both have come first.
    """
    flat_found, flat_wanted = _flat(found), _flat(wanted)
    differing = [
        key for key in flat_wanted | flat_found if flat_found.get(key, "absent") != flat_wanted.get(key, "absent")
    ]
    if not differing:
        return None
    key = min(differing, key=lambda key: not (key in flat_found and key in flat_wanted))
    return f"{key}: {flat_found.get(key, 'absent')} there, {flat_wanted.get(key, 'absent')} here"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(value)
    return flat
