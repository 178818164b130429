"""One process at a time in a folder of results, and a small file that shows which one and how far it is.

Only the lock keeps processes apart. The file is for `sublora status`, and nothing is decided by it: one that a killed
process left behind says only that the process died.
"""

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sublora.system.errors import UserError
from sublora.system.files import remove_stale_temporaries, write_bytes, writing

LOCK_NAME = ".lock"
"""Stays in the folder for good: a process that has a deleted lock file open would lock out nobody."""
RUNNING_NAME = ".running.json"
SILENT_SECONDS = 1800.0
"""A process on another machine, which cannot be asked whether it lives, counts as dead after this long without a
sign."""
_WRITE_SECONDS = 2.0


class Presence:
    """The file by which this process shows in a folder what it does there."""

    def __init__(self, folder: Path, stage: str) -> None:
        self._path = folder / RUNNING_NAME
        self._facts = {"stage": stage, "host": socket.gethostname(), "pid": os.getpid(), "started": time.time()}
        self._written = -_WRITE_SECONDS

    def update(self, *, last: bool = False, **facts: Any) -> None:
        """Write facts, plain JSON values, beside who is at work; every two seconds at most, except with `last`."""
        if time.monotonic() - self._written < _WRITE_SECONDS and not last:
            return
        self._written = time.monotonic()
        # A full disk stops the work where its results do not fit, not here.
        with contextlib.suppress(UserError):
            write_bytes(self._path, json.dumps(self._facts | facts).encode())

    @contextlib.contextmanager
    def shown(self) -> Iterator["Presence"]:
        """Keep the file in the folder until the block ends; only a killed process leaves it behind."""
        self.update()
        try:
            yield self
        finally:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)


def read_presence(folder: Path) -> dict[str, Any] | None:
    """Return what the file in a folder says, and under "alive" whether its process lives; None if it is unreadable."""
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


def say_on_stderr(text: str) -> None:
    """Print a line on stderr at once."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def sole_writer(out: Path, presence: Presence, say: Callable[[str], None] = say_on_stderr) -> Iterator[bool]:
    """Hold the lock of a folder; yield whether another process held it first, which `say` reports.

    The lock belongs to the process, so a killed one leaves none behind; what it had half written is deleted.
    `presence` shows in the folder who holds the lock.
    """
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / LOCK_NAME)
    waited = False
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"{out}: another process is at work here; waiting for it to end")
        waited = True
        lock.acquire()
    try:
        for folder in (out, out / "state"):
            remove_stale_temporaries(folder)
        with presence.shown():
            yield waited
    finally:
        lock.release()
