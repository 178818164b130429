"""What a stage's results depend on, collected from the marks beside the keys, and digests of it."""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from pydantic.fields import FieldInfo

from sublora.config.corpus import Data
from sublora.config.section import Reaches, ReachesThrough, Section, Stage
from sublora.config.settings import Settings


def stage_settings(settings: Settings, stage: Stage) -> dict[str, Any]:
    """The settings whose change must rerun `stage`, as plain JSON values."""

    def counts(mark: Reaches) -> bool:
        return stage in mark.stages and (mark.when is None or mark.when(settings))

    values: dict[str, Any] = {}
    for name, field in Settings.model_fields.items():
        section = getattr(settings, name)
        for mark in field.metadata:
            if isinstance(mark, ReachesThrough) and stage in mark.stages:
                values[mark.name] = mark.value(section)
        kept = _keys_that_count(section, _marks(field), counts)
        if kept:
            values[name] = kept
    return values


def data_settings(data: Data) -> dict[str, Any]:
    """The keys of `data` that the prepared files depend on, as plain JSON values."""
    return _keys_that_count(data, _marks(Settings.model_fields["data"]), lambda mark: "data" in mark.stages)


def _marks(field: FieldInfo) -> list[Reaches]:
    return [mark for mark in field.metadata if isinstance(mark, Reaches)]


def _keys_that_count(
    section: Section, inherited: Sequence[Reaches], counts: Callable[[Reaches], bool]
) -> dict[str, Any]:
    """Keys of a section and of those inside it whose own marks, or else the inherited ones, count.

    A key that may be left out counts for nothing while it is null: results from before there was such a key stay valid.
    """
    values, plain = {}, section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        marks, value = _marks(field) or inherited, getattr(section, name)
        if value is None and not field.is_required():
            continue
        if isinstance(value, Section):
            kept = _keys_that_count(value, marks, counts)
            if kept:
                values[name] = kept
        elif any(map(counts, marks)):
            values[name] = plain[name]
    return values


def digest(value: object) -> str:
    """sha256, in hexadecimal, of the canonical JSON of a value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
