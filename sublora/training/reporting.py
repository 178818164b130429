"""Show a training to people: a progress bar, CSV files, and copies of its rows for TensorBoard and W&B.

No training reads any of it back. A training that goes on from a saved state logs the steps since that state again, with
the same losses.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from sublora import config
from sublora.system.errors import UserError
from sublora.system.files import atomic_path
from sublora.system.locks import Presence

TENSORBOARD_FOLDER = "tensorboard"

Values = Mapping[str, Any]
"""A row, as values by column name; those that are not numbers are left out."""


class Progress:
    """Loss, tokens per second and time left of a training: a bar on a terminal, otherwise a line per evaluation."""

    def __init__(
        self, title: str, *, steps: int, tokens_per_step: int, quiet: bool = False, presence: Presence | None = None
    ) -> None:
        """Prepare the bar, which is shown inside a `with` block.

        Args:
            title: name of the training.
            steps: number of steps.
            tokens_per_step: tokens of a batch.
            quiet: show and print nothing, for all but one of the processes of a training.
            presence: where step, loss and time left are shown to other processes.
        """
        self._presence, self._steps = presence, steps
        self._first: tuple[int, float] | None = None
        """Step and time of the first update, by which the time left is estimated."""
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
        """Show a finished step; losses in bits per token. Without a terminal only steps with a val loss are printed."""
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
        """Print a line above the bar."""
        if not self._quiet:
            self._console.print(text, markup=False, highlight=False)

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


def write_csv(path: Path, columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    """Write comma-separated rows with a header; floats have 7 significant digits."""
    lines = [",".join(columns)]
    for row in rows:
        lines.append(",".join(f"{v:.7g}" if isinstance(v, float | np.floating) else str(v) for v in row))
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


class Tracker(Protocol):
    """Something outside that keeps the rows of a training's history."""

    def log(self, step: int, values: Values) -> None:
        """Log a row of the history."""


class Trackers:
    """Several trackers as one, or none."""

    def __init__(self, trackers: tuple[Tracker, ...] = ()) -> None:
        self._trackers = trackers

    def log(self, step: int, values: Values) -> None:
        """Log a row with every tracker."""
        for tracker in self._trackers:
            tracker.log(step, values)


class TensorBoard:
    """Scalars in event files that tensorboardX writes."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def log(self, step: int, values: Values) -> None:
        for name, value in _numbers(values).items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()


class WeightsAndBiases:
    """Rows of a run at Weights & Biases."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, step: int, values: Values) -> None:
        self._run.log(_numbers(values), step=step)


@contextlib.contextmanager
def tracked(
    settings: config.Settings, *, name: str, digest: str, out: Path, say: Callable[[str], None]
) -> Iterator[Trackers]:
    """Open the trackers that the settings ask for, and yield them.

    Args:
        settings: the section `tracking` says which; W&B gets all settings.
        name: of the run.
        digest: of everything that the run's result depends on, by which W&B recognizes it when it is resumed.
        out: folder of the files.
        say: is told if W&B has to work offline.

    Raises:
        UserError: a package is not installed, or W&B refuses (online without a key).
    """
    with contextlib.ExitStack() as stack:
        found: list[Tracker] = []
        if settings.tracking.tensorboard:
            found.append(TensorBoard(stack.enter_context(_tensorboard(out))))
        if settings.tracking.wandb is not None:
            run = _wandb_run(settings, settings.tracking.wandb, name=name, digest=digest, out=out, say=say)
            found.append(WeightsAndBiases(stack.enter_context(run)))
        yield Trackers(tuple(found))


def _numbers(values: Values) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}


def _tensorboard(out: Path) -> Any:
    try:
        import tensorboardX
    except ImportError:
        raise UserError(
            "tracking.tensorboard: the package tensorboardX is not installed; pip install 'sublora[tracking]', or set "
            "it to false"
        ) from None
    return tensorboardX.SummaryWriter(str(out / TENSORBOARD_FOLDER))


def _wandb_run(
    settings: config.Settings, mode: str, *, name: str, digest: str, out: Path, say: Callable[[str], None]
) -> Any:
    try:
        import wandb
    except ImportError:
        raise UserError(
            "tracking.wandb: the package wandb is not installed; pip install wandb, or set it to null"
        ) from None
    options: dict[str, Any] = {
        "project": settings.tracking.wandb_project,
        "name": name,
        "dir": str(out),
        "config": settings.model_dump(mode="json"),
    }
    try:
        return wandb.init(**options, id=digest[:16], mode=mode, resume="allow" if mode == "online" else None)
    except wandb.errors.CommError as error:
        say(f"tracking.wandb: no server ({_line(error)}); writing offline, into {out / 'wandb'}")
        # W&B regards the first id as in use until the process ends.
        return wandb.init(**options, id=f"{digest[:16]}-offline", mode="offline")
    except wandb.errors.Error as error:
        raise UserError(f"tracking.wandb: {_line(error)}; log in (wandb login), or set it to offline") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
