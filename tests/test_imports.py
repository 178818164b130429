"""Who may import whom, in every module and inside every function of the package; and one home for each name."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import REPOSITORY

PACKAGE = REPOSITORY / "sublora"

LIBRARY = {"system", "subspace", "coding", "bounds", "config", "data", "models", "losses", "training", "yardsticks"}
MAY_IMPORT: dict[str, set[str]] = {
    "system": set(),
    "subspace": {"system"},
    "coding": {"system"},
    "bounds": {"system"},
    # Names that need no numerical library.
    "config": {"system", "subspace.allocations", "subspace.projections", "subspace.scales", "bounds.smoothing_names"},
    "data": {"config", "system"},
    "models": {"subspace", "config", "system"},
    "nn": {"subspace"},
    "losses": {"models", "data", "bounds", "config", "system"},
    "training": {"losses", "subspace", "models", "data", "coding", "bounds", "config", "system"},
    "yardsticks": {"data", "coding", "bounds", "config", "system"},
    # What a quantized w costs is computed as in training.
    "wrapping": {"models", "subspace", "coding", "bounds", "system", "training.quantization"},
    "analysis": {"config", "bounds", "yardsticks", "system"},
    "runs": LIBRARY,
    "tools": LIBRARY | {"nn", "wrapping", "analysis", "runs"},
    "cli": LIBRARY | {"wrapping", "analysis", "runs", "tools"},
    "": {"bounds", "wrapping", "tools.adapt.adapt", "system"},
}
"""Each package, '' for sublora itself, and the packages or modules of ours that it may import beside its own.

An import that only a type checker reads counts as well.
"""
KNOWN_VIOLATIONS: set[str] = set()
"""Still to be removed; the test fails for one that is no longer there."""


class Import(NamedTuple):
    """One module of ours imported by another; names are those below `sublora`."""

    importer: str
    imported: str
    for_types: bool
    """Whether only a type checker reads it."""


def modules() -> dict[str, Path]:
    """All modules by their name below `sublora`; a package by its own name, sublora itself by ''."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports() -> Iterator[Import]:
    """Every import of ours, at the top of a module or inside a function."""
    known = modules()
    for name, path in known.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        typed = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            for target in _targets(node, known):
                yield Import(name, target, id(node) in typed)


def _targets(node: ast.AST, known: dict[str, Path]) -> list[str]:
    """Modules of ours that a statement imports; `from package import module` counts as the module."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        whole = [f"{node.module}.{alias.name}" for alias in node.names]
        names = [name if _below(name) in known else node.module or "" for name in whole]
    else:
        return []
    return [_below(name) for name in dict.fromkeys(names) if name == "sublora" or name.startswith("sublora.")]


def _below(name: str) -> str:
    return name.removeprefix("sublora").removeprefix(".")


def test_the_table_names_every_package() -> None:
    assert {name.split(".")[0] for name in modules()} == MAY_IMPORT.keys()


def test_no_module_imports_what_the_table_does_not_allow() -> None:
    found = set()
    for importer, imported, _ in imports():
        package = importer.split(".")[0]
        if imported == "":  # the version
            continue
        if not {imported, imported.split(".")[0]} & (MAY_IMPORT[package] | {package}):
            found.add(f"{importer} imports {imported}")
    assert found == KNOWN_VIOLATIONS


def test_no_arrow_runs_up() -> None:
    """The packages can be put into an order in which each imports only earlier ones."""
    waiting = {package: {name.split(".")[0] for name in names} for package, names in MAY_IMPORT.items()}
    while waiting:
        ready = {package for package, names in waiting.items() if not names & waiting.keys()}
        assert ready, f"a circle among {sorted(waiting)}"
        waiting = {package: names for package, names in waiting.items() if package not in ready}


def test_no_modules_import_each_other_in_a_circle() -> None:
    arrows: dict[str, set[str]] = {}
    for importer, imported, for_types in imports():
        if not for_types and importer != imported:
            arrows.setdefault(importer, set()).add(imported)
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for target in sorted(arrows.get(name, ())):
                visit(target, (*path, name))
            done.add(name)

    for name in sorted(arrows):
        visit(name, ())


def test_no_public_name_is_defined_in_two_modules() -> None:
    """A class or function at the top of a module is found by its name alone."""
    homes: dict[str, list[str]] = {}
    for module, path in modules().items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name[0] != "_":
                homes.setdefault(node.name, []).append(module)
    assert {name: found for name, found in homes.items() if len(set(found)) > 1} == {}


@pytest.mark.parametrize("module", ["sublora", "sublora.config", "sublora.config.marks", "sublora.cli"])
def test_light_imports_load_no_numerical_library(module: str) -> None:
    heavy = ("numpy", "torch", "transformers", "pandas", "scipy")
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_settings_are_checked_without_a_numerical_library() -> None:
    code = (
        "import sys; from pathlib import Path; from sublora.config import load_settings; "
        f"load_settings(Path({str(REPOSITORY / 'demo/config/config.yaml')!r})); print('numpy' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
