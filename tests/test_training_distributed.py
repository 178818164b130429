"""Two processes on one training: the loss curve of one, files of the first, and stopping together."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import write_settings
from killing import TIMING
from test_training_loop import rows_of

from sublora import config
from sublora.runs.train import train_run
from sublora.system.device import claim_devices
from sublora.system.errors import UserError
from sublora.training import checkpoint
from sublora.training.exchange import Peers

LOSS_TOLERANCE = 1e-5
"""Largest relative difference of a loss to one process's: float32 sums in another order, over 20 steps."""
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
TIME_LIMIT_SECONDS = 120


def settings_path(root: Path, tiny_root: Path, processes: int, **changes: dict) -> Path:
    """A folder with the tiny data; dropout, so that both must draw the same masks."""
    root.mkdir()
    (root / "data").symlink_to(tiny_root / "data")
    compute = {"gpus_per_training": processes}
    rate_phase = {"val_documents": 20}
    return write_settings(root, {"compute": compute, "lora": {"dropout": 0.2}, "rate_phase": rate_phase} | changes)


def command(config_path: Path, allocation: str) -> list[str]:
    run = ["--budget", "40", "--allocation", allocation, "--seed", "1", "--out", str(config_path.parents[1] / "out")]
    return [*TORCHRUN, str(Path(sys.executable).parent / "sublora"), "train", "--config", str(config_path), *run]


def start(config_path: Path, allocation: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with open(config_path.parents[1] / "log.txt", "ab") as log:
        return subprocess.Popen(command(config_path, allocation), env=environment, stdout=log, stderr=log)


@pytest.mark.slow
@pytest.mark.parametrize(("allocation", "quantizer"), [("uniform", "plain"), ("learned", "entropy")])
def test_two_processes_give_the_loss_curve_of_one(
    tiny_root: Path, tmp_path: Path, allocation: str, quantizer: str
) -> None:
    changes = {"message": {"quantizer": quantizer}}
    one = settings_path(tmp_path / "one", tiny_root, 1, **changes)
    two = settings_path(tmp_path / "two", tiny_root, 2, **changes)
    with start(two, allocation) as process:
        run = config.RunSpec(budget=40, allocation=allocation, seed=1)
        train_run(config.load_settings(one), run, root=tmp_path / "one", out=tmp_path / "one/out")
        assert process.wait(TIME_LIMIT_SECONDS) == 0, (tmp_path / "two/log.txt").read_text()
    expected, found = (rows_of(tmp_path / name / "out/metrics.csv") for name in ("one", "two"))
    assert len(found) == len(expected) == 4
    for row, wanted in zip(found, expected, strict=True):
        for key in set(row) - TIMING:
            assert (row[key] == "") == (wanted[key] == "")
            if row[key]:
                assert float(row[key]) == pytest.approx(float(wanted[key]), rel=LOSS_TOLERANCE), key
    best, wanted = (checkpoint.load(tmp_path / name / "out/best_ckpt.pt") for name in ("two", "one"))
    assert best["step"] == wanted["step"]
    torch.testing.assert_close(best["raw_model"], wanted["raw_model"], rtol=1e-3, atol=1e-5)
    assert sorted(path.name for path in (tmp_path / "two/out").iterdir()) == sorted(
        path.name for path in (tmp_path / "one/out").iterdir()
    )


@pytest.mark.slow
def test_a_signal_stops_all_processes_with_the_state_saved(tiny_root: Path, tmp_path: Path) -> None:
    """torchrun passes SIGTERM on; whichever process hears it first, all stop after the same step."""
    long = {"training": {"steps": 4000, "save_interval_steps": 10**6, "eval_interval_steps": 50}}
    path = settings_path(tmp_path / "two", tiny_root, 2, **long)
    log = tmp_path / "two/log.txt"
    with start(path, "uniform") as process:
        _wait_for(lambda: "step 50:" in log.read_text())
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIME_LIMIT_SECONDS) != 0
    (state,) = (tmp_path / "two/out/state").glob("*.pt")
    step = checkpoint.load(state)["history"]["step"]
    assert 50 <= step < 4000
    with start(path, "uniform") as process:
        _wait_for(lambda: f"resuming at step {step}" in log.read_text())
        process.send_signal(signal.SIGTERM)
        process.wait(TIME_LIMIT_SECONDS)
    assert log.read_text().count("resuming at step") == 1  # the first process alone speaks
    assert not (tmp_path / "two/out/best_ckpt.pt").exists()


def _wait_for(condition) -> None:
    deadline = time.monotonic() + TIME_LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_another_number_of_processes_is_refused(tiny_root: Path, tmp_path: Path) -> None:
    path = settings_path(tmp_path / "two", tiny_root, 2)
    run = config.RunSpec(budget=40, allocation="uniform", seed=1)
    with pytest.raises(UserError, match="gpus_per_training is 2, but 1 process started; start with: torchrun .*=2 "):
        train_run(config.load_settings(path), run, root=tmp_path / "two", out=tmp_path / "out")


def test_pieces_are_shared_out_once_each() -> None:
    for size in (1, 2, 3):
        pieces = [piece for rank in range(size) for piece in Peers(rank, size).share(6)]
        assert sorted(pieces) == list(range(6))


def test_gpus_are_claimed_all_or_none(tiny_settings, monkeypatch, tmp_path: Path) -> None:
    """A job that needs two waits with none in hand while one of them is taken."""
    compute = tiny_settings.compute.model_copy(update={"device": "cuda"})
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: object())
    waits = []

    def other_job_ends(seconds: float) -> None:
        with claim_devices(compute, 1) as (device,):  # the one that is free is not held by the one that waits
            waits.append(device.index)
        first.__exit__(None, None, None)

    monkeypatch.setattr("sublora.system.device.time.sleep", other_job_ends)
    first = claim_devices(compute, 1)
    assert [device.index for device in first.__enter__()] == [0]
    with claim_devices(compute, 2) as devices:
        assert [device.index for device in devices] == [0, 1]
    assert waits == [1]
    with pytest.raises(UserError, match=r"is 3, but this machine \(.+\) shows 2 GPUs"), claim_devices(compute, 3):
        pass
