"""One process at a time in a folder: file systems without locks are refused, and every wait ends."""

import errno
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY, demo_values, merged

from sublora import config
from sublora.data.prepare import prepare_dataset
from sublora.system import device, locks
from sublora.system.errors import UserError
from sublora.system.locks import LOCK_NAME, RUNNING_NAME, Presence, ProcessLock, sole_writer

HOLD_LOCK = """
import sys, time
from pathlib import Path
from sublora.system.locks import Presence, sole_writer
folder = Path(sys.argv[1])
with sole_writer(folder, Presence(folder, "training")):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def holder(folder: Path, seconds: float) -> subprocess.Popen:
    """Another process that holds the lock of a folder; returns once it does."""
    process = subprocess.Popen([sys.executable, "-c", HOLD_LOCK, str(folder), str(seconds)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    return process


def no_flock(number: int) -> Callable[..., None]:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return flock


def enter(folder: Path) -> None:
    with sole_writer(folder, Presence(folder, "training")):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
@pytest.mark.parametrize("stale", [False, True])
def test_a_file_system_without_locks_is_refused_in_a_line(tmp_path, monkeypatch, number, stale):
    """Errors 37, 38 and 95. A lock file that is there already, from any process, makes nobody wait."""
    folder = tmp_path / "run"
    folder.mkdir()
    if stale:
        (folder / LOCK_NAME).write_text("4711\nnode7\n")
    monkeypatch.setattr(fcntl, "flock", no_flock(number))
    before = sorted(os.listdir(folder))
    for act in (enter, lambda path: prepare_dataset(data_of_markov(), tmp_path)):
        with pytest.raises(
            UserError, match=r"this file system has no locks .*option flock \(Lustre\).*nolock"
        ) as stopped:
            act(folder)
        assert os.strerror(number) in str(stopped.value) and "\n" not in str(stopped.value)
    assert str(tmp_path / "data/markov") in str(stopped.value)
    assert sorted({*os.listdir(folder)} - {LOCK_NAME}) == sorted({*before} - {LOCK_NAME})


def data_of_markov() -> config.Data:
    return config.parse_settings(merged(demo_values(), TINY), source="tiny").data


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    process = holder(tmp_path, 600.0)
    process.kill()
    process.wait()
    said: list[str] = []
    with sole_writer(tmp_path, Presence(tmp_path, "training"), said.append) as waited:
        assert not waited and said == []
    assert (tmp_path / LOCK_NAME).exists()


def test_a_holder_that_gives_no_sign_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "LONGEST_SILENCE_SECONDS", 0.3)
    process = holder(tmp_path, 600.0)
    started = time.monotonic()
    try:
        with pytest.raises(
            UserError, match=r"\.lock: held by another process \(training on .*, process \d+\)"
        ) as stopped:
            enter(tmp_path)
        assert str(process.pid) in str(stopped.value) and time.monotonic() - started < 30.0
        # Nor is one that never said who it is.
        (tmp_path / RUNNING_NAME).unlink()
        with pytest.raises(UserError, match=r"held by another process \(unknown\)"):
            enter(tmp_path)
    finally:
        process.kill()
        process.wait()


def test_signs_of_the_holder_prolong_the_wait(tmp_path, monkeypatch):
    """By the dates of its file, whatever they are: clocks of machines differ."""
    monkeypatch.setattr(locks, "LONGEST_SILENCE_SECONDS", 0.6)
    lock = ProcessLock(tmp_path / LOCK_NAME)
    tries = 0

    def acquire() -> bool:
        nonlocal tries
        tries += 1
        (tmp_path / RUNNING_NAME).write_text("{}")
        os.utime(tmp_path / RUNNING_NAME, (tries, tries))
        return tries > 6

    monkeypatch.setattr(lock, "acquire", acquire)
    locks._wait_for(lock, tmp_path)
    assert tries == 7


def test_gpus_that_never_get_free_are_not_waited_for(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(device, "LONGEST_WAIT_SECONDS", -1.0)
    monkeypatch.setattr(device.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: index)
    first = device._claim_gpus(1)
    with pytest.raises(UserError, match="have held the GPUs of this machine"):
        device._claim_gpus(1)
    for lock in first.values():
        lock.release()
    assert list(device._claim_gpus(1)) == [0]
