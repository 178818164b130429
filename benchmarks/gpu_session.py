"""One call of `make gpu`: commands within the time of their part, and results that are written after each of them."""

import contextlib
import dataclasses
import datetime
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import gpu_folder, tables
from benchmarks.gpu_folder import ROOT
from sublora.system.errors import UserError
from sublora.system.files import read_json, write_bytes, write_json

SHARE_OF_FIXED_PARTS = 0.6
"""What the other parts take of all the time at most; the parts that train get the rest."""
GRACE_SECONDS = 10.0
"""From the signal that stops a command to the one that kills it: a training finishes its step and saves."""
NOT_ENDED = "did not end"


class OutOfTime(Exception):
    """A command was stopped at the limit of its part."""


class CommandFailed(Exception):
    """A command did not do what a part needs; the text is one line."""


@dataclasses.dataclass
class Session:
    """One call of `make gpu`: its options, the part that runs, and the results so far."""

    folder: Path
    out: Path
    device: str
    minutes: float
    toy: bool = False
    steps: int | None = None
    """Steps of a training; None: as many as the time allows."""
    machine: dict[str, Any] = dataclasses.field(default_factory=dict)
    parts: dict[str, Any] = dataclasses.field(default_factory=dict)
    part: str = ""
    deadline: float = 0.0
    """When the part that runs must end, on the monotonic clock."""

    @property
    def log(self) -> Path:
        """The file with everything that the part's commands print."""
        return self.folder / "logs" / f"{self.part}.log"

    @property
    def seconds_left(self) -> float:
        """Until the part's limit."""
        return self.deadline - time.monotonic()

    def call(self, *command: str | Path, cwd: Path | None = None, expected: int = 0) -> None:
        """Run Python with these arguments until it ends or the part's time is over; its output goes to the log.

        Raises:
            OutOfTime: it was stopped, first by a signal on which a training saves its state.
            CommandFailed: its exit status is not the one expected.
        """
        if self.seconds_left <= 0:
            raise OutOfTime
        paths = [str(ROOT), str(self.folder / gpu_folder.SITE), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "ab") as log:
            process = subprocess.Popen(
                [sys.executable, *map(str, command)],
                cwd=cwd or self.folder,
                env=environment,
                stdout=log,
                stderr=log,
                process_group=0,
            )
            try:
                status = process.wait(self.seconds_left)
            except subprocess.TimeoutExpired:
                # On SIGUSR1 a training saves and stops also in a SLURM job, where SIGTERM only announces the end.
                process.send_signal(signal.SIGUSR1)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE_SECONDS)
                raise OutOfTime from None
            finally:
                # Whatever the command started as well, such as the compiler's workers.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if status != expected:
            raise CommandFailed(f"exit status {status}: {self.last_line()}")

    def sublora(self, *arguments: str | Path) -> None:
        """Run a command of sublora's command line."""
        self.call("-m", "sublora.cli", *arguments)

    def measure(self, name: str, *arguments: str | Path) -> dict[str, Any]:
        """Return what a measurement of `benchmarks.gpu_measure` wrote, which is noted even if it is stopped."""
        path = self.folder / "measured" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        try:
            self.call("-m", "benchmarks.gpu_measure", name, "--out", path, *arguments)
        finally:
            measured: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
            self.note(measured)
        return measured

    def output(self) -> str:
        """Return the log."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def last_line(self) -> str:
        """Return the last line of the log."""
        lines = self.output().strip().splitlines()
        return lines[-1].strip()[:300] if lines else "no output"

    def note(self, values: dict[str, Any]) -> None:
        """Add to the results of the part that runs, and write all results."""
        self.parts.setdefault(self.part, {}).update(values)
        self.write()

    def write(self) -> None:
        """Write {machine}.json and {machine}.md; parts of an earlier call and what `make bench` measured are kept."""
        if not self.machine:
            return
        name = self.machine["name"] + ("-toy" if self.toy else "")
        path = self.out / f"{name}.json"
        before = read_json(path, missing="", fix="move it away") if path.exists() else {}
        parts = before.get("gpu", {}).get("parts", {}) | self.parts
        results = {"machine": self.machine, "device": self.device, "minutes": self.minutes, "parts": parts}
        write_json(path, before | {"gpu": results})
        write_bytes(path.with_suffix(".md"), tables.gpu_markdown(results).encode())


@dataclasses.dataclass(frozen=True)
class Part:
    """Commands with a common limit."""

    name: str
    seconds: float | None
    """Its limit where there is time enough; None: a share of what the other parts leave."""
    work: Callable[[Session], None]
    whole: bool = False
    """Whether its limit stays where there is little time, since nothing goes on without it."""


def limits(parts: list[Part], seconds: float) -> list[float]:
    """Return the limit of each part; together they are `seconds`, or more where these are too few for a whole part."""
    whole = sum(part.seconds or 0.0 for part in parts if part.whole)
    seconds = max(0.0, seconds - whole)
    fixed = sum(part.seconds or 0.0 for part in parts if not part.whole)
    trainings = sum(part.seconds is None for part in parts)
    scale = min(1.0, SHARE_OF_FIXED_PARTS * seconds / fixed) if fixed and trainings else 1.0
    rest = (seconds - scale * fixed) / max(1, trainings)
    return [rest if part.seconds is None else (1.0 if part.whole else scale) * part.seconds for part in parts]


def run_parts(session: Session, parts: list[Part]) -> None:
    """Run the parts in turn; time that one leaves goes to the trainings after it.

    UserError if the machine cannot be measured at all: the results have no name then.
    """
    end = time.monotonic() + 60.0 * session.minutes
    for number, part in enumerate(parts):
        began = time.monotonic()
        limit = limits(parts[number:], max(0.0, end - began))[0]
        session.part, session.deadline = part.name, began + limit
        session.log.unlink(missing_ok=True)
        session.parts[part.name] = {
            "outcome": NOT_ENDED,
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "limit_seconds": limit,
        }
        session.write()
        try:
            part.work(session)
            outcome = "done"
        except OutOfTime:
            outcome = f"stopped at its limit of {limit:.0f} s"
        except (CommandFailed, UserError) as error:
            outcome = f"failed: {error}"
        session.note({"outcome": outcome, "seconds": time.monotonic() - began})
        if not session.machine:
            raise UserError(f"{part.name}: {outcome}; everything it printed is in {session.log}")
        gpu_folder.pack_runs(session.folder)
        print(f"{part.name}: {outcome}, {time.monotonic() - began:.0f} s", flush=True)
