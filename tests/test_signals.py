"""SIGTERM asks to save; it stops a training only where no kill follows. SIGUSR1 always stops it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY, demo_values, merged
from killing import outcome

from sublora import config
from sublora.runs.train import train_run
from sublora.system.names import CHECKPOINT_NAME
from sublora.system.signals import StopSignals
from sublora.training import checkpoint
from sublora.training.resumable import Interrupted

SPEC = config.RunSpec(budget=40, allocation="learned", seed=1)
IN_A_JOB = {"SLURM_JOB_ID": "7"}
STEPS = TINY["training"]["steps"]


def at_step(number: int, *signals: int):
    """What sends signals to this process at the start of a step."""

    def before_step(step: int) -> None:
        if step == number:
            for each in signals:
                os.kill(os.getpid(), each)

    return before_step


def saved_step(out: Path) -> int:
    (state,) = (out / "state").glob("*.pt")
    return int(checkpoint.load(state)["history"]["step"])


@pytest.fixture
def settings() -> config.Settings:
    """No periodic saves: what is there to resume from was saved on a signal."""
    values = merged(merged(demo_values(), TINY), {"training": {"save_interval_steps": 1000}})
    return config.parse_settings(values, source="tiny")


@pytest.mark.parametrize(
    ("environment", "signals", "status"),
    [
        ({}, [signal.SIGTERM], 143),
        ({}, [signal.SIGUSR1], 138),
        (IN_A_JOB, [signal.SIGUSR1], 138),
        (IN_A_JOB, [signal.SIGTERM, signal.SIGUSR1], 138),
    ],
)
def test_a_training_told_to_stop_saves_and_goes_on_from_there(
    tiny_root: Path, tmp_path: Path, settings, monkeypatch, environment, signals, status
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    train_run(settings, SPEC, root=tiny_root, out=whole)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Interrupted) as stop:
        train_run(settings, SPEC, root=tiny_root, out=out, before_step=at_step(7, *signals))
    assert stop.value.code == status and saved_step(out) == 8
    train_run(settings, SPEC, root=tiny_root, out=out)
    assert outcome(out) == outcome(whole) and not (out / "state").exists()


def test_in_a_slurm_job_sigterm_saves_and_the_training_goes_on(
    tiny_root: Path, tmp_path: Path, settings, monkeypatch
) -> None:
    """It may end well before the kill. Snakemake, which got the signal too, then reports failure and the results are

    deleted: the state of the last step outlives them, and the next start writes the same results without a step.
    """
    whole, out = tmp_path / "whole", tmp_path / "out"
    train_run(settings, SPEC, root=tiny_root, out=whole)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    seen = []

    def before_step(step: int) -> None:
        if step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        if step == 8:
            seen.append(saved_step(out))

    train_run(settings, SPEC, root=tiny_root, out=out, before_step=before_step)
    assert seen == [8] and saved_step(out) == STEPS
    assert outcome(out) == outcome(whole)
    for name in (CHECKPOINT_NAME, "metrics.csv", "gating_trace.csv"):
        (out / name).unlink()
    steps = []
    train_run(settings, SPEC, root=tiny_root, out=out, before_step=steps.append)
    assert steps == [] and outcome(out) == outcome(whole) and not (out / "state").exists()


def test_signals_are_taken_once() -> None:
    signals = StopSignals()
    with signals.listening():
        assert signals.take() == 0
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert (signals.take(), signals.take()) == (signal.SIGUSR1, 0)


@pytest.mark.parametrize(
    ("environment", "survives"), [({}, False), (IN_A_JOB, True), (IN_A_JOB | {"WORLD_SIZE": "2"}, False)]
)
def test_commands_outlive_sigterm_only_in_a_slurm_job(environment: dict[str, str], survives: bool) -> None:
    """And hand the signal on to the programs they start as it was."""
    code = (
        "import os, signal, subprocess, sys; from sublora.system.signals import outlive_announcements\n"
        "outlive_announcements(); os.kill(os.getpid(), signal.SIGTERM)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()']); child.terminate()\n"
        "sys.exit(child.wait() + 15)"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    status = subprocess.run([sys.executable, "-c", code], env=clean | environment, check=False).returncode
    assert status == (0 if survives else -signal.SIGTERM)
