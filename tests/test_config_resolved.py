"""The settings file that a workflow writes for its jobs."""

import pytest
from conftest import PRETRAINED, REPOSITORY, demo_values, merged

from sublora import config

SHIPPED = ["config/config.yaml", "demo/config/config.yaml", "demo/config/random_base.yaml"]


@pytest.mark.parametrize("path", SHIPPED)
def test_settings_come_back_as_they_were(tmp_path, path):
    settings = config.load_settings(REPOSITORY / path)
    config.write_resolved(settings, tmp_path / "settings.yaml")
    assert config.load_settings(tmp_path / "settings.yaml") == settings


def test_odd_text_and_small_numbers_come_back(tmp_path):
    base = PRETRAINED | {"path": "a folder/größe: 1 # no comment"}
    changes = {"bound": {"delta": 1e-7, "delta_sample": 1e-30, "delta_base": None}}
    settings = config.parse_settings(merged(demo_values() | {"base": base}, changes), "x")
    config.write_resolved(settings, tmp_path / "settings.yaml")
    assert config.load_settings(tmp_path / "settings.yaml") == settings


def test_a_file_that_holds_the_settings_is_not_written_again(tmp_path):
    settings = config.parse_settings(demo_values(), "x")
    path = tmp_path / "results/settings.yaml"
    config.write_resolved(settings, path)
    first = path.stat()
    config.write_resolved(config.parse_settings(demo_values(), "y"), path)
    assert path.stat().st_ino == first.st_ino and path.stat().st_mtime_ns == first.st_mtime_ns
    config.write_resolved(config.parse_settings(merged(demo_values(), {"lora": {"rank": 3}}), "x"), path)
    assert path.stat().st_ino != first.st_ino, "replaced by a rename, not written into"
    assert [item.name for item in path.parent.iterdir()] == ["settings.yaml"]


def test_the_file_remembers_what_it_comes_from(tmp_path):
    """A run's folder is one person's settings file's, by whatever file its job was given the settings."""
    settings = config.parse_settings(demo_values(), "x")
    source, path = tmp_path / 'config/my "own": settings.yaml', tmp_path / "results/settings.yaml"
    source.parent.mkdir()
    source.write_text("grid:\n")
    config.write_resolved(settings, path, origin=source)
    assert config.origin_of(path).resolve() == source and config.load_settings(path) == settings
    assert config.origin_of(source) == source
    config.write_resolved(settings, path)
    assert config.origin_of(path) is None and config.load_settings(path) == settings


def test_text_from_the_command_line_is_read_as_yaml():
    """As Snakemake merges it: numbers inside a mapping are text there. Text of the file itself stays text."""
    file = {"grid": {"seeds": [1], "budgets": [5]}, "data": {"name": "7"}, "bound": {"delta": 0.05}}
    overrides = {"grid": {"seeds": ["2", "3"]}, "bound": {"delta": "1.0e-3"}, "model": "null", "lora": {"init": "{"}}
    snakemake_merged = {
        "grid": {"seeds": ["2", "3"], "budgets": [5]},
        "data": {"name": "7"},
        "bound": {"delta": "1.0e-3"},
        "model": "null",
        "lora": {"init": "{"},
    }
    assert config.with_typed_overrides(snakemake_merged, overrides) == file | {
        "grid": {"seeds": [2, 3], "budgets": [5]},
        "bound": {"delta": 1e-3},
        "model": None,
        "lora": {"init": "{"},
    }
