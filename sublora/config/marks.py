"""What depends on which settings, collected from the marks beside the keys: a stage's results, and a claim.

Settings are premises of a bound: they must have been fixed before the documents were seen. Where that is doubted they
can be charged instead, by what it takes to name them relative to a reference configuration of the release
(`sublora.runs.bound.settings_charge`).
"""

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any, get_args

import yaml
from pydantic.fields import FieldInfo

from sublora.config.corpus import Data
from sublora.config.loading import parse_settings
from sublora.config.section import ClaimPart, Mark, ReachesThrough, Section, Stage, marks_of, stage_marks
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


def claim_settings(settings: Settings) -> dict[str, Any]:
    """Return the settings that a claim depends on, as plain JSON values by dotted key (two levels)."""
    plain = settings.model_dump(mode="json")
    return {
        # A null that the plain values leave out counts as one.
        f"{name}.{key}": plain[name].get(key)
        for name, section in Settings.model_fields.items()
        for key, field in type(getattr(settings, name)).model_fields.items()
        if claim_part(section, field) != "no_effect"
    }


def decoder_settings(settings: Settings) -> dict[str, dict[str, Any]]:
    """Return the settings on which the decoded predictor or the draw of documents depends, by section and key."""
    values: dict[str, dict[str, Any]] = {}
    for name, section in settings:
        for key, field in type(section).model_fields.items():
            if any(mark.decoder for mark in marks_of(field)):
                values.setdefault(name, {})[key] = getattr(section, key)
    return values


@functools.cache
def charged_keys() -> tuple[str, ...]:
    """Return every key that can be charged, sorted; the code of `settings_bits` names a key by its index here."""
    return tuple(sorted({key for key, section, field in _all_keys() if claim_part(section, field) == "charged"}))


@functools.cache
def premises() -> tuple[str, ...]:
    """Return the keys that are shown with every verdict, in the order of the settings."""
    keys = (key for key, _, field in _all_keys() if any(mark.premise for mark in marks_of(field)))
    return tuple(dict.fromkeys(keys))


def claim_part(section: FieldInfo, field: FieldInfo) -> ClaimPart:
    """Return what a key of a section is to the claim."""
    parts = (mark.claim for mark in (*marks_of(field), *marks_of(section)))
    return next((part for part in parts if part is not None), "charged")


def _all_keys() -> Iterator[tuple[str, FieldInfo, FieldInfo]]:
    """Yield each key with the fields of its section and its own, once for each kind of section that has it."""
    for name, section in Settings.model_fields.items():
        for kind in get_args(section.annotation) or (section.annotation,):
            assert isinstance(kind, type) and issubclass(kind, Section)
            for key, field in kind.model_fields.items():
                yield f"{name}.{key}", section, field


def reference_names() -> tuple[str, ...]:
    """Return the names of the reference configurations, in the order in which a message numbers them."""
    names = (entry.name for entry in _folder().iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml")))


@functools.cache
def reference(name: str) -> Settings:
    """Return a reference configuration that comes with the package."""
    text = (_folder() / f"{name}.yaml").read_text(encoding="utf-8")
    return parse_settings(yaml.safe_load(text), source=f"reference configuration {name}")


def _folder() -> Traversable:
    return resources.files("sublora.config") / "references"


def differing_keys(settings: Settings, other: Settings) -> list[str]:
    """Return the charged keys of `settings` whose values `other` does not share, or that it does not have."""
    values, others = claim_settings(settings), claim_settings(other)
    return [key for key in charged_keys() if key in values and not (key in others and values[key] == others[key])]


def unfit(settings: Settings, name: str) -> str | None:
    """Return why settings cannot be charged relative to a reference, None if they can.

    What a bound promises must be the reference's own: confidence, its division, the inequality. And hand tuning must be
    charged at least as the reference charges it.
    """
    other = reference(name)
    wanted = {
        **{f"bound.{key}": (found, _parts_of_delta(other)[key]) for key, found in _parts_of_delta(settings).items()},
        "all documents scored": (settings.scoring.documents == "all", other.scoring.documents == "all"),
    }
    for key, (found, expected) in wanted.items():
        if found != expected:
            return f"{key} is {found}, in reference {name} {expected}"
    if settings.message.extra_bits < other.message.extra_bits:
        return f"message.extra_bits {settings.message.extra_bits} is less than {other.message.extra_bits} of {name}"
    return None


def _parts_of_delta(settings: Settings) -> dict[str, float | None]:
    """Return the section bound, without an anchor with null for the parts that only an anchor uses."""
    parts: dict[str, float | None] = settings.bound.model_dump()
    if settings.anchors_on_the_base:
        return parts
    return {key: value if key in ("delta", "delta_sample") else None for key, value in parts.items()}
