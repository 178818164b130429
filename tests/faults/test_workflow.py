"""The workflow under names that shells and tools stumble over."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from workflow.toy import REPOSITORY, SMALL_GRID, Toy

TARGET = "results/runs/d40_uniform_seed1/bounds.json"


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return Toy.build(tmp_path_factory.mktemp("faults") / "it's;a&checkout")


@pytest.mark.parametrize("name", ["$(touch pwned)", "`touch pwned`; touch pwned", 'it\'s "quoted"', "{params.folder}"])
def test_a_settings_file_of_any_name_is_a_name(toy: Toy, name: str) -> None:
    """In a checkout whose own path is as nasty: commands get the name, and no shell reads it."""
    path = f"config/{name}.yaml"
    toy.write_settings(path, grid=SMALL_GRID)
    outcome = toy.snakemake(TARGET, "--forceall", "--configfile", path)
    assert outcome.exit_code == 0, outcome.text
    assert toy.calls[-1] == f"sublora bound {Path(TARGET).parent} --config results/settings.yaml"
    assert not list(toy.root.rglob("pwned*"))


def test_a_checkout_with_a_space_in_its_path_stops_with_one_line(tmp_path: Path) -> None:
    toy = Toy.build(tmp_path / "a checkout")
    outcome = toy.snakemake()
    expected = f"{toy.root}/workflow: this path has a space in it, which Snakemake cannot work with; move the checkout"
    assert (outcome.exit_code, outcome.message) == (1, [expected])
    shutil.copy(REPOSITORY / "Makefile", toy.root)
    # As typed by hand, also where the tests themselves run below make.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    for target in ("setup", "demo"):
        made = subprocess.run(["make", "-n", target], cwd=toy.root, env=environment, capture_output=True, text=True)
        assert made.returncode == 2 and made.stdout == "" and made.stderr.count("\n") == 1
        assert f"{toy.root}: this path has a space in it" in made.stderr


def test_a_working_folder_with_a_space_works(tmp_path: Path) -> None:
    toy = Toy.build(tmp_path / "plain")
    toy.write_settings("my runs/config/config.yaml", grid=SMALL_GRID)
    outcome = toy.snakemake(TARGET, "--directory", "my runs")
    assert outcome.exit_code == 0, outcome.text
    assert (toy.root / "my runs" / TARGET).exists()
