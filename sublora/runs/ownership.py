"""Whose runs lie in a folder: the settings they were trained with, beside them, and how those differ from others.

Light to import: the workflow asks before it runs anything.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from sublora import config
from sublora.system.errors import UserError
from sublora.system.files import read_json, write_json
from sublora.system.names import CERTIFICATE_NAME, CHECKPOINT_NAME, SETTINGS_NAME

AFTER_TRAINING: tuple[config.Stage, ...] = ("train", "score", "bound")
"""Stages whose settings a certificate shows."""


@dataclasses.dataclass(frozen=True)
class Owner:
    """What settings.json in a run's folder says."""

    settings_file: str | None
    """The settings file, relative to the folder that holds results/; None if the run was trained without one."""
    train: dict[str, Any]
    """What the training depends on: `stage_settings(settings, "train")`."""

    def difference(self, settings: config.Settings) -> str | None:
        """The first setting that the training depends on and that is another one in `settings`, in words."""
        return _first_difference(self.train, config.stage_settings(settings, "train"))


def write_owner(folder: Path, settings: config.Settings, settings_file: Path | None, root: Path) -> None:
    """settings.json, at the start of a training: before any result is there, and left in place by Snakemake."""
    name = None if settings_file is None else os.path.relpath(settings_file.resolve(), root.resolve())
    owner = Owner(name, config.stage_settings(settings, "train"))
    write_json(folder / SETTINGS_NAME, dataclasses.asdict(owner))


def read_owner(folder: Path) -> Owner | None:
    """None if there is no settings.json; UserError if it is damaged."""
    path, mend = folder / SETTINGS_NAME, "delete it; it is written again when the run is trained"
    if not path.exists():
        return None
    value = read_json(path, missing="", fix=mend)
    keys = {field.name for field in dataclasses.fields(Owner)}
    if not isinstance(value, dict) or value.keys() != keys or not isinstance(value["train"], dict):
        raise UserError(f"{path}: expected the keys settings_file and train; {mend}")
    return Owner(**value)


def foreign_setting(folder: Path, settings: config.Settings) -> str | None:
    """In words the first setting by which the run in a folder is one of other settings than these; None if it is not.

    From the certificate where there is one, since scoring and bound hang on more settings than the training; else
    from settings.json, else from the checkpoint. None as well if there is nothing or nothing readable.
    """
    try:
        found = _settings_of_certificate(folder)
        if found is not None:
            differences = (
                _first_difference(*(config.stage_settings(each, stage) for each in (found, settings)))
                for stage in AFTER_TRAINING
            )
            return next(filter(None, differences), None)
        owner = read_owner(folder) or _owner_of_checkpoint(folder)
    except UserError:
        return None
    return None if owner is None else owner.difference(settings)


def _settings_of_certificate(folder: Path) -> config.Settings | None:
    from sublora.coding.certificate import read_certificate

    path = folder / CERTIFICATE_NAME
    if not path.exists():
        return None
    return config.parse_settings(read_certificate(path).header.get("settings"), source=str(path))


def _owner_of_checkpoint(folder: Path) -> Owner | None:
    """Of a run whose settings.json is gone; imports torch, which takes seconds."""
    from sublora.training import checkpoint

    path = folder / CHECKPOINT_NAME
    if not path.exists():
        return None
    trained, _ = checkpoint.settings_of(checkpoint.load(path), path)
    return Owner(None, config.stage_settings(trained, "train"))


def _first_difference(found: dict[str, Any], wanted: dict[str, Any]) -> str | None:
    """Of two stages' settings, `section.key: 1 there, 2 here`; keys that both have come first."""
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
