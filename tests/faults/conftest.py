"""One finished experiment for all tests of faults; each breaks a copy."""

from pathlib import Path

import pytest
from conftest import MadeOnce

from faults.scene import Scene


@pytest.fixture(scope="session")
def whole(made_once: MadeOnce) -> Scene:
    return Scene(made_once("faults", lambda root: Scene.build(root.resolve())).resolve())


@pytest.fixture
def scene(whole: Scene, tmp_path: Path) -> Scene:
    """A copy to break."""
    return whole.copy(tmp_path.resolve() / "scene")
