"""Signals that end a job, and those that only announce its end.

SLURM sends SIGTERM ahead of every kill: at the start of a preemption's grace time, before the time limit (with
--signal), and at the limit itself. A job that ends on it counts as failed; one that still runs when it is killed is
requeued, or at least works until the last moment. So in a SLURM job SIGTERM means to save and go on. Elsewhere, and
with SIGUSR1 everywhere, a signal means to save and stop.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType


def kill_follows(number: int) -> bool:
    """Return whether a process that goes on after this signal is killed later: SIGTERM in a SLURM job.

    False under torchrun with several processes: torchrun kills them 30 seconds after SIGTERM.
    """
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    return number == signal.SIGTERM and "SLURM_JOB_ID" in os.environ and alone


def outlive_announcements() -> None:
    """Keep this process from dying of a SIGTERM that only announces the kill.

    By a handler, since processes started from here would inherit it if the signal were ignored.
    """
    if kill_follows(signal.SIGTERM):
        signal.signal(signal.SIGTERM, lambda number, frame: None)


class StopSignals:
    """Receives SIGTERM and SIGUSR1, so that the process does not die of them."""

    NUMBERS = (signal.SIGUSR1, signal.SIGTERM)

    def __init__(self) -> None:
        self._received: list[int] = []

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Receive the signals until the block ends, then restore the previous handlers."""
        previous = {number: signal.signal(number, self._receive) for number in self.NUMBERS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def take(self) -> int:
        """Return the signal that arrived since the last call, SIGUSR1 if both did, 0 if neither did."""
        received, self._received = self._received, []
        return min(received, key=self.NUMBERS.index, default=0)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received.append(number)
