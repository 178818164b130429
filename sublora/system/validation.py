"""Values from files: a strict base class, types of numbers, and what is wrong with a value in one line."""

import difflib
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sublora.system.errors import printable


class Strict(BaseModel):
    """Base of settings and records: unknown keys refused, values immutable, types not coerced."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


LARGEST_INT = 2**53 - 1
"""The largest whole number that JSON keeps exactly."""
PositiveInt = Annotated[int, Field(gt=0, le=LARGEST_INT)]
NonNegativeInt = Annotated[int, Field(ge=0, le=LARGEST_INT)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
SMALLEST_PROBABILITY = 1e-30
"""A share of a probability among all alternatives that can be charged must still be a number above 0."""
Probability = Annotated[float, Field(ge=SMALLEST_PROBABILITY, lt=1.0)]
PositiveFloat = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


MOST_COMPLAINTS = 20
"""Complaints in one line; finding the nearest key to each of thousands of unknown ones would take minutes."""
LONGEST_KEY = 80
LONGEST_COMPLAINT = 5000


def describe(error: ValidationError, schema: dict[str, Any]) -> str:
    """The first complaints in one line; unknown keys with the nearest one that the settings' JSON schema knows."""
    complaints, items = [], error.errors(include_url=False)
    for item in items[:MOST_COMPLAINTS]:
        location = [printable(part, LONGEST_KEY) for part in item["loc"]]
        key = ".".join(_written(location, schema))
        if item["type"] == "extra_forbidden":
            complaints.append(f"unknown key '{key}'{_nearest_key(location, schema)}")
        elif item["type"] == "missing":
            complaints.append(f"key '{key}' is missing")
        elif item["type"] in ("model_type", "model_attributes_type"):
            complaints.append(f"{key}{': ' if key else ''}expected keys with values, found {_shown(item['input'])}")
        elif item["type"] == "union_tag_not_found":
            complaints.append(f"key '{key}.kind' is missing; kinds: {_kinds(location, schema)}")
        elif item["type"] == "union_tag_invalid":
            complaints.append(
                f"{key}.kind: expected one of {_kinds(location, schema)}, found '{printable(item['ctx']['tag'], 40)}'"
            )
        else:
            text = printable(item["msg"].removeprefix("Value error, "), LONGEST_COMPLAINT)
            text = text[:1].lower() + text[1:]
            prefix = f"{key}: " if key else ""
            found = f", found {_shown(item['input'])}" if item["type"] != "value_error" else ""
            complaints.append(f"{prefix}{text}{found}{_yaml_number_hint(item)}")
    if len(items) > MOST_COMPLAINTS:
        complaints.append(f"and {len(items) - MOST_COMPLAINTS:,} more")
    return "; ".join(complaints)


def _shown(value: object) -> str:
    return printable(repr(value), 80)


def _yaml_number_hint(item: Any) -> str:
    if item["type"] != "float_type" or not isinstance(item["input"], str):
        return ""
    try:
        value = float(item["input"])
    except ValueError:
        return ""
    return f" (YAML reads numbers without a dot before the exponent as text: write {value:.1e})"


def _kinds(location: list[str], schema: dict[str, Any]) -> str:
    return ", ".join(_section(location, schema)["discriminator"]["mapping"])


def _nearest_key(location: list[str], schema: dict[str, Any]) -> str:
    *parents, key = location
    known = list(_section(parents, schema).get("properties", {}))
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if nearest:
        return f"; did you mean '{'.'.join([*_written(parents, schema), nearest[0]])}'?"
    return f"; known keys here: {', '.join(known)}"


def _section(path: list[str], schema: dict[str, Any]) -> dict[str, Any]:
    """The part of the schema at a path, which may name the chosen alternative of a union."""
    node = schema
    for part in path:
        node = _resolve(node, schema)
        alternatives = node.get("discriminator", {}).get("mapping", {})
        node = {"$ref": alternatives[part]} if part in alternatives else node.get("properties", {}).get(part, {})
    return _resolve(node, schema)


def _written(location: list[str], schema: dict[str, Any]) -> list[str]:
    """The keys as the file has them: pydantic puts the chosen alternative of a union among them."""
    return [
        part
        for index, part in enumerate(location)
        if part not in _section(location[:index], schema).get("discriminator", {}).get("mapping", {})
    ]


def _resolve(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    return schema["$defs"][node["$ref"].rsplit("/", 1)[1]] if "$ref" in node else node
