"""A toy workflow, fresh or already finished."""

from pathlib import Path

import pytest
from conftest import MadeOnce

from workflow.toy import Toy


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy.build(tmp_path / "toy")


@pytest.fixture(scope="session")
def finished_once(made_once: MadeOnce) -> Toy:
    def make(root: Path) -> None:
        outcome = Toy.build(root).snakemake()
        assert outcome.exit_code == 0, outcome.text

    return Toy(made_once("workflow", make))


@pytest.fixture
def finished(finished_once: Toy, tmp_path: Path) -> Toy:
    """All jobs of the small grid are done."""
    return finished_once.copy(tmp_path / "toy")
