"""One process at a time in a folder of results, and a small file that shows which one and how far it is.

Only the lock keeps processes apart. The file is for `sublora status`, and for a process that waits, which gives up when
the holder of the lock has given no sign for hours. A file that a killed process left behind says only that it died.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sublora.system.errors import UserError, printable
from sublora.system.files import os_reason, remove_stale_temporaries, write_bytes, writing

LOCK_NAME = ".lock"
"""Stays in the folder for good: a process that has a deleted lock file open would lock out nobody."""
RUNNING_NAME = ".running.json"
SILENT_SECONDS = 1800.0
"""A process on another machine, which cannot be asked whether it lives, counts as dead after this long without a
sign."""
LONGEST_SILENCE_SECONDS = 6 * 3600.0
"""A waiting process gives up when the holder of the lock has given no sign for this long, the longest scoring."""
_WRITE_SECONDS = 2.0
_POLL_SECONDS = 0.05, 1.0
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What flock answers where it does not work: NFS without its lock service, Lustre without the mount option."""


class ProcessLock:
    """A lock on a file, held by one process; the system takes it back when the process ends, however it ends.

    `flock` alone: a lock by existence, which libraries fall back on where flock is missing, would outlive its process.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Lock the file without waiting; return False if another process holds it.

        Raises:
            UserError: the file system has no locks, or the file cannot be written.
        """
        with writing(self.path):
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
                return False
            if error.errno in _NO_LOCKS:
                raise UserError(
                    f"{self.path.parent}: this file system has no locks ({os_reason(error)}); mount it with the option "
                    "flock (Lustre) or with its lock service (NFS: not with nolock), or work on another one"
                ) from None
            raise
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Give the lock back, if this process holds it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


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

    Raises:
        UserError: the file system has no locks, or the process that holds the lock gives no sign any more.
    """
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    lock = ProcessLock(out / LOCK_NAME)
    waited = not lock.acquire()
    if waited:
        say(f"{out}: another process is at work here; waiting for it to end")
        _wait_for(lock, out)
    try:
        for folder in (out, out / "state"):
            remove_stale_temporaries(folder)
        with presence.shown():
            yield waited
    finally:
        lock.release()


def _wait_for(lock: ProcessLock, out: Path) -> None:
    """Return when the lock is free and held. UserError if its holder gives no sign for LONGEST_SILENCE_SECONDS."""
    pause, longest_pause = _POLL_SECONDS
    last_sign, since = None, time.monotonic()
    while not lock.acquire():
        # A sign is a new date of the holder's file, by whatever clock.
        with contextlib.suppress(OSError):
            if (sign := (out / RUNNING_NAME).stat().st_mtime_ns) != last_sign:
                last_sign, since = sign, time.monotonic()
        if time.monotonic() - since > LONGEST_SILENCE_SECONDS:
            holder = read_presence(out) or {}
            who = f"{printable(holder.get('stage'))} on {printable(holder.get('host'))}, process {holder.get('pid')}"
            raise UserError(
                f"{lock.path}: held by another process ({who if holder else 'unknown'}) that has given no sign for "
                f"{LONGEST_SILENCE_SECONDS / 3600:g} hours; end it and start again"
            )
        time.sleep(pause)
        pause = min(2 * pause, longest_pause)
