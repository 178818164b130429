"""Bounds and code stand alone: what a verifier must trust needs no network, no settings and no heavy library."""

import ast
import sys
from pathlib import Path

import pytest

import sublora

PACKAGE = Path(sublora.__file__).parent
OURS = tuple(f"sublora.system.{name}" for name in ("digests", "errors", "files", "streams", "versions"))
OTHERS = {"numpy", "constriction", "pydantic"}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module != "sublora", f"{path.name}: import modules by their full name"
            yield node.module


@pytest.mark.parametrize("folder", ["bounds", "coding"])
def test_nothing_but_numpy_and_the_range_coder_is_imported(folder):
    paths = sorted((PACKAGE / folder).glob("*.py"))
    assert paths
    for path in paths:
        for module in imported(path):
            top = module.partition(".")[0]
            own = f"{module}.".startswith(f"sublora.{folder}.") or module in OURS
            assert own or top in OTHERS or top in sys.stdlib_module_names, f"{path.name} imports {module}"
