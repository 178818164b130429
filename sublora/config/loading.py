"""Settings from files and from the command line; whatever is wrong with them becomes one line."""

import functools
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from sublora.config.errors import describe
from sublora.config.grid import RunSpec
from sublora.config.section import Section
from sublora.config.settings import Settings
from sublora.config.yaml_text import read_yaml
from sublora.system.errors import UserError

Whole = TypeVar("Whole", bound=Section)


def load_settings(path: Path) -> Settings:
    """Read and check a settings file; UserError names the file, the key and the mend."""
    return parse_settings(read_values(Path(path)), source=str(path))


def read_values(path: Path) -> object:
    """The plain values of a settings file. UserError if it is missing or no YAML."""
    try:
        return read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such settings file; give one with --config") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None


def parse_run(
    budget: int | str, allocation: str, seed: int, *, trained: str | None = None, size: str | None = None
) -> RunSpec:
    """A grid point from the command line; UserError if it is none."""
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
    """A whole settings file of some kind from plain values; UserError in one line."""
    if not isinstance(values, dict):
        raise UserError(f"{source}: expected a mapping with the keys {', '.join(kind.model_fields)}")
    try:
        return kind.model_validate(with_tuples(values))
    except ValidationError as error:
        raise UserError(f"{source}: {describe(error, _schema(kind))}") from None


@functools.cache
def _schema(kind: type[Section]) -> dict[str, Any]:
    return kind.model_json_schema()


def with_tuples(value: Any) -> Any:
    """YAML lists as tuples, which is what frozen settings hold."""
    if isinstance(value, dict):
        return {key: with_tuples(item) for key, item in value.items()}
    return tuple(with_tuples(item) for item in value) if isinstance(value, list | tuple) else value


def root_of(config_path: Path) -> Path:
    """The folder that data/ and results/ of a settings file are relative to: the one above config/."""
    return Path(config_path).resolve().parent.parent
