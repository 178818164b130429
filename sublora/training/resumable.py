"""A training that survives being stopped: signals, periodic saves, and going on from the last saved state."""

import abc
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sublora.system.errors import UserError
from sublora.system.signals import StopSignals, kill_follows
from sublora.system.versions import CHECKPOINT_FORMAT
from sublora.training import checkpoint
from sublora.training.checkpoint import History
from sublora.training.exchange import Peers
from sublora.training.reporting import Progress, Trackers

BeforeStep = Callable[[int], None]
"""A function that is called with the number of each step before the step is taken."""


class Interrupted(SystemExit):
    """Training was asked to stop by a signal; its state is saved. The exit status is 128 + the signal."""


class NonFinite(ArithmeticError):
    """A loss or a parameter is infinite or not a number."""


class ResumableTraining(abc.ABC):
    """A training of a fixed number of steps whose state is in one small file.

    A subclass defines a step, what is measured after it, the state, and the results.
    """

    def __init__(
        self,
        *,
        name: str,
        digest: str,
        steps: int,
        save_interval_steps: int,
        out: Path,
        progress: Progress,
        peers: Peers | None = None,
        trackers: Trackers | None = None,
        before_step: BeforeStep | None = None,
    ) -> None:
        """Prepare a training that has taken no step.

        Args:
            name: for messages.
            digest: of everything that the result depends on; a state with another digest is never resumed.
            steps: number of steps.
            save_interval_steps: steps between two saves of the state.
            out: folder of the results, and of the state until they are written.
            progress: shows the steps.
            peers: the processes that share the training; every one of them calls `train()`, the first one writes.
            trackers: receive every row of the history, in the first process.
            before_step: called before each step.
        """
        self.name, self.digest, self.steps, self.save_interval_steps = name, digest, steps, save_interval_steps
        self.out, self.progress, self.peers = out, progress, peers or Peers()
        self.history, self.trackers = History(), trackers or Trackers()
        self._before_step = before_step
        self._end_is_announced = False

    @property
    def state_path(self) -> Path:
        """The file of the resume state."""
        return self.out / "state" / f"{self.digest[:16]}.pt"

    def train(self) -> None:
        """Take all steps, from the saved state if there is one, and write the results.

        Raises:
            Interrupted: a signal asked to stop; the state is saved.
            UserError: the loss is not finite.
        """
        try:
            self._run()
        except NonFinite:
            raise UserError(self._non_finite()) from None
        if self.peers.is_first:
            self._write_results()

    def _run(self) -> None:
        self._resume()
        if self.history.step == 0 and self.peers.is_first:
            self._at_the_start()
        signals = StopSignals()
        started, seconds_before = time.monotonic(), self.history.seconds
        with signals.listening():
            for step in range(self.history.step, self.steps):
                if self._before_step is not None:
                    self._before_step(step)
                gradient_norm = self._step(step)
                self.history.step = done = step + 1
                self.history.seconds = seconds_before + time.monotonic() - started
                # A signal to any process counts for all of them.
                last, signal_number = done == self.steps, self.peers.largest(signals.take())
                self._after_step(gradient_norm, last)
                # Save at intervals and on a signal; on the last step only if the results may yet be deleted.
                self._end_is_announced |= kill_follows(signal_number)
                at_interval = not last and done % self.save_interval_steps == 0
                due = at_interval or signal_number or (last and self._end_is_announced)
                if due and self.peers.is_first:
                    self._save_state()
                if kill_follows(signal_number):
                    self.progress.say(f"SIGTERM: saved after step {done}; going on until SLURM ends the job")
                elif signal_number and not last:
                    raise Interrupted(128 + signal_number)

    def forget_state(self) -> None:
        """Delete the states, once the results are there.

        They are kept after SIGTERM in a SLURM job: the Snakemake that runs there has received it as well, reports
        failure even if the training ended well, and has the results deleted. The next start then writes them again from
        this state.
        """
        if self.state_path.parent.exists() and not self._end_is_announced:
            shutil.rmtree(self.state_path.parent)

    def _at_the_start(self) -> None:  # noqa: B027 - most trainings have nothing to do here
        """Prepare what has to be done before the first step of a training that is not resumed."""

    @abc.abstractmethod
    def _step(self, step: int) -> Any:
        """Take a step; return the norm of its gradient, on whatever device."""

    @abc.abstractmethod
    def _after_step(self, gradient_norm: Any, last: bool) -> None:
        """Record and evaluate the step, and keep the parameters if they are best. Raises NonFinite."""

    @abc.abstractmethod
    def _state(self) -> dict[str, Any]:
        """Return the state without the history, as plain values and CPU tensors. Raises NonFinite."""

    @abc.abstractmethod
    def _load_state(self, state: dict[str, Any]) -> None:
        """Take over what `_state` returned."""

    @abc.abstractmethod
    def _write_results(self) -> None:
        """Write what the training leaves behind."""

    def _save_state(self) -> None:
        header = {"format": CHECKPOINT_FORMAT, "digest": self.digest, "history": self.history.as_dict()}
        checkpoint.save(self.state_path, header | self._state())

    def _resume(self) -> None:
        """Load the state of these very settings if there is one; mention and leave alone those of other settings."""
        folder = self.state_path.parent
        others = [path for path in sorted(folder.glob("*.pt")) if path != self.state_path]
        if others:
            self.progress.say(f"{folder}: not resuming from {others[0].name}, a state of other settings or data")
        if not self.state_path.exists():
            return
        state = checkpoint.load(self.state_path)
        if state["digest"] != self.digest:
            raise UserError(f"{self.state_path}: resume state of another config; delete it")
        self.history = History(**state["history"])
        self._load_state(state)
        self.progress.say(f"resuming at step {self.history.step}")

    def _non_finite(self) -> str:
        saved = (
            f"the state before is kept in {self.state_path}" if self.state_path.exists() else "no state was saved yet"
        )
        return (
            f"{self.name}: the loss is not finite at step {self.history.step}; {saved}; "
            "lower training.learning_rate or training.gradient_clip"
        )
