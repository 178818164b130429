"""A progress bar on a terminal, plain lines otherwise."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from sublora.system.locks import Presence


class Progress:
    """Loss, tokens per second and time left of a training; silent steps when stderr is not a terminal."""

    def __init__(
        self, title: str, *, steps: int, tokens_per_step: int, quiet: bool = False, presence: Presence | None = None
    ) -> None:
        """`quiet`: show and print nothing, as one of several processes on the same training.

        `presence`: where step, loss and time left are shown to other processes.
        """
        self._presence, self._steps = presence, steps
        self._first: tuple[int, float] | None = None
        """Step and time of the first update, from which the time left is reckoned."""
        self._quiet = quiet
        self._interactive = sys.stderr.isatty() and not quiet
        self._tokens_per_step = tokens_per_step
        self._console = Console(stderr=True, soft_wrap=True)
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._interactive,
        )
        self._task = self._bar.add_task(title, total=steps, facts="")

    def update(self, step: int, loss_bits: float, *, val_loss_bits: float | None = None) -> None:
        """Show a finished step; losses in bits per token. Lines are printed only with a val loss."""
        self._bar.update(self._task, completed=step)
        speed = self._bar.tasks[0].speed
        rate = f" {speed * self._tokens_per_step:,.0f} tokens/s" if speed else ""
        val = "" if val_loss_bits is None else f" val {val_loss_bits:.4f}"
        self._show(step, loss_bits)
        facts = f"loss {loss_bits:.4f}{val} bits{rate}"
        self._bar.update(self._task, facts=facts)
        if not self._interactive and not self._quiet and val_loss_bits is not None:
            print(f"step {step}: {facts}", file=sys.stderr, flush=True)

    def _show(self, step: int, loss_bits: float) -> None:
        if self._presence is None:
            return
        now = time.monotonic()
        first_step, since = self._first = self._first or (step, now)
        left = None if step == first_step else (now - since) / (step - first_step) * (self._steps - step)
        facts = {"step": step, "steps": self._steps, "loss_bits": loss_bits, "seconds_left": left}
        self._presence.update(last=step == self._steps, **facts)

    def say(self, text: str) -> None:
        if not self._quiet:
            self._console.print(text, markup=False, highlight=False)

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
