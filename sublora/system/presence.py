"""Who is at work in a folder, and how far: a small file for `sublora status`, there while its process works.

Nothing is decided by it: locks keep processes apart, and a file that a killed process left says only that it died.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sublora.system.errors import UserError
from sublora.system.files import write_bytes

RUNNING_NAME = ".running.json"
SILENT_SECONDS = 1800.0
"""On another machine, of which one cannot ask whether the process lives: no sign for so long, and it counts as dead."""
_WRITE_SECONDS = 2.0


class Presence:
    """The file of this process in a folder."""

    def __init__(self, folder: Path, stage: str) -> None:
        self._path = folder / RUNNING_NAME
        self._facts = {"stage": stage, "host": socket.gethostname(), "pid": os.getpid(), "started": time.time()}
        self._written = -_WRITE_SECONDS

    def update(self, *, last: bool = False, **facts: Any) -> None:
        """Write facts as plain JSON values beside who is at work; at most every two seconds, but for the last."""
        if time.monotonic() - self._written < _WRITE_SECONDS and not last:
            return
        self._written = time.monotonic()
        # A full disk stops the work where its results do not fit, not here.
        with contextlib.suppress(UserError):
            write_bytes(self._path, json.dumps(self._facts | facts).encode())

    @contextlib.contextmanager
    def shown(self) -> Iterator["Presence"]:
        """The file is there until the block ends, in whatever way but for a kill."""
        self.update()
        try:
            yield self
        finally:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)


def read_presence(folder: Path) -> dict[str, Any] | None:
    """What the file in a folder says, with "alive"; None without a readable one."""
    path = folder / RUNNING_NAME
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        age = time.time() - path.stat().st_mtime
        here, pid = facts["host"] == socket.gethostname(), int(facts["pid"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return facts | {"alive": _lives(pid) if here else age < SILENT_SECONDS}


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return pid > 0
