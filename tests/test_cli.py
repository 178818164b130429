"""The command line: light to start, and one clear line for every wrong input."""

import socket
import subprocess
import sys

import pytest
from conftest import write_settings

from sublora import cli

FOLDER_CORPUS = {"kind": "folder", "path": "nowhere", "text_field": "text", "unit_field": None}


def call(monkeypatch, capfd, *arguments: object) -> tuple[int, str]:
    """Exit status and stderr of `sublora ...`, run in this process."""
    monkeypatch.setattr(sys, "argv", ["sublora", *map(str, arguments)])
    try:
        cli.main()
        status = 0
    except SystemExit as stop:
        status = stop.code or 0
    return status, capfd.readouterr().err


def train_arguments(path, **changes) -> list[object]:
    values = {"budget": 40, "allocation": "uniform", "seed": 1} | changes
    options = [item for key, value in values.items() for item in (f"--{key}", value)]
    return ["train", "--config", path, *options, "--out", path.parent.parent / "out"]


def test_help_and_import_are_light():
    code = (
        "import sys, sublora.cli, sublora.config; from typer.testing import CliRunner\n"
        "result = CliRunner().invoke(sublora.cli.app, ['--help']); assert result.exit_code == 0, result.output\n"
        "assert all(name in result.output for name in ('prepare', 'train', 'encode', 'score', 'bound', 'status'))\n"
        "heavy = {'torch', 'pandas', 'datasets', 'scipy', 'matplotlib'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"grid": {"budgts": [1]}}, "unknown key 'grid.budgts'; did you mean 'grid.budgets'?"),
        ({"grid": {"allocations": ["fixed-1.5"]}}, "'fixed-1.5' is not one of uniform, learned, "),
        ({"grid": {"budgets": [0]}}, "grid.budgets.0: expected a whole number of at least 1, or all, found 0"),
        ({"training": {"epsilon": "1e-6"}}, "write 1.0e-06"),
        ({"training": {"tokens_per_step": 100}}, "training.tokens_per_step 100 is not a multiple"),
        ({"data": {"tokenizer": "words"}}, "data.tokenizer: input should be 'gpt2', 'bytes' or 'base', found 'words'"),
        ({"bound": {"delta": 1.5}}, "bound.delta: input should be less than 1, found 1.5"),
        ({"model": {"n_head": 3}}, "n_embd 16 is not a multiple of n_head 3"),
        (
            {"data": {"corpus": FOLDER_CORPUS}},
            "nowhere",
        ),
    ],
)
def test_wrong_settings_stop_with_one_line(tmp_path, monkeypatch, capfd, changes, expected):
    status, error = call(monkeypatch, capfd, "prepare", "--config", write_settings(tmp_path, changes))
    lines = error.strip().splitlines()
    assert status == 2 and len(lines) == 1 and lines[0].startswith("error: ") and expected in lines[0]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"budget": 0}, "budget: expected a whole number of at least 1, or all, found 0"),
        ({"budget": 10**6}, "budget 1000000 exceeds the 802 trained parameters"),
        ({"allocation": "fixed-1.5"}, "allocation 'fixed-1.5' is not one of"),
    ],
)
def test_wrong_runs_stop_with_one_line(tiny_root, monkeypatch, capfd, changes, expected):
    status, error = call(monkeypatch, capfd, *train_arguments(tiny_root / "config" / "config.yaml", **changes))
    lines = [line for line in error.strip().splitlines() if line]
    assert status == 2 and len(lines) == 1 and expected in lines[0]


def test_data_not_prepared_truncated_or_mismatched(tiny_root, tmp_path, monkeypatch, capfd):
    import shutil

    path = write_settings(tmp_path)
    status, error = call(monkeypatch, capfd, *train_arguments(path))
    assert status == 2 and "sublora prepare" in error and error.count("\n") == 1
    shutil.copytree(tiny_root / "data", tmp_path / "data")
    train_bin = tmp_path / "data" / "markov" / "train.bin"
    train_bin.write_bytes(train_bin.read_bytes()[:-10])
    status, error = call(monkeypatch, capfd, *train_arguments(path))
    assert status == 2 and "train.bin" in error and "bytes" in error and error.count("\n") == 1
    path = write_settings(tmp_path, {"data": {"tokenizer": "gpt2"}})
    status, error = call(monkeypatch, capfd, *train_arguments(path))
    assert status == 2 and "gpt2" in error and "bytes" in error and error.count("\n") == 1


def test_gpu_asked_for_and_absent(tiny_root, monkeypatch, capfd, tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    import shutil

    shutil.copytree(tiny_root / "data", tmp_path / "data")
    path = write_settings(tmp_path, {"compute": {"device": "cuda"}})
    status, error = call(monkeypatch, capfd, *train_arguments(path))
    assert (
        status == 2 and f"compute.device is cuda but this machine ({socket.gethostname()}) has no usable GPU" in error
    )


def test_single_run_without_snakemake(tiny_root, tmp_path, monkeypatch, capfd):
    """train, score, bound and status as the README shows them."""
    import shutil

    shutil.copytree(tiny_root, tmp_path / "root")
    path = tmp_path / "root" / "config" / "config.yaml"
    out = tmp_path / "root" / "results" / "runs" / "d40_learned_seed1"
    arguments = [*train_arguments(path, allocation="learned")[:-1], out]
    for command in (arguments, ["encode", out], ["score", out], ["bound", out], ["status", "--config", path]):
        status, error = call(monkeypatch, capfd, *command)
        assert status == 0, error


def test_a_closed_pipe_ends_a_command_silently(tiny_root):
    """As in `sublora status | head -n 1`: neither a traceback nor the exit status of a claim that is refused."""
    code = (
        "import os, sys; from sublora import cli; reader, writer = os.pipe(); os.dup2(writer, 1); os.close(reader)\n"
        "sys.argv = ['sublora', '--version']; cli.main()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (141, "")


def test_a_fault_of_a_command_has_a_status_of_its_own(tmp_path, monkeypatch, capfd):
    """Neither 2, bad input, nor 1, which Python would take."""

    def fail(*_: object, **__: object) -> None:
        raise KeyError("a fault")

    monkeypatch.setattr("sublora.tools.status.print_status", fail)
    status, error = call(monkeypatch, capfd, "status", "--config", write_settings(tmp_path))
    assert status == 3 and "Traceback" in error and "KeyError: 'a fault'" in error
    assert error.rstrip().endswith("error: a fault of sublora, not of its input; please report the lines above")
