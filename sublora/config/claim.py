"""The settings that a claim rests on, and the reference configurations that come with a release.

Settings are premises of a bound: they must have been fixed before the documents were seen. Where that is doubted they
can be charged instead, by what it takes to name them relative to a reference (sublora/runs/strict.py).
"""

import functools
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any, get_args

import yaml

from sublora.config.loading import parse_settings
from sublora.config.section import Section
from sublora.config.settings import Settings

WITHOUT_EFFECT = {
    "training": None,
    "rate_phase": None,
    "compute": None,
    "tracking": None,
    "gating": {"learning_rate", "mask_width_start", "mask_width_end", "soft_fraction", "trace_interval_steps"},
    "lora": {"dropout"},
    "data": {"workers", "near_duplicates"},
    "base": {"log_interval_steps", "save_interval_steps"},
}
"""Sections (None: whole) and keys by which messages were found or machines chosen: a bound holds whatever they are."""

POPULATION = {"data.name", "data.corpus", "data.permute", "base.name", "base.corpus", "base.independence"}
"""What the claim is about: it picks neither a hypothesis nor a sample, and is not charged."""
SECOND_BOUND = {"scoring.sources"}
"""Reaches the bound over source files alone, which `bound_strict` does not speak of."""
CONDITIONS = {"bound.delta", "bound.delta_sample", "message.extra_bits"}
"""Not charged, since `unfit` compares them; hand tuning has its own item in C."""


def claim_settings(settings: Settings) -> dict[str, Any]:
    """The settings without those of WITHOUT_EFFECT, as plain JSON values by dotted key (two levels)."""
    plain = settings.model_dump(mode="json")
    values: dict[str, Any] = {}
    for section, keys in plain.items():
        left_out = WITHOUT_EFFECT.get(section, set())
        if left_out is not None:
            values |= {f"{section}.{key}": value for key, value in keys.items() if key not in left_out}
    return values


@functools.cache
def charged_keys() -> tuple[str, ...]:
    """Every key that can be charged, sorted: what an index counts through."""
    return tuple(sorted(key for key in _all_keys() if key not in POPULATION | SECOND_BOUND | CONDITIONS))


def _all_keys() -> Iterator[str]:
    for name, field in Settings.model_fields.items():
        left_out = WITHOUT_EFFECT.get(name, set())
        if left_out is None:
            continue
        kinds = get_args(field.annotation) or (field.annotation,)
        fields: set[str] = set()
        for kind in kinds:
            assert isinstance(kind, type) and issubclass(kind, Section)
            fields |= kind.model_fields.keys()
        yield from (f"{name}.{key}" for key in fields if key not in left_out)


def reference_names() -> tuple[str, ...]:
    """Names of the reference configurations, in the order in which a message numbers them."""
    names = (entry.name for entry in _folder().iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml")))


@functools.cache
def reference(name: str) -> Settings:
    """A reference configuration that comes with the package."""
    text = (_folder() / f"{name}.yaml").read_text(encoding="utf-8")
    return parse_settings(yaml.safe_load(text), source=f"reference configuration {name}")


def _folder() -> Traversable:
    return resources.files("sublora.config") / "references"


def differing_keys(settings: Settings, other: Settings) -> list[str]:
    """Keys that are charged and have in `settings` another value than in `other`, or are not there."""
    values, others = claim_settings(settings), claim_settings(other)
    return [key for key in charged_keys() if key in values and not (key in others and values[key] == others[key])]


def unfit(settings: Settings, name: str) -> str | None:
    """Why settings cannot be charged relative to a reference, None if they can.

    What a bound promises must be the reference's own: confidence, its division, the inequality. And hand tuning must be
    charged at least as the reference charges it.
    """
    other = reference(name)
    wanted = {
        "bound.delta": (settings.bound.delta, other.bound.delta),
        "bound.delta_sample": (settings.bound.delta_sample, other.bound.delta_sample),
        "all documents scored": (settings.scoring.documents == "all", other.scoring.documents == "all"),
    }
    for key, (found, expected) in wanted.items():
        if found != expected:
            return f"{key} is {found}, in reference {name} {expected}"
    if settings.message.extra_bits < other.message.extra_bits:
        return f"message.extra_bits {settings.message.extra_bits} is less than {other.message.extra_bits} of {name}"
    return None
