"""Trainings in processes of their own killed with SIGKILL: no handler, no finally and no flush runs."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from sublora import config
from sublora.runs.train import train_run
from sublora.system import files
from sublora.system.digests import tensors_sha256
from sublora.system.names import CHECKPOINT_NAME, GATES_NAME, METRICS_NAME
from sublora.training import checkpoint
from sublora.training.resumable import BeforeStep

TIMING = {"tokens_per_second", "seconds"}
"""Columns of metrics.csv that no two trainings share."""


def start_in_child(
    settings: config.Settings,
    run: config.RunSpec,
    *,
    root: Path,
    out: Path,
    kill_at_step: int | None = None,
    while_saving: bool = False,
    before_step: BeforeStep | None = None,
) -> int:
    """Train in a forked process; returns its id. Its `exit_status` is -9 if it killed itself.

    `kill_at_step`: at the start of this step, or `while_saving` in the first save from this step on, when the new
    state is written but has not taken the place of the old one.
    """
    deadly = None if kill_at_step is None else killing_itself_at(kill_at_step, while_saving)
    return in_child(lambda: train_run(settings, run, root=root, out=out, before_step=deadly or before_step))


def in_child(work: Callable[[], object]) -> int:
    """Do the work in a forked process, on one thread; returns its id."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            torch.set_num_threads(1)
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return child


def exit_status(child: int) -> int:
    """Wait for a process and return its exit status, negative if a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killing_itself_at(kill_at_step: int, while_saving: bool) -> BeforeStep:
    """What ends the process of a training."""

    def die(*arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def before_step(step: int) -> None:
        if step == kill_at_step:
            if not while_saving:
                die()
            files.os.replace = die

    return before_step


def outcome(folder: Path) -> tuple[str, list[list[str]], bytes]:
    """All that a training leaves behind and that must not depend on interruptions: weights, history, gates."""
    lines = [line.split(",") for line in (folder / METRICS_NAME).read_text().splitlines()]
    kept = [i for i, name in enumerate(lines[0]) if name not in TIMING]
    metrics = [[line[i] for i in kept] for line in lines]
    weights = tensors_sha256(checkpoint.load(folder / CHECKPOINT_NAME)["raw_model"].items())
    return weights, metrics, (folder / GATES_NAME).read_bytes()
