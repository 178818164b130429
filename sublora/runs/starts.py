"""How a run was started, and with which settings: the line on stderr, and two files in the run's folder.

run.json       how each stage was started, with which settings and by which versions; for people, never read back
               except to add a start
settings.json  the settings file, and the settings that the training depends on: whose run lies in the folder

Light to import, since the workflow asks whose runs lie in the results before it runs anything.
"""

import dataclasses
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from sublora import config
from sublora.bounds.record import record_values
from sublora.system.errors import UserError, printable
from sublora.system.files import name_below, read_json, sha256_of_file, write_json
from sublora.system.names import BOUNDS_NAME, CERTIFICATE_NAME, CHECKPOINT_NAME, SETTINGS_NAME, STARTS_NAME
from sublora.system.provenance import Provenance

if TYPE_CHECKING:
    import torch

FORMAT = 1
"""Version of the layout of run.json."""
ANNOUNCED_PACKAGES = ("torch", "numpy", "constriction")
AFTER_TRAINING: tuple[config.Stage, ...] = ("train", "score", "bound")
"""Stages whose settings a certificate shows."""
MAKE_RUN_AGAIN = "delete this folder, so that the run is made again, or bring those settings back"


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
        return config.first_difference(self.train, config.stage_settings(settings, "train"))


def write_owner(folder: Path, settings: config.Settings, settings_file: Path | None, root: Path) -> None:
    """Write settings.json when a training starts: before any result exists, and Snakemake leaves it in place."""
    name = None if settings_file is None else name_below(root, settings_file)
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
    """Return `run_difference`, None also if the folder holds nothing that can be read."""
    try:
        return run_difference(folder, settings)
    except UserError:
        return None


def run_difference(
    folder: Path, settings: config.Settings, stages: Iterable[config.Stage] = AFTER_TRAINING
) -> str | None:
    """Return in words the first setting of these stages in which the run in a folder differs from `settings`.

    The certificate tells, where there is one, since scoring and bound depend on more settings than the training; else
    settings.json, else the checkpoint. None if nothing differs, or if the folder holds nothing that tells.

    Raises:
        UserError: what would tell is damaged.
    """
    found = _settings_of_certificate(folder)
    if found is None:
        owner = (read_owner(folder) or _owner_of_checkpoint(folder)) if "train" in stages else None
        return None if owner is None else owner.difference(settings)
    differences = (
        config.first_difference(*(config.stage_settings(each, stage) for each in (found, settings))) for stage in stages
    )
    return next(filter(None, differences), None)


def check_in_force(folders: Iterable[Path], settings: config.Settings) -> None:
    """Check that the runs in some folders were made with these settings, since tables average over them.

    Snakemake does not see the difference where its records are missing, where it was told to go by dates alone, and
    after --touch.

    Args:
        folders: of bounded runs of the grid, by their names.
        settings: of the whole grid.

    Raises:
        UserError: a run was made with other settings or by other numerics than another run, or its bound is that of
            another certificate; names the folder.
    """
    from sublora.coding.certificate import read_certificate

    specs = {run.name: run for run in settings.grid.runs()}
    numerics: dict[str, tuple[int | None, Path]] = {}
    for folder in folders:
        # With which settings, as the certificate says, and whether the bound is that of the certificate.
        certificate = folder / CERTIFICATE_NAME
        header = read_certificate(certificate).header
        if found := run_difference(folder, settings.for_run(specs[folder.name])):
            raise UserError(f"{folder}: made with other settings than those in force ({found}); {MAKE_RUN_AGAIN}")
        record = record_values(folder / BOUNDS_NAME, missing="", fix=MAKE_RUN_AGAIN)
        if record.get("certificate_sha256") != sha256_of_file(certificate):
            raise UserError(f"{folder / BOUNDS_NAME}: not the bound of {CERTIFICATE_NAME} beside it; {MAKE_RUN_AGAIN}")
        # By which numerics. Those of the bound may be newer than the certificate.
        for stage in ("train", "score"):
            version = header.get("numerics_versions", {}).get(stage)
            of_first, first = numerics.setdefault(stage, (version, folder))
            if version != of_first:
                raise UserError(
                    f"{folder}: made by version {version} of the numerics of {stage}, {first} by {of_first}; delete "
                    "the folder of the lower one, so that the run is made again"
                )


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
