"""The line that each stage begins with: what was called, with which settings, by which versions, where."""

import platform
import shlex
import socket
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from sublora import __version__, config
from sublora.system.errors import printable

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "numpy", "constriction")


def announce(settings: BaseModel, device: "torch.device | None" = None) -> None:
    """Print the start line on stderr, which ends in a workflow's log. `device`: where networks run, if any do."""
    print(start_line(settings, device), file=sys.stderr, flush=True)


def start_line(settings: BaseModel, device: "torch.device | None" = None) -> str:
    """`$ command | settings DIGEST | versions | machine`; equal digests mean equal values of all settings."""
    digest = config.digest(settings.model_dump(mode="json"))
    versions = [f"sublora {__version__}", f"python {platform.python_version()}"]
    versions += [f"{name} {version(name)}" for name in PACKAGES]
    return printable(f"$ {command_line()} | settings {digest[:16]} | {', '.join(versions)} | {_machine(device)}")


def command_line() -> str:
    """What was typed to start this process, quoted for a shell; of the program its name alone."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _machine(device: "torch.device | None") -> str:
    if device is None:
        return f"{socket.gethostname()}, no network runs"
    from sublora.system.device import gpu_name

    return f"{socket.gethostname()}, {gpu_name(device) or device.type}"
