"""run.json: how each stage of a run was started, with which settings and by which versions. Nothing reads it back."""

import datetime
import os
import platform
import socket
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sublora import __version__, config
from sublora.runs.announce import command_line
from sublora.system.errors import UserError
from sublora.system.files import read_json, write_json
from sublora.system.names import STARTS_NAME

FORMAT = 1
"""Version of the layout of run.json."""
PACKAGES = ("torch", "numpy", "scipy", "constriction", "safetensors", "tiktoken", "pydantic")


def record_start(folder: Path, stage: str, settings: config.Settings) -> Path:
    """Add this process to run.json in the folder, before the stage's work begins; returns the file.

    A training that was stopped and goes on has an entry for each start. UserError for a file that is damaged.
    """
    path = folder / STARTS_NAME
    record: dict[str, Any] = _read(path) if path.exists() else {"format": FORMAT, "settings": {}, "starts": []}
    plain = settings.model_dump(mode="json")
    digest = config.digest(plain)
    record["settings"][digest] = plain
    record["starts"].append(start_facts(stage) | {"settings": digest})
    write_json(path, record)
    return path


def start_facts(stage: str) -> dict[str, Any]:
    """The command line, where and when it was given, and the versions that carry it out."""
    return {
        "stage": stage,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command_line(),
        "directory": os.getcwd(),
        "host": socket.gethostname(),
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
        "versions": {
            "sublora": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
        },
    }


def _read(path: Path) -> dict[str, Any]:
    record = read_json(path, missing="", fix="delete it")
    if not (
        isinstance(record, dict)
        and record.get("format") == FORMAT
        and isinstance(record.get("settings"), dict)
        and isinstance(record.get("starts"), list)
    ):
        raise UserError(f"{path}: expected a record of starts, format {FORMAT}; delete it")
    return record
