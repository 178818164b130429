"""The settings that a workflow has resolved, in a file that its jobs read.

A workflow gets its settings from files, from the command line and, as a module, from another workflow. Jobs see none
of that: they read one file, written before the first of them starts.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sublora.config.loading import root_of
from sublora.config.settings import Settings
from sublora.system.files import write_bytes

HEADER = (
    "# The settings in force, written by the workflow for its jobs. Change the workflow's own config, not this file.\n"
)
ORIGIN = "# From: "


def settings_text(settings: Settings, origin: str | None = None) -> str:
    """A whole settings file: equal settings give equal text, and `load_settings` reads them back."""
    values = settings.model_dump(mode="json")
    named = f"{ORIGIN}{json.dumps(origin)}\n" if origin else ""
    return HEADER + named + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def write_resolved(settings: Settings, path: Path | str, origin: Path | str | None = None) -> None:
    """Make the file hold these settings. One that does already is left as it is, its date included.

    origin: the settings file that they come from, if there is one; `origin_of` finds it again.
    """
    path = Path(path)
    name = None if origin is None else os.path.relpath(Path(origin).resolve(), root_of(path))
    data = settings_text(settings, name).encode()
    if not path.is_file() or path.read_bytes() != data:
        write_bytes(path, data)


def origin_of(path: Path | str) -> Path | None:
    """The settings file that a person edits: the file itself, or the origin of one that a workflow wrote.

    None if a workflow wrote it from settings that are in no file.
    """
    path = Path(path)
    with open(path, encoding="utf-8") as handle:
        first, second = handle.readline(), handle.readline()
    if first != HEADER:
        return path
    return root_of(path) / json.loads(second.removeprefix(ORIGIN)) if second.startswith(ORIGIN) else None


def with_typed_overrides(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with what came from the command line read as YAML.

    Snakemake has merged `overrides` into `values`, but parses `--config 'training={steps: 7}'` to text: the 7 of it is
    the string "7". Text that other sources put in its place stays text.
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
            return yaml.safe_load(value)
        except yaml.YAMLError:
            return value
    return value
