"""`sublora status`, and the line that every stage begins with."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from faults.scene import RUN, SCORE, STATUS, Scene
from sublora import __version__, config
from sublora.runs.starts import start_line
from sublora.system.locks import RUNNING_NAME, SILENT_SECONDS, Presence, read_presence
from sublora.system.provenance import Provenance
from sublora.tools.status import RunStatus, duration, run_status


def status(scene: Scene) -> RunStatus:
    return run_status(scene.run, scene.root / "logs")


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def present(scene: Scene, **facts: object) -> Path:
    """Somebody is at work in the run's folder."""
    path = scene.run / RUNNING_NAME
    here = {"stage": "training", "host": socket.gethostname(), "pid": os.getpid(), "started": time.time()}
    path.write_text(json.dumps(here | facts))
    return path


def test_a_finished_run_has_its_bound(scene: Scene) -> None:
    record = json.loads((scene.run / "bounds.json").read_text())
    found = status(scene)
    assert (found.state, found.bound_bits, found.message_bits) == ("done", record["bound_value"], record["code_bits"])


def test_a_run_at_work_has_step_loss_and_time_left(scene: Scene) -> None:
    present(scene, step=7, steps=20, loss_bits=3.25, seconds_left=42.4)
    found = status(scene)
    assert (found.state, found.step, found.loss_bits) == ("running", "7/20", 3.25)
    assert found.doing == f"training on {socket.gethostname()}"
    assert duration(found.seconds_left) == "42 s"


def test_a_training_shows_itself_while_it_runs_and_no_longer(scene: Scene) -> None:
    from sublora.runs.train import train_run

    settings, seen = config.load_settings(scene.root / "config/config.yaml"), []
    out = scene.root / "results/runs/new"

    def look(step: int) -> None:
        seen.append(run_status(out, scene.root / "logs").state)

    train_run(settings, RUN, root=scene.root, out=out, before_step=look)
    assert set(seen) == {"running"}
    assert not (out / RUNNING_NAME).exists()


def test_a_killed_process_is_no_running_one(scene: Scene) -> None:
    scene.half_trained()
    present(scene, pid=dead_process())
    found = status(scene)
    assert found.state == "failed" and found.note.startswith("training was killed")


def test_elsewhere_silence_counts_as_death(scene: Scene) -> None:
    scene.half_trained()
    path = present(scene, host="elsewhere")
    assert status(scene).state == "running"
    long_ago = time.time() - 2 * SILENT_SECONDS
    os.utime(path, (long_ago, long_ago))
    assert status(scene).state == "failed"


@pytest.mark.parametrize(
    ("log", "state"),
    [
        ("$ sublora score\nerror: config.yaml: no such file; mend it\n", "failed"),
        ("Traceback\n  File\nRuntimeError: CUDA out of memory\n\n", "failed"),
        ("slurmstepd: error: *** JOB 7 CANCELLED ***\n", "failed"),
        ("$ sublora score\n", "waiting"),
        ("", "waiting"),
    ],
)
def test_a_failed_run_has_the_last_line_of_its_log(scene: Scene, log: str, state: str) -> None:
    for name in ("certificate.bin", "losses.npz", "bounds.json", "bounds_metrics.pt"):
        (scene.run / name).unlink()
    scene.write(f"logs/score/{RUN.name}.log", log)
    found = status(scene)
    assert found.state == state
    if state == "failed":
        assert found.note == log.strip().splitlines()[-1] and found.doing == "score"


@pytest.mark.parametrize("name", ["bounds.json", "certificate.bin", "best_ckpt.pt"])
@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"bound_value": "x"}'])
def test_a_damaged_file_is_a_row_and_not_the_end_of_the_table(scene: Scene, name: str, content: bytes) -> None:
    (scene.run / name).write_bytes(content)
    assert status(scene).state == "damaged" and name in status(scene).note
    code, out, errors = scene.call(*STATUS)
    assert code == 0 and errors == "" and out.count("│ d40_") == 10 and "1 damaged, 19 missing" in out


def test_a_bound_of_another_certificate_is_damaged(scene: Scene) -> None:
    scene.reseal(lambda header: header["environment"].update(torch="9.9"))
    assert status(scene).state == "damaged" and "another certificate" in status(scene).note


@pytest.mark.parametrize("facts", ["", "[]", '{"host": 1}', '{"host": "a", "pid": "b"}', "[" * 100_000])
def test_a_damaged_presence_is_none(tmp_path: Path, facts: str) -> None:
    (tmp_path / RUNNING_NAME).write_text(facts)
    assert read_presence(tmp_path) is None


def test_what_a_log_says_does_not_act_on_the_terminal(scene: Scene) -> None:
    for name in ("certificate.bin", "losses.npz", "bounds.json", "bounds_metrics.pt"):
        (scene.run / name).unlink()
    scene.write(f"logs/score/{RUN.name}.log", "error: \x1b[2J[bold red]x[/bold red]\n")
    _, out, _ = scene.call(*STATUS)
    assert "\x1b" not in out and f"{RUN.name}: error: \\x1b[2J[bold red]x[/bold red]" in out


def test_a_presence_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with Presence(tmp_path / "file", "training").shown():
        pass


def test_a_stage_says_what_it_is(scene: Scene) -> None:
    """The exact command, the digest of all settings, versions and the device, in one line on stderr."""
    code, _, errors = scene.call(*SCORE)
    assert code == 0
    settings = config.load_settings(scene.root / "config/config.yaml")
    digest = config.digest(settings.model_dump(mode="json"))[:16]
    first = errors.splitlines()[0]
    assert first.startswith(f"$ sublora {' '.join(SCORE)} | settings {digest} | sublora {__version__}, python 3.")
    assert re.search(r"torch \S+, numpy \S+, constriction \S+ \| \S+, cpu$", first)


def test_equal_settings_have_equal_digests(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/sublora", "train", "--out", "a folder"])
    settings = config.load_settings(scene.root / "config/config.yaml")
    provenance = Provenance.of_this_process()
    line = start_line(settings, provenance)
    assert line.startswith("$ sublora train --out 'a folder' | settings ") and line.endswith(", no network runs")
    other = settings.model_copy(update={"training": settings.training.model_copy(update={"log_interval_steps": 7})})
    assert start_line(settings.model_copy(), provenance) == line != start_line(other, provenance)
