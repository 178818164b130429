"""One process at a time in a folder of results."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

LOCK_NAME = ".lock"
"""Stays in the folder for good: a lock file that is deleted locks out nobody who has it open already."""


@contextlib.contextmanager
def sole_trainer(out: Path, say: Callable[[str], None]) -> Iterator[bool]:
    """Hold the lock of a folder; yields whether another process had to be waited for, which `say` is told.

    The lock belongs to the process, so a killed trainer leaves none behind.
    """
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / LOCK_NAME)
    waited = False
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"{out}: another process is training here; waiting for it to end")
        waited = True
        lock.acquire()
    try:
        yield waited
    finally:
        lock.release()
