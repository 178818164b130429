"""One process at a time in a folder of results."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from sublora.system.files import remove_stale_temporaries, writing
from sublora.system.presence import Presence

LOCK_NAME = ".lock"
"""Stays in the folder for good: a lock file that is deleted locks out nobody who has it open already."""


def say_on_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def sole_writer(out: Path, presence: Presence, say: Callable[[str], None] = say_on_stderr) -> Iterator[bool]:
    """Hold the lock of a folder; yields whether another process had to be waited for, which `say` is told.

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
