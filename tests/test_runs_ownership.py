"""Whose run lies in a folder: nothing of a run of other settings is overwritten, and none is counted."""

import shutil
import sys
from pathlib import Path

import pytest
from conftest import TINY, demo_values, merged, write_settings

from sublora import cli, config
from sublora.runs.bound import bound_run
from sublora.runs.score import score_run
from sublora.runs.starts import foreign_setting, read_owner
from sublora.runs.train import train_run
from sublora.system.errors import UserError
from sublora.system.files import absolute, name_below
from sublora.system.names import CHECKPOINT_NAME, SETTINGS_NAME
from sublora.tools.plan import make_plan
from sublora.tools.status import print_status
from sublora.tools.throughput import Throughput

SPEC = config.RunSpec(budget=40, allocation="uniform", seed=1)
OTHER_SEED = "d40_uniform_seed2"
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
    assert foreign_setting(folder, settings_with(OTHER_LOGS)) is None  # settings that no number depends on
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
    assert foreign_setting(tmp_path, settings_with(OTHER_DELTA)) is None  # the training does not depend on it
    assert foreign_setting(tmp_path, settings_with(OTHER_STEPS)) == "training.steps: 20 there, 24 here"


def test_an_empty_folder_is_nobodys_and_a_damaged_file_is_said(tmp_path: Path) -> None:
    assert foreign_setting(tmp_path, settings_with({})) is None
    for text in ("{", "[]", '{"settings_file": null, "train": 3}'):
        (tmp_path / SETTINGS_NAME).write_text(text)
        with pytest.raises(UserError, match=rf"{SETTINGS_NAME}: .*delete it"):
            read_owner(tmp_path)
        assert foreign_setting(tmp_path, settings_with({})) is None


def test_linked_folders_and_settings_lead_into_no_other_experiment(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """results/ on scratch, data/ on a disk, config.yaml shared: each lies where its link is, for every command."""
    mine, scratch, shared, disk = (tmp_path / name for name in ("mine", "scratch", "shared", "disk"))
    for new in (mine / "config", scratch / "results", shared / "settings", disk):
        new.mkdir(parents=True)
    shutil.copy(root / "config/config.yaml", shared / "settings/config.yaml")
    (mine / "results").symlink_to(scratch / "results")
    (mine / "data").symlink_to(disk)
    (mine / "config/config.yaml").symlink_to(shared / "settings/config.yaml")
    foreign = [folder / "data/markov/meta.json" for folder in (scratch, shared)]  # above the targets of the links
    for path in foreign:
        path.parent.mkdir(parents=True)
        path.write_text("of somebody else")
    monkeypatch.chdir(mine)
    settings = config.load_settings(Path("config/config.yaml"))
    config.write_resolved(settings, Path("results/settings.yaml"), origin=Path("config/config.yaml"))
    assert config.root_of(Path("results/settings.yaml")) == config.root_of(Path("config/config.yaml")) == mine
    assert config.origin_of(Path("results/settings.yaml")) == mine / "config/config.yaml"
    # As jobs of the workflow call them.
    folder = f"results/runs/{OTHER_SEED}"
    for command in (
        "prepare --config results/settings.yaml",
        f"train --config results/settings.yaml --budget 40 --allocation uniform --seed 2 --out {folder}",
        f"score {folder} --config results/settings.yaml",
        f"bound {folder} --config results/settings.yaml",
        f"verify {folder}",
    ):
        monkeypatch.setattr(sys, "argv", ["sublora", *command.split()])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code, command
    assert [path.read_text() for path in foreign] == ["of somebody else"] * 2
    assert all([other.name for other in path.parent.iterdir()] == ["meta.json"] for path in foreign)
    assert (disk / "markov/meta.json").exists() and (scratch / "results/runs" / OTHER_SEED / "bounds.json").exists()
    # The owner is the settings file as it is named, whatever it links to.
    owner = read_owner(Path("results/runs", OTHER_SEED))
    assert owner is not None and owner.settings_file == "config/config.yaml"


def test_a_folder_above_is_the_one_that_the_system_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`..` after a link leads above its target; a name alone lies in the working directory."""
    (tmp_path / "there/config").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    (tmp_path / "here/link").symlink_to(tmp_path / "there/config")
    assert config.root_of(tmp_path / "here/link/c.yaml") == tmp_path / "here"
    assert config.root_of(tmp_path / "here/link/../config/c.yaml") == tmp_path / "there"
    monkeypatch.chdir(tmp_path / "there/config")
    assert config.root_of(Path("c.yaml")) == tmp_path / "there"
    assert config.root_of(Path("../c.yaml")) == tmp_path
    assert absolute("a") == tmp_path / "there/config/a"
    assert name_below(tmp_path, tmp_path / "here/link/c.yaml") == "here/link/c.yaml"
    assert name_below(tmp_path / "here", tmp_path / "there/c.yaml") == "../there/c.yaml"
