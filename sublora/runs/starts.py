"""How a run was started, and with which settings: the line on stderr, and two files in the run's folder.

run.json       how each stage was started, with which settings and by which versions; for people, never read back
               except to add a start
settings.json  the settings file, and the settings that the training depends on: whose run lies in the folder

Light to import, since the workflow asks whose runs lie in the results before it runs anything.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from sublora import config
from sublora.system.errors import UserError, printable
from sublora.system.files import read_json, write_json
from sublora.system.names import CERTIFICATE_NAME, CHECKPOINT_NAME, SETTINGS_NAME, STARTS_NAME
from sublora.system.provenance import Provenance

if TYPE_CHECKING:
    import torch

FORMAT = 1
"""Version of the layout of run.json."""
ANNOUNCED_PACKAGES = ("torch", "numpy", "constriction")
AFTER_TRAINING: tuple[config.Stage, ...] = ("train", "score", "bound")
"""Stages whose settings a certificate shows."""


# The line that a stage begins with


def announce(settings: BaseModel, provenance: Provenance, device: "torch.device | None" = None) -> None:
    """Print the start line on stderr, which a workflow keeps in its log. `device`: where networks run, if any do."""
    print(start_line(settings, provenance, device), file=sys.stderr, flush=True)


def start_line(settings: BaseModel, provenance: Provenance, device: "torch.device | None" = None) -> str:
    """Return `$ command | settings DIGEST | versions | machine`; equal digests mean equal values of all settings."""
    digest = config.digest(settings.model_dump(mode="json"))
    versions = provenance.versions_of("sublora", "python", *ANNOUNCED_PACKAGES)
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    return printable(f"$ {provenance.command} | settings {digest[:16]} | {named} | {_machine(provenance.host, device)}")


def _machine(host: str, device: "torch.device | None") -> str:
    if device is None:
        return f"{host}, no network runs"
    from sublora.system.device import gpu_name

    return f"{host}, {gpu_name(device) or device.type}"


# run.json


def record_start(folder: Path, stage: str, settings: config.Settings, provenance: Provenance) -> Path:
    """Add this process to run.json in the folder, before the stage's work begins; return the file.

    A training that was stopped and goes on has an entry for each start.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / STARTS_NAME
    record: dict[str, Any] = _read_starts(path) if path.exists() else {"format": FORMAT, "settings": {}, "starts": []}
    plain = settings.model_dump(mode="json")
    digest = config.digest(plain)
    record["settings"][digest] = plain
    record["starts"].append(
        {
            "stage": stage,
            "started": provenance.started,
            "command": provenance.command,
            "directory": provenance.directory,
            "host": provenance.host,
            "slurm_job_id": provenance.slurm_job_id,
            "versions": provenance.versions,
            "settings": digest,
        }
    )
    write_json(path, record)
    return path


def _read_starts(path: Path) -> dict[str, Any]:
    record = read_json(path, missing="", fix="delete it")
    if not (
        isinstance(record, dict)
        and record.get("format") == FORMAT
        and isinstance(record.get("settings"), dict)
        and isinstance(record.get("starts"), list)
    ):
        raise UserError(f"{path}: expected a record of starts, format {FORMAT}; delete it")
    return record


# settings.json


@dataclasses.dataclass(frozen=True)
class Owner:
    """What settings.json in a run's folder says."""

    settings_file: str | None
    """The settings file, relative to the folder that holds results/; None if the run was trained without one."""
    train: dict[str, Any]
    """What the training depends on: `stage_settings(settings, "train")`."""

    def difference(self, settings: config.Settings) -> str | None:
        """Return in words the first setting of the training that has another value in `settings`; None if none has."""
        return _first_difference(self.train, config.stage_settings(settings, "train"))


def write_owner(folder: Path, settings: config.Settings, settings_file: Path | None, root: Path) -> None:
    """Write settings.json when a training starts: before any result exists, and Snakemake leaves it in place."""
    name = None if settings_file is None else os.path.relpath(settings_file.resolve(), root.resolve())
    owner = Owner(name, config.stage_settings(settings, "train"))
    write_json(folder / SETTINGS_NAME, dataclasses.asdict(owner))


def read_owner(folder: Path) -> Owner | None:
    """Read settings.json; None if there is no such file, UserError if it is damaged."""
    path, fix = folder / SETTINGS_NAME, "delete it; it is written again when the run is trained"
    if not path.exists():
        return None
    value = read_json(path, missing="", fix=fix)
    keys = {field.name for field in dataclasses.fields(Owner)}
    if not isinstance(value, dict) or value.keys() != keys or not isinstance(value["train"], dict):
        raise UserError(f"{path}: expected the keys settings_file and train; {fix}")
    return Owner(**value)


def foreign_setting(folder: Path, settings: config.Settings) -> str | None:
    """Return in words the first setting in which the run in a folder differs from `settings`.

    The certificate tells, where there is one, since scoring and bound depend on more settings than the training; else
    settings.json, else the checkpoint. None if nothing differs, or if the folder holds nothing that can be read.
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
    """The owner of a run whose settings.json is gone; imports torch, which takes seconds."""
    from sublora.training import checkpoint

    path = folder / CHECKPOINT_NAME
    if not path.exists():
        return None
    trained, _ = checkpoint.settings_of(checkpoint.load(path), path)
    return Owner(None, config.stage_settings(trained, "train"))


def _first_difference(found: dict[str, Any], wanted: dict[str, Any]) -> str | None:
    """`section.key: 1 there, 2 here` for two settings of a stage; keys that both have come first."""
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
