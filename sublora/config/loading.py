"""Settings files: read, checked, and written with every key; whatever is wrong with one becomes one line."""

import datetime
import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from sublora.config.grid import RunSpec
from sublora.config.section import Section
from sublora.config.settings import Settings
from sublora.system.errors import UserError
from sublora.system.files import absolute, name_below, write_bytes
from sublora.system.validation import describe

Whole = TypeVar("Whole", bound=Section)


def load_settings(path: Path) -> Settings:
    """Read and check a settings file; UserError names the file, the key and the fix."""
    return parse_settings(read_values(Path(path)), source=str(path))


def read_values(path: Path) -> object:
    """Read the plain values of a settings file. UserError if it is missing or not YAML."""
    try:
        return read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such settings file; give one with --config") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None


def parse_run(
    budget: int | str, allocation: str, seed: int, *, trained: str | None = None, size: str | None = None
) -> RunSpec:
    """Parse a grid point from the command line. UserError names what is wrong."""
    number = int(budget) if isinstance(budget, str) and budget.isdecimal() else budget
    values = {"budget": number, "allocation": allocation, "seed": seed, "trained": trained, "size": size}
    try:
        return RunSpec.model_validate(values)
    except ValidationError as error:
        raise UserError(describe(error, RunSpec.model_json_schema())) from None


def parse_settings(values: object, source: str) -> Settings:
    """Check settings given as plain values; `source` names them in errors."""
    return parse_section(Settings, values, source)


def parse_section(kind: type[Whole], values: object, source: str) -> Whole:
    """Check plain values as the settings of a kind and fill in the defaults. UserError in one line."""
    if not isinstance(values, dict):
        raise UserError(f"{source}: expected a mapping with the keys {', '.join(kind.model_fields)}")
    try:
        return kind.model_validate(with_tuples(with_text_dates(values)))
    except UnicodeEncodeError:
        raise UserError(f"{source}: a text in it is no valid Unicode (half of a surrogate pair)") from None
    except ValidationError as error:
        raise UserError(f"{source}: {describe(error, _schema(kind))}") from None


@functools.cache
def _schema(kind: type[Section]) -> dict[str, Any]:
    return kind.model_json_schema()


def with_tuples(value: Any) -> Any:
    """Turn YAML lists into tuples, which is what frozen settings hold."""
    if isinstance(value, dict):
        return {key: with_tuples(item) for key, item in value.items()}
    return tuple(with_tuples(item) for item in value) if isinstance(value, list | tuple) else value


def with_text_dates(value: Any) -> Any:
    """Return the values with dates as the text that stands in the file: no setting is a date.

    `read_yaml` reads no dates, but other readers of YAML, such as Snakemake's, do.
    """
    if isinstance(value, Mapping):
        return {key: with_text_dates(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [with_text_dates(item) for item in value]
    return str(value) if isinstance(value, datetime.date) else value


def root_of(config_path: Path) -> Path:
    """Return the folder that data/ and results/ of a settings file are relative to: the one above config/.

    Links are not followed: where results/ or config/ is a link to another disk, data/ and results/ still lie beside the
    link.
    """
    return absolute(config_path).parent.parent


def given_values(section: Section) -> dict[str, Any]:
    """Return what a person would write for a section: keys without a default, and those with another value than it."""
    plain, values = section.model_dump(mode="json"), {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if field.is_required() or value != field.get_default(call_default_factory=True):
            values[name] = given_values(value) if isinstance(value, Section) else plain[name]
    return values


HEADER = (
    "# The settings in force, written by the workflow for its jobs. Change the workflow's own config, not this file.\n"
)
ORIGIN = "# From: "


def settings_text(settings: Settings, origin: str | None = None) -> str:
    """Return a settings file with every key: equal settings give equal text, and `load_settings` reads them back."""
    values = settings.model_dump(mode="json")
    named = f"{ORIGIN}{json.dumps(origin)}\n" if origin else ""
    return HEADER + named + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def write_resolved(settings: Settings, path: Path | str, origin: Path | str | None = None) -> None:
    """Make the file hold these settings. A file that already does is not touched, so that its date stays.

    origin: the settings file that they come from, if there is one; `origin_of` reads it back.
    """
    path = Path(path)
    name = None if origin is None else name_below(root_of(path), origin)
    data = settings_text(settings, name).encode()
    if not path.is_file() or path.read_bytes() != data:
        write_bytes(path, data)


def origin_of(path: Path | str) -> Path | None:
    """Return the settings file that a person edits: the file itself, or the origin of one that a workflow wrote.

    None if a workflow wrote it from settings that no file holds.
    """
    path = Path(path)
    with open(path, encoding="utf-8") as handle:
        first, second = handle.readline(), handle.readline()
    if first != HEADER:
        return path
    return root_of(path) / json.loads(second.removeprefix(ORIGIN)) if second.startswith(ORIGIN) else None


def with_typed_overrides(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` with the overrides of the command line parsed as YAML.

    Snakemake has merged `overrides` into `values`, but parses `--config 'training={steps: 7}'` to text: its 7 is
    the string "7". Text from other sources stays text.
    """
    return {key: _typed(value, overrides[key]) if key in overrides else value for key, value in values.items()}


def _typed(value: Any, override: Any) -> Any:
    if isinstance(value, Mapping) and isinstance(override, Mapping):
        return with_typed_overrides(value, override)
    return _parsed(value) if value == override else value


def _parsed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _parsed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_parsed(item) for item in value]
    if isinstance(value, str):
        try:
            return read_yaml(value)
        except ValueError:
            return value
    return value


LARGEST_NODES = 100_000
"""Values in a file, counted as often as aliases repeat them. A settings file has some hundred."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 except for dates, which stay the text that stands there."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
OTHER_BASE = re.compile(r"[-+]?0[0-7_]*[1-7][0-7_]*|.*:.*")
"""Numbers that YAML 1.1 reads in base 8 or 60: 042 is 34, and 1:30 is 90."""


def read_yaml(text: str) -> Any:
    """The values of a YAML text. ValueError, in one line, if it is no YAML, ambiguous or too large."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {})
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except RecursionError:
        raise ValueError("nested too deep") from None
    except (KeyError, IndexError, AttributeError, TypeError):  # how the loader says that a !!tag does not fit
        raise ValueError("a value does not fit the tag (!!) before it") from None


def _count(node: yaml.Node, counted: dict[int, int]) -> int:
    """Nodes below and with a node, aliases expanded; `counted`: those known, 0 for one that is being counted.

    Equal nodes are one object, so this takes a step per node of the text. ValueError for a key given twice, a node
    inside itself, and more than LARGEST_NODES.
    """
    if (known := counted.get(id(node))) is not None:
        if not known:
            raise ValueError(f"{_where(node)}: an alias stands inside what it repeats")
        return known
    counted[id(node)] = 0
    total = 1
    if node.tag in NUMBERS and OTHER_BASE.fullmatch(node.value):
        raise ValueError(
            f"{_where(node)}: YAML reads {node.value} as {yaml.safe_load(node.value)}; write the number without "
            "leading zeros or colons, or text in quotes"
        )
    if isinstance(node, yaml.MappingNode):
        _refuse_repeated_keys(node)
        total += sum(_count(key, counted) + _count(value, counted) for key, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        total += sum(_count(item, counted) for item in node.value)
    if total > LARGEST_NODES:
        raise ValueError(
            f"{_where(node)}: more than {LARGEST_NODES:,} values, aliases counted as often as they are used"
        )
    counted[id(node)] = total
    return total


def _refuse_repeated_keys(node: yaml.MappingNode) -> None:
    seen: dict[tuple[str, str], yaml.Node] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        if (first := seen.setdefault((key.tag, key.value), key)) is not key:
            raise ValueError(f"key '{key.value}' is given twice, {_where(first)} and {_where(key)}; delete one of them")


def _where(node: yaml.Node) -> str:
    return f"line {node.start_mark.line + 1}"
