"""Copies of a training's history for TensorBoard and for Weights & Biases. They are written and never read.

A training that goes on from a saved state writes the steps since that state again, with the same losses.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from sublora import config
from sublora.system.errors import UserError

TENSORBOARD_FOLDER = "tensorboard"

Values = Mapping[str, Any]
"""A row by its columns; what is not a number in it is left out."""


class Tracker(Protocol):
    def log(self, step: int, values: Values) -> None:
        """Take a row of the history."""


class Trackers:
    """Hands every row to each of some trackers; with none it does nothing."""

    def __init__(self, trackers: tuple[Tracker, ...] = ()) -> None:
        self._trackers = trackers

    def log(self, step: int, values: Values) -> None:
        for tracker in self._trackers:
            tracker.log(step, values)


class TensorBoard:
    """Scalars in event files, by tensorboardX."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def log(self, step: int, values: Values) -> None:
        for name, value in _numbers(values).items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()


class WeightsAndBiases:
    """Rows of a W&B run."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, step: int, values: Values) -> None:
        self._run.log(_numbers(values), step=step)


@contextlib.contextmanager
def tracked(
    settings: config.Settings, *, name: str, digest: str, out: Path, say: Callable[[str], None]
) -> Iterator[Trackers]:
    """The trackers that the settings ask for, open while the block runs.

    name: of the run; digest: of everything its result depends on, by which W&B knows it again when it is resumed.
    UserError if a package is not installed, or W&B refuses (online without a key).
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
        # The first id counts as in use until the process ends.
        return wandb.init(**options, id=f"{digest[:16]}-offline", mode="offline")
    except wandb.errors.Error as error:
        raise UserError(f"tracking.wandb: {_line(error)}; log in (wandb login), or set it to offline") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
