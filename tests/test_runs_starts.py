"""run.json: what was typed, with which settings and versions, before anything was computed."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from base_samples import TRAINED, base_settings, complaint, prepared_root, root_of_its_own
from conftest import write_settings

from sublora import __version__, cli, config
from sublora.runs.base import make_base
from sublora.runs.train import train_run
from sublora.system.names import BASE_FOLDER, CHECKPOINT_NAME, STARTS_NAME


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/sublora", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code


def starts(folder: Path) -> list[dict]:
    return json.loads((folder / STARTS_NAME).read_text(encoding="utf-8"))["starts"]


@pytest.fixture
def root(tiny_root: Path, tmp_path: Path) -> Path:
    """A folder whose name has to be quoted in a shell."""
    return Path(shutil.copytree(tiny_root, tmp_path / "my root"))


def test_every_stage_says_how_it_was_started(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, path = root / "results/runs/d40_uniform_seed1", root / "config/config.yaml"
    arguments = ["--config", path, "--budget", 40, "--allocation", "uniform", "--seed", 1, "--out", out]
    call(monkeypatch, "train", *arguments)
    trained = config.load_settings(path)
    scored = config.load_settings(write_settings(root, {"scoring": {"documents": 30}}))
    call(monkeypatch, "score", out, "--config", path)
    call(monkeypatch, "bound", out)
    record = json.loads((out / STARTS_NAME).read_text(encoding="utf-8"))
    assert [start["stage"] for start in record["starts"]] == ["train", "score", "bound"]
    assert record["starts"][0]["command"] == (
        f"sublora train --config '{path}' --budget 40 --allocation uniform --seed 1 --out '{out}'"
    )
    assert all(start["versions"]["sublora"] == __version__ for start in record["starts"])
    used = [config.parse_settings(record["settings"][start["settings"]], source="run") for start in record["starts"]]
    assert used == [trained, scored, scored]


def test_the_record_is_there_before_the_work_and_one_start_does_not_hide_another(root: Path) -> None:
    out, settings = root / "stopped", config.load_settings(root / "config/config.yaml")
    spec = config.parse_run(40, "uniform", 1)

    class Killed(Exception):
        pass

    def die(step: int) -> None:
        if step == 6:
            raise Killed

    with pytest.raises(Killed):
        train_run(settings, spec, root=root, out=out, before_step=die)
    assert len(starts(out)) == 1 and not (out / CHECKPOINT_NAME).exists()
    train_run(settings, spec, root=root, out=out)
    assert [start["stage"] for start in starts(out)] == ["train", "train"]
    (out / STARTS_NAME).write_text("[]", encoding="utf-8")
    found = complaint(lambda: train_run(settings, spec, root=root, out=out))
    assert STARTS_NAME in found and "delete it" in found


def test_a_base_has_its_record_too(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    root = root_of_its_own(prepared_root(tmp_path_factory.getbasetemp()), tmp_path / "root")
    make_base(base_settings(TRAINED), root=root)
    assert [start["stage"] for start in starts(root / BASE_FOLDER)] == ["base"]
