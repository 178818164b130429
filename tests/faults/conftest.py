"""One finished experiment for all tests of faults; each breaks a copy."""

from pathlib import Path

import pytest

from faults.scene import Scene


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene.build(tmp_path_factory.mktemp("faults").resolve() / "whole")


@pytest.fixture
def scene(whole: Scene, tmp_path: Path) -> Scene:
    """A copy to break."""
    return whole.copy(tmp_path.resolve() / "scene")
