"""A toy workflow, fresh or already finished."""

from pathlib import Path

import pytest

from workflow.toy import Toy


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy.build(tmp_path / "toy")


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    toy = Toy.build(tmp_path_factory.mktemp("workflow") / "toy")
    outcome = toy.snakemake()
    assert outcome.exit_code == 0, outcome.text
    return toy


@pytest.fixture
def finished(finished_once: Toy, tmp_path: Path) -> Toy:
    """All jobs of the small grid are done."""
    return finished_once.copy(tmp_path / "toy")
