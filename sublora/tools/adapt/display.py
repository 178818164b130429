"""The one progress display of `sublora adapt`: which stage runs, how far it is, and the time left.

On a terminal it is a bar per stage, elsewhere plain lines. What the stages themselves write on stderr goes to a log for
each of them; only their notes and warnings are shown.
"""

import contextlib
import io
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.progress_bar import ProgressBar

from sublora.system.errors import printable
from sublora.system.files import writing
from sublora.tools.status import duration

SHOWN = ("note: ", "warning: ")
"""Lines of a stage that begin so are shown."""
PLAIN_LINES = 10
"""Lines per training where there is no terminal."""
ALMOST = 0.98
"""How far a bar gets by time alone."""


class StageLog(io.TextIOBase):
    """Takes the place of stderr while a stage runs."""

    def __init__(self, path: Path, show: Callable[[str], None]) -> None:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115 - closed below
        self._show, self._line = show, ""

    def write(self, text: str) -> int:
        if self._file.closed:
            return len(text) if sys.stderr is self else sys.stderr.write(text)
        self._file.write(text)
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            if line.startswith(SHOWN):
                self._show(line)
        return len(text)

    def flush(self) -> None:
        if not self._file.closed:
            self._file.flush()

    def end(self) -> None:
        """Close the file. Who took this for stderr while the stage ran, as loggers do, writes on stderr from now on."""
        self._file.close()


class _Bar(ProgressColumn):
    """Steps that are done, or the share of the expected time that is over."""

    max_refresh = None

    def render(self, task: Task) -> ProgressBar:
        return ProgressBar(total=1.0, completed=_share(task), width=30, pulse=False)


class _Left(ProgressColumn):
    """Time left."""

    max_refresh = None

    def render(self, task: Task) -> str:
        if task.finished_time is not None or task.fields["done"]:
            return ""
        left = _seconds_left(task)
        return "" if left is None else f"{duration(left)} left"


def _share(task: Task) -> float:
    if task.fields["done"]:
        return 1.0
    if task.total:
        return min(1.0, task.completed / task.total)
    seconds, elapsed = task.fields["seconds"], task.elapsed or 0.0
    return min(ALMOST, elapsed / seconds) if seconds else 0.0


def _seconds_left(task: Task) -> float | None:
    first, seconds, elapsed = task.fields.get("first"), task.fields["seconds"], task.elapsed or 0.0
    if task.total and first is not None and task.completed > first:
        return float((elapsed - task.fields["setup"]) / (task.completed - first) * (task.total - task.completed))
    return max(0.0, seconds - elapsed) if seconds else None


class Display:
    """Shows the stages of one command, in their order."""

    def __init__(self, stages: Sequence[str], logs: Path) -> None:
        """`logs`: the folder of the stages' logs."""
        self._stages, self._logs = stages, logs
        self._stderr: TextIO = sys.stderr
        self._notes: set[str] = set()
        self._console = Console(file=self._stderr, soft_wrap=True)
        self._live = self._stderr.isatty()
        columns = (TextColumn("{task.description}"), _Bar(), TextColumn("{task.fields[facts]}"), TimeElapsedColumn())
        self._bars = Progress(
            *columns,
            _Left(),
            console=self._console,
            disable=not self._live,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> "Display":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        """Print a line, above the bars if there are any."""
        if self._live:
            self._console.print(printable(text), markup=False, highlight=False)
        else:
            print(printable(text), file=self._stderr, flush=True)

    def skip(self, name: str) -> None:
        """Say that the results of a stage are there already."""
        self._line(name, "done before")
        if self._live:
            self._bars.add_task(
                self._title(name), start=False, total=None, facts="done before", done=True, seconds=None
            )

    @contextlib.contextmanager
    def stage(
        self, name: str, what: str, *, steps: int | None = None, seconds: float | None = None
    ) -> Iterator[Callable[[int], None]]:
        """Show a stage while the block runs; yield a function that takes the number of the step that comes next.

        Args:
            name: of the stage.
            what: what it does, in words.
            steps: how many steps it has, None if it counts none.
            seconds: the time that it is expected to take, None if that is short or not known.
        """
        expected = "" if seconds is None or seconds < 20 else f", about {duration(seconds)}"
        self._line(name, f"{what}{expected}")
        started = time.monotonic()
        task = self._bars.add_task(self._title(name), total=steps, facts=what, done=False, seconds=seconds)
        shown = _Steps(steps or 0, started)

        def advance(step: int) -> None:
            if shown.first is None:
                self._bars.update(task, first=step, setup=time.monotonic() - started)
            if (line := shown.line(step)) is not None:
                self._line(name, line)
            self._bars.update(task, completed=step, facts=f"{step:,}/{steps:,}")

        log = StageLog(self._logs / f"{name}.log", self._note)
        try:
            with contextlib.redirect_stderr(log):
                yield advance
        except BaseException:
            self._bars.update(task, facts="stopped")
            self._bars.stop_task(task)
            raise
        finally:
            log.end()
        self._bars.update(task, done=True, facts=what)
        self._bars.stop_task(task)
        self._line(name, f"done in {duration(time.monotonic() - started)}")

    def _title(self, name: str) -> str:
        return f"{self._stages.index(name) + 1}/{len(self._stages)} {name}"

    def _line(self, name: str, text: str) -> None:
        if not self._live:
            self.say(f"{self._title(name)}: {text}")

    def _note(self, line: str) -> None:
        """Show a note once, however many stages find the same."""
        if line not in self._notes:
            self._notes.add(line)
            self.say(line)


class _Steps:
    """Which steps are worth a plain line."""

    def __init__(self, steps: int, started: float) -> None:
        self._interval = max(1, steps // PLAIN_LINES)
        self._steps, self._next, self._since = steps, 0, started
        self.first: int | None = None

    def line(self, step: int) -> str | None:
        """Return what to print before a step, None for most of them."""
        now = time.monotonic()
        if self.first is None:
            self.first, self._since = step, now
            self._next = step - step % self._interval + self._interval
            return f"goes on at step {step:,} of {self._steps:,}" if step else None
        if step < self._next:
            return None
        self._next += self._interval
        left = (now - self._since) / (step - self.first) * (self._steps - step)
        return f"step {step:,} of {self._steps:,}, {duration(left)} left"
