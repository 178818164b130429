"""The files that a claim consists of, and what the verifier asks for."""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any, Literal

from sublora import config
from sublora.bounds.record import record_values
from sublora.data.dataset import TokenDataset, dataset_folder
from sublora.runs.base_files import base_weights_for_verifier
from sublora.runs.build import find_root
from sublora.system.errors import UserError
from sublora.system.names import (
    BOUNDS_NAME,
    CERTIFICATE_NAME,
    CHECKPOINT_NAME,
    LOSSES_NAME,
)

NAME_OF_A_RUN = re.compile(r"(.+_)?d(\d+|all)_.+_seed\d+")


@dataclasses.dataclass(frozen=True)
class Claim:
    """The files that a prover hands over, and the verifier's own base and data where they lie elsewhere."""

    certificate: Path
    bounds: Path
    losses: Path
    folder: Path | None = None
    """Folder of the run, if the claim was named by it."""
    base: Path | None = None
    """base.safetensors."""
    data: Path | None = None
    """A prepared dataset's folder."""
    root: Path | None = None
    """The folder that holds data/ and results/base/."""

    @classmethod
    def of(cls, folder: Path | None = None, **paths: Path | None) -> "Claim":
        """Name a claim by a run's folder, by its files, or by both; a file that is not named is beside the certificate.

        UserError if there is neither folder nor certificate.
        """
        certificate = paths.pop("certificate", None)
        if certificate is None:
            if folder is None:
                raise UserError("nothing to verify: give the folder of a run, or --certificate")
            certificate = folder / CERTIFICATE_NAME
        beside = folder or certificate.parent
        return cls(
            certificate=certificate,
            bounds=paths.pop("bounds", None) or beside / BOUNDS_NAME,
            losses=paths.pop("losses", None) or beside / LOSSES_NAME,
            folder=folder,
            **paths,
        )

    @property
    def checkpoint(self) -> Path | None:
        """The checkpoint that lies in the run's folder."""
        path = None if self.folder is None else self.folder / CHECKPOINT_NAME
        return path if path is not None and path.exists() else None

    @property
    def named_runs(self) -> list[str]:
        """The runs that the claim's folder is named after, sorted: by the path that was given and by where it leads.

        Both count, since a link may have the name of another run. Other names are not those of runs.
        """
        folders = {self.certificate.parent, self.certificate.resolve().parent}
        if self.folder is not None:
            folders.add(self.folder)
        names = {name for folder in folders for name in (Path(os.path.abspath(folder)).name, folder.resolve().name)}
        return sorted(name for name in names if NAME_OF_A_RUN.fullmatch(name))

    def data_root(self, data: config.Data) -> Path:
        """Return the folder that holds data/; UserError if no such folder is found."""
        return self.root or find_root(self.certificate.parent, data.name)

    def dataset(self, data: config.Data) -> TokenDataset:
        """The verifier's data; UserError if they are missing or were made with other settings."""
        folder = dataset_folder(self.data_root(data), data) if self.data is None else self.data
        return TokenDataset.open_folder(folder, data)

    def base_weights(self, data: config.Data) -> Path:
        """Locate a base that is not random: as named, else the verifier's own, else beside the certificate.

        UserError if it is at none of these places.
        """
        if self.base is not None:
            return self.base
        # Data that were named as a folder say nothing of where the verifier's results are.
        has_own_root = self.data is None or self.root is not None
        return base_weights_for_verifier(self.certificate, self.data_root(data) if has_own_root else None)


@dataclasses.dataclass(frozen=True)
class Options:
    """What the verifier asks for."""

    config_path: Path | None = None
    """The settings that the verifier expects."""
    device: Literal["cpu", "cuda"] | None = None
    base_sha256: str | None = None
    """The hash of the base that the verifier expects, in hexadecimal."""
    redraw: int | None = None
    """Number of training documents to score that the verifier draws."""
    nonce: str | None = None
    """Text that seeds the verifier's draw beside the certificate; chosen after the certificate was received."""
    test_data: Path | None = None
    """Folder of a prepared dataset whose test documents are the verifier's own."""

    def __post_init__(self) -> None:
        if self.base_sha256 is not None and not re.fullmatch("[0-9a-f]{64}", self.base_sha256):
            raise UserError(
                f"--base-sha256 {self.base_sha256}: expected 64 hexadecimal digits, as in results/base/base.json"
            )
        if (self.redraw is None) != (self.nonce is None):
            raise UserError(
                "--redraw and --nonce belong together: the documents are drawn by a text of your choice, which nobody "
                "could know while the certificate was made"
            )
        if self.redraw is not None and self.redraw < 1:
            raise UserError(f"--redraw {self.redraw}: expected at least 1 document")


def read_claim(path: Path) -> dict[str, Any]:
    """Return what bounds.json claims; UserError if it is missing, damaged, or names a key twice."""
    fix = f"compute the bound again (sublora bound {path.parent})"
    missing = f"; compute the bound first (sublora bound {path.parent})"
    return record_values(path, missing=missing, fix=fix)
