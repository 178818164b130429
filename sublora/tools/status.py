"""Report how far the grid has come, from files alone: results, who is at work, and the logs of what failed."""

import contextlib
import dataclasses
import hashlib
import math
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sublora import config
from sublora.bounds.record import read_record
from sublora.coding.certificate import read_certificate
from sublora.runs.starts import foreign_setting
from sublora.system.archives import check_seal
from sublora.system.errors import UserError, printable
from sublora.system.locks import read_presence
from sublora.system.names import (
    BASE_FOLDER,
    BASE_JSON_NAME,
    BOUNDS_NAME,
    CERTIFICATE_NAME,
    CHECKPOINT_NAME,
    LOSSES_NAME,
)

STAGES = ("untrained", "training", "trained", "encoded", "bounded")
STATES = ("done", "running", "failed", "damaged", "waiting", "foreign", "missing")
"""done: bounded; waiting: unfinished, and nothing is wrong; foreign: made with other settings; missing: no results."""
COLOURS = {
    **{"done": "green", "running": "cyan", "failed": "red", "damaged": "red"},
    **{"waiting": "yellow", "foreign": "magenta", "missing": "dim"},
}
RULES = {"untrained": "train", "training": "train", "trained": "score", "encoded": "bound"}
"""The rule of the workflow that comes after a stage, whose log says what went wrong."""
FAILED = re.compile(r"(\w+: )?error: |\w*(Error|Exception)\b|Killed|Aborted")
"""The beginnings of a failed job's last log line: from this package, SLURM, Python and the shell."""
REFRESH_SECONDS = 5.0
LOG_TAIL_BYTES = 8192
WIDTH_IN_FILES = 160
"""Characters per line if the output is not a terminal."""


def run_stage(folder: Path) -> str:
    """Return the last of STAGES that a run's folder has reached."""
    if (folder / BOUNDS_NAME).exists():
        return "bounded"
    if (folder / CERTIFICATE_NAME).exists():
        return "encoded"
    if (folder / CHECKPOINT_NAME).exists():
        return "trained"
    return "training" if any((folder / "state").glob("*.pt")) else "untrained"


def base_stage(folder: Path) -> str:
    """Return how far the base has come: missing, training or made."""
    if (folder / BASE_JSON_NAME).exists():
        return "made"
    return "training" if any((folder / "state").glob("*.pt")) else "missing"


@dataclasses.dataclass(frozen=True)
class RunStatus:
    """One row of the table."""

    name: str
    state: str
    """One of STATES."""
    doing: str = ""
    step: str = ""
    loss_bits: float | None = None
    """The training loss, bits per token."""
    seconds_left: float | None = None
    bound_bits: float | None = None
    message_bits: float | None = None
    note: str = ""
    """Why the run failed, or what is damaged."""

    def cells(self) -> tuple[Text, ...]:
        """Return the cells as plain text, since a log may hold markup."""
        texts = (
            self.name,
            self.state,
            self.doing,
            self.step,
            "" if self.loss_bits is None else f"{self.loss_bits:.3f}",
            "" if self.seconds_left is None else duration(self.seconds_left),
            "" if self.bound_bits is None else f"{self.bound_bits:.3f}",
            "" if self.message_bits is None else f"{self.message_bits:,.0f}",
        )
        return tuple(Text(text, style=COLOURS[self.state] if i == 1 else "") for i, text in enumerate(texts))


def run_status(folder: Path, logs: Path) -> RunStatus:
    """Return what a run's folder and its logs, `logs`/RULE/RUN.log, say; damaged files are reported, not raised."""
    presence = read_presence(folder)
    if presence is not None and presence["alive"]:
        return _running(folder.name, presence)
    # Without a living process, the files tell how far the run has come.
    stage = run_stage(folder)
    try:
        _check_files(folder)
        if stage == "bounded":
            return _done(folder)
    except (UserError, OSError) as error:
        return RunStatus(folder.name, "damaged", note=printable(error))
    # A killed process leaves its presence behind, a failed one its last words in the log.
    last = last_log_line(logs / RULES[stage] / f"{folder.name}.log")
    if presence is not None or FAILED.match(last):
        killed = f"{printable(presence.get('stage'))} was killed; " if presence is not None else ""
        return RunStatus(folder.name, "failed", doing=RULES[stage], note=f"{killed}{last or 'no log'}")
    if stage == "untrained":
        return RunStatus(folder.name, "missing")
    notes = {"training": "stopped, state saved", "trained": "trained, not scored", "encoded": "scored, not bounded"}
    if stage == "encoded" and not (folder / LOSSES_NAME).exists():
        notes["encoded"] = "encoded, not scored"
    return RunStatus(folder.name, "waiting", doing=notes[stage])


def _running(name: str, presence: dict[str, Any]) -> RunStatus:
    step, steps = (_number(presence.get(key)) for key in ("step", "steps"))
    return RunStatus(
        name,
        "running",
        doing=f"{printable(presence.get('stage'), 20)} on {printable(presence.get('host'), 30)}",
        step="" if step is None or steps is None else f"{step:.0f}/{steps:.0f}",
        loss_bits=_number(presence.get("loss_bits")),
        seconds_left=_number(presence.get("seconds_left")),
    )


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def _check_files(folder: Path) -> None:
    """Raise UserError if the checkpoint or the certificate is damaged."""
    if (folder / CHECKPOINT_NAME).exists():
        check_seal(folder / CHECKPOINT_NAME, fix="delete it and train again")
    if (folder / CERTIFICATE_NAME).exists():
        read_certificate(folder / CERTIFICATE_NAME)


def _done(folder: Path) -> RunStatus:
    """Return the row of a bounded run; UserError if bounds.json is damaged, or not that of the certificate."""
    path, fix = folder / BOUNDS_NAME, f"compute it again (sublora bound {folder})"
    record = read_record(path, missing="", fix=fix)
    bound_bits, message_bits = float(record.bound_value), float(record.code_bits)
    certificate = folder / CERTIFICATE_NAME
    if not certificate.exists():
        return RunStatus(
            folder.name, "done", bound_bits=bound_bits, message_bits=message_bits, doing="no certificate.bin"
        )
    if hashlib.sha256(certificate.read_bytes()).hexdigest() != record.certificate_sha256:
        raise UserError(f"{path}: the bound of another certificate than {CERTIFICATE_NAME}; {fix}")
    return RunStatus(folder.name, "done", bound_bits=bound_bits, message_bits=message_bits)


def last_log_line(path: Path) -> str:
    """Return the last line of a log that is not blank, without what acts on a terminal; empty for an empty log."""
    try:
        with open(path, "rb") as handle:
            handle.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
            lines = handle.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return printable(next((line.strip() for line in reversed(lines) if line.strip()), ""), 300)


def duration(seconds: float) -> str:
    """Return a duration in words, such as 42 s, 18 min or 4.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def status_of(settings: config.Settings, root: Path) -> list[RunStatus]:
    """Return one row per run of the grid; a run made with other settings only names the setting that differs."""

    def status(run: config.RunSpec) -> RunStatus:
        folder = root / "results" / "runs" / run.name
        foreign = foreign_setting(folder, settings.for_run(run))
        return RunStatus(folder.name, "foreign", note=foreign) if foreign else run_status(folder, root / "logs")

    return [status(run) for run in settings.grid.runs()]


def status_table(settings: config.Settings, root: Path) -> Group:
    """Return the base unless it is random, the table, one line per failed or damaged run, and a line of counts."""
    headings = ("run", "state", "", "step", "loss (bits/token)", "left", "bound (bits/token)", "message (bits)")
    table = Table(*headings)
    rows = status_of(settings, root)
    for row in rows:
        table.add_row(*row.cells())
    counts = Counter(row.state for row in rows)
    notes = [Text(f"{row.name}: {row.note}") for row in rows if row.note]
    parts: list[Any] = [table, *notes, Text(", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]))]
    if settings.base.kind != "random":
        folder = root / BASE_FOLDER
        presence = read_presence(folder)
        running = presence is not None and presence["alive"]
        text = f"base ({settings.base.kind}): {base_stage(folder)}"
        if presence is not None and running:
            text += f", {_running('', presence).step or 'running'}"
        parts.insert(0, Text(text))
    return Group(*parts)


def print_status(config_path: Path, *, watch: bool = False) -> None:
    """Print the table of a settings file's runs once, or with `watch` keep it up to date until the user interrupts."""
    settings, root = config.load_settings(config_path), config.root_of(config_path)
    console = Console()
    if not watch:
        if not console.is_terminal:
            console = Console(width=WIDTH_IN_FILES)
        console.print(status_table(settings, root), soft_wrap=True)
        return
    first = status_table(settings, root)
    with contextlib.suppress(KeyboardInterrupt), Live(first, console=console, auto_refresh=False) as live:
        while True:
            live.update(status_table(settings, root), refresh=True)
            time.sleep(REFRESH_SECONDS)
