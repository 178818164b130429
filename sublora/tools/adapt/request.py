"""What `sublora adapt` was asked for, and where documents and model are, seen from the folder of the results."""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any, Literal

from sublora.system.errors import UserError, printable
from sublora.system.pretrained import pretrained_folder

COMMIT = re.compile("[0-9a-f]{40}")
OPTIONS = {
    "data.corpus.text_field": "--text",
    "data.corpus.unit_field": "--unit",
    "data.corpus.path": "DOCUMENTS",
    "base.path": "--model",
}
"""Settings in the messages of other modules, and the argument of this command that stands for each."""


@dataclasses.dataclass(frozen=True)
class AdaptRequest:
    """The arguments that decide what is computed. Paths are relative to the folder of the results."""

    documents: str
    """A file or a folder."""
    model: str
    """A folder, or a hub id."""
    revision: str | None = None
    text_field: str = "text"
    unit: str | None = None
    """The key by which documents are grouped into units; None: each document is a unit."""
    targets: tuple[str, ...] | None = None
    """Names of the linear maps that are adapted; None: those of peft."""
    budget: int | None = None
    hours: float | None = None
    """Time for the training; None: the default number of steps."""
    steps: int | None = None
    device: Literal["cpu", "cuda"] | None = None
    independence: str | None = None
    """Why the model was fixed without the documents, in words."""

    def __post_init__(self) -> None:
        if self.hours is not None and self.steps is not None:
            raise UserError("--hours and --steps: give one of them")
        if self.hours is not None and not 0.0 < self.hours < 1e5:
            raise UserError(f"--hours {self.hours:g}: expected more than 0 and less than 100,000")
        for name, least in (("budget", 1), ("steps", 10)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"--{name} {value}: expected at least {least}")
        if self.independence is not None and not self.independence.strip():
            raise UserError("--independence: blank; say in words why the model has not read these documents")

    def as_json(self) -> dict[str, Any]:
        """Return the arguments as plain values."""
        return dataclasses.asdict(self) | {"targets": None if self.targets is None else list(self.targets)}

    def difference(self, found: dict[str, Any]) -> str | None:
        """Return in words the first argument that another request has otherwise; None if they agree.

        The statement of independence may be given later: it reaches the certificate alone, not the training.
        """
        own = self.as_json()
        for key in own.keys() - {"independence"}:
            if found.get(key) != own[key]:
                return f"{key.replace('_field', '')}: {printable(found.get(key), 80)} there, {own[key]} here"
        return None


def located(documents: Path, model: str, revision: str | None, out: Path) -> tuple[str, str]:
    """Return (documents, model) as settings name them: relative to `out`, or the model's id on the hub.

    Raises:
        UserError: there are no such documents, results would be read as documents, or the model is neither a folder nor
            an id of the hub.
    """
    root = out.resolve()
    found = documents.resolve()
    if not found.exists():
        raise UserError(f"{documents}: no such file or folder; give the documents' file or folder")
    if found.is_dir() and root.is_relative_to(found):
        raise UserError(f"--out {out}: lies in the folder of the documents, which would then hold results too")
    return os.path.relpath(found, root), _model_path(model, revision, root)


def _model_path(model: str, revision: str | None, root: Path) -> str:
    folder = Path(model)
    if folder.is_dir():
        if revision is not None:
            raise UserError(f"--revision {revision}: {model} is a folder, which has no revisions; leave it out")
        return os.path.relpath(folder.resolve(), root)
    expected = "expected a folder with config.json and safetensors, or a model's name on the Hugging Face hub"
    if folder.exists():
        raise UserError(f"--model {model}: a file; {expected}")
    if folder.is_absolute() or model.startswith(".") or not 1 <= len(folder.parts) <= 2:
        raise UserError(f"--model {model}: no such folder; {expected}")
    return model


def fixed_revision(model: str, revision: str | None, root: Path) -> tuple[Path, str | None]:
    """Return the folder of the model's files, and the commit on the hub that they are of; None for a folder.

    A branch may move between two stages, a commit does not.
    """
    folder = pretrained_folder(model, revision, root)
    if folder == root / model:
        return folder, None
    return folder, folder.name if COMMIT.fullmatch(folder.name) else revision


def in_options(error: UserError) -> UserError:
    """Return the error with the command's arguments in the place of settings, which the user has not written."""
    line = str(error)
    for key, option in OPTIONS.items():
        line = line.replace(key, option)
    return UserError(line)
