"""Signals that end a job, and those that only announce its end.

SLURM sends SIGTERM ahead of every kill: at the start of a preemption's grace time, before the time limit (with
--signal), and at the limit itself. A job that ends on it counts as failed; one that is still there when it is killed is
requeued, or at least works until the last moment. So in a SLURM job SIGTERM asks to save and nothing else. Elsewhere,
and with SIGUSR1 everywhere, it asks to save and stop.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType


def kill_follows(number: int) -> bool:
    """Whether a process that goes on after this signal is killed later: SIGTERM in a SLURM job.

    Not under torchrun with several processes: it ends them itself, 30 seconds after SIGTERM.
    """
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    return number == signal.SIGTERM and "SLURM_JOB_ID" in os.environ and alone


def outlive_announcements() -> None:
    """For the rest of this process, not to die of a SIGTERM after which the kill follows anyway.

    A handler, since ignored signals would be ignored in every process started from here as well.
    """
    if kill_follows(signal.SIGTERM):
        signal.signal(signal.SIGTERM, lambda number, frame: None)


class StopSignals:
    """SIGTERM and SIGUSR1, received instead of dying of them."""

    NUMBERS = (signal.SIGUSR1, signal.SIGTERM)

    def __init__(self) -> None:
        self._received: list[int] = []

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Receive the signals; afterwards everything is as before."""
        previous = {number: signal.signal(number, self._receive) for number in self.NUMBERS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def take(self) -> int:
        """The signal that arrived since the last call, SIGUSR1 if both did; 0 if there is none."""
        received, self._received = self._received, []
        return min(received, key=self.NUMBERS.index, default=0)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received.append(number)
