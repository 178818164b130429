"""Whose run lies in a folder: nothing of a run of other settings is overwritten, and none is counted."""

import shutil
from pathlib import Path

import pytest
from conftest import TINY, demo_values, merged, write_settings

from sublora import config
from sublora.runs.bound import bound_run
from sublora.runs.score import score_run
from sublora.runs.starts import foreign_setting, read_owner
from sublora.runs.train import train_run
from sublora.system.errors import UserError
from sublora.system.names import CHECKPOINT_NAME, SETTINGS_NAME
from sublora.tools.plan import make_plan
from sublora.tools.status import print_status
from sublora.tools.throughput import Throughput

SPEC = config.RunSpec(budget=40, allocation="uniform", seed=1)
OTHER_STEPS = {"training": {"steps": 24}}
OTHER_DELTA = {"bound": {"delta": 0.06}}
OTHER_LOGS = {"compute": {"threads": 1}, "data": {"workers": 2}}


def settings_with(changes: dict) -> config.Settings:
    return config.parse_settings(merged(merged(demo_values(), TINY), changes), source="tiny")


@pytest.fixture(scope="module")
def root(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data, config/config.yaml, and one run bounded with it."""
    root = tmp_path_factory.mktemp("owned") / "root"
    shutil.copytree(tiny_root, root)
    path = write_settings(root)
    folder = root / "results/runs" / SPEC.name
    train_run(config.load_settings(path), SPEC, root=root, out=folder, settings_file=path)
    score_run(folder, config_path=path)
    bound_run(folder, config_path=path)
    return root


def test_another_training_in_a_finished_folder_is_refused_and_touches_nothing(root: Path) -> None:
    folder = root / "results/runs" / SPEC.name
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for settings, spec in (
        (settings_with(OTHER_STEPS), SPEC),
        (settings_with({}), SPEC.model_copy(update={"seed": 2})),
    ):
        with pytest.raises(UserError, match=rf"{CHECKPOINT_NAME}: the finished training of d40_uniform_seed1"):
            train_run(settings, spec, root=root, out=folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_runs_of_other_settings_do_not_count(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = root / "results/runs" / SPEC.name
    assert foreign_setting(folder, settings_with({})) is None
    assert foreign_setting(folder, settings_with(OTHER_LOGS)) is None  # settings that no number hangs on
    for changes, key in ((OTHER_STEPS, "training.steps: 20 there, 24 here"), (OTHER_DELTA, "bound.delta: ")):
        settings = settings_with(changes)
        assert str(foreign_setting(folder, settings)).startswith(key)
        assert make_plan(settings, root, Throughput(1.0, 1.0, "given")).measured_run_bytes == []
        print_status(write_settings(root, changes))
        shown = capsys.readouterr().out
        assert "1 foreign" in shown and f"{SPEC.name}: {key}" in shown and "done" not in shown
    print_status(write_settings(root))
    assert "1 done" in capsys.readouterr().out
    assert len(make_plan(settings_with({}), root, Throughput(1.0, 1.0, "given")).measured_run_bytes) == 1


@pytest.mark.parametrize("kept", [{SETTINGS_NAME}, {CHECKPOINT_NAME}])
def test_one_file_tells_whose_run_it_is(root: Path, tmp_path: Path, kept: set[str]) -> None:
    """settings.json from the start of the training on; the checkpoint where that file is gone."""
    for name in kept:
        shutil.copy(root / "results/runs" / SPEC.name / name, tmp_path / name)
    assert foreign_setting(tmp_path, settings_with({})) is None
    assert foreign_setting(tmp_path, settings_with(OTHER_DELTA)) is None  # the training does not hang on it
    assert foreign_setting(tmp_path, settings_with(OTHER_STEPS)) == "training.steps: 20 there, 24 here"


def test_an_empty_folder_is_nobodys_and_a_damaged_file_is_said(tmp_path: Path) -> None:
    assert foreign_setting(tmp_path, settings_with({})) is None
    for text in ("{", "[]", '{"settings_file": null, "train": 3}'):
        (tmp_path / SETTINGS_NAME).write_text(text)
        with pytest.raises(UserError, match=rf"{SETTINGS_NAME}: .*delete it"):
            read_owner(tmp_path)
        assert foreign_setting(tmp_path, settings_with({})) is None
