"""Facts about a process and its machine, on which no result depends: gathered once per stage and passed on.

They go into the line that a stage begins with, into run.json, checkpoints, the certificate's header, losses.npz and
bounds.json. Does not import torch.
"""

import dataclasses
import datetime
import os
import platform
import shlex
import socket
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field

from sublora import __version__

if TYPE_CHECKING:
    from torch import device as Device

PACKAGES = ("torch", "numpy", "scipy", "constriction", "safetensors", "tiktoken", "pydantic")
"""Packages whose versions are recorded, besides this one's and Python's."""


@dataclasses.dataclass(frozen=True)
class Provenance:
    """How a process was started, where, and the versions of what it runs."""

    command: str
    """What was typed, quoted for a shell; the program by its name alone."""
    directory: str
    """The working directory."""
    host: str
    started: str
    """When the stage began: ISO 8601, UTC, in seconds."""
    slurm_job_id: str | None
    versions: dict[str, str]
    """Version of `sublora`, of `python` and of each of PACKAGES that is installed: no stage needs all of them."""

    @classmethod
    def of_this_process(cls) -> "Provenance":
        """Gather the facts now."""
        return cls(
            command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            directory=os.getcwd(),
            host=socket.gethostname(),
            started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            slurm_job_id=os.environ.get("SLURM_JOB_ID"),
            versions={
                "sublora": __version__,
                "python": platform.python_version(),
                **{name: found for name in PACKAGES if (found := _installed(name)) is not None},
            },
        )

    def versions_of(self, *packages: str) -> dict[str, str]:
        """Return the versions of those of some packages that are installed, in the order of the arguments."""
        return {name: self.versions[name] for name in packages if name in self.versions}


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


Amount = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class TrainingFacts(BaseModel):
    """What a training took and where it ran, as its checkpoint and losses.npz hold it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    seconds: Amount
    peak_memory_mib: Amount
    gpu: str | None
    """The GPU's product name, None for a CPU."""
    python: str
    torch: str
    """The build, see `torch_build`."""
    slurm_job_id: str | None

    @classmethod
    def of(cls, provenance: Provenance, seconds: float, device: "Device") -> "TrainingFacts":
        """Return the facts at the end of a training of this process that ran on `device` for `seconds` in all."""
        from sublora.system.device import gpu_name, peak_memory_mib

        return cls(
            seconds=seconds,
            peak_memory_mib=peak_memory_mib(device),
            gpu=gpu_name(device),
            python=provenance.versions["python"],
            torch=torch_build(),
            slurm_job_id=provenance.slurm_job_id,
        )


def torch_build() -> str:
    """Return torch's own version, such as 2.9.0+cu128; the version of the installed package may lack the part after +.

    Imports torch.
    """
    import torch

    return str(torch.__version__)


def git_commit() -> str | None:
    """Return the commit of the checkout that this package lies in, None outside one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
