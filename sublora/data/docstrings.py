"""Docstrings of the standard library and of installed packages, parsed and never imported."""

import ast
import gc
import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import platform
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sublora import config
from sublora.data.corpora import Texts
from sublora.errors import UserError

STANDARD_LIBRARY = "stdlib"
SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "test", "tests"})
"""Below the standard library lie other people's packages; test folders are stripped by some installers."""

BATCH_BYTES = 1 << 20
"""A batch of source files is closed once they hold this many bytes."""

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")
"""Fields of a syntax tree's nodes that hold statements (or what holds statements)."""


@dataclass(frozen=True)
class SourceBatch:
    """Python files; reading them parses them."""

    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self) -> Texts:
        documents: list[str] = []
        unparsable = 0
        # Syntax trees hold no cycles, and collections in the middle of building one double the time.
        collecting = gc.isenabled()
        gc.disable()
        try:
            for path in self.paths:
                found = docstrings_of_source(path.read_bytes())
                if found is None:
                    unparsable += 1
                else:
                    documents.extend(found)
        finally:
            if collecting:
                gc.enable()
        return Texts(documents, unparsable)


def docstrings_of_source(source: bytes) -> list[str] | None:
    """Docstrings of the module, its classes and functions, indentation cleaned; None if it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):  # ValueError: null bytes; RecursionError: nested too deeply
        return None
    found = []
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node, clean=False)) is not None:
            found.append(inspect.cleandoc(text))
        for block in BLOCKS:
            nodes.extend(child for child in _statements(node, block))
    return found


def _statements(node: ast.AST, block: str) -> list[ast.AST]:
    value = getattr(node, block, None)
    return value if isinstance(value, list) else []  # the body of a lambda is a single expression


class DocstringReader:
    """Finds the source files of packages by their import names."""

    unit = "files"

    def __init__(self, settings: config.DocstringCorpus) -> None:
        self.where = f"docstrings of {', '.join(settings.packages)}"
        self.files = {name: source_files(name) for name in settings.packages}
        self.total = sum(map(len, self.files.values()))

    def batches(self) -> Iterator[SourceBatch]:
        batch: list[Path] = []
        size = 0
        for path in (path for paths in self.files.values() for path in paths):
            batch.append(path)
            size += path.stat().st_size
            if size >= BATCH_BYTES:
                yield SourceBatch(tuple(batch))
                batch, size = [], 0
        if batch:
            yield SourceBatch(tuple(batch))

    def provenance(self) -> dict[str, object]:
        return {
            "python": platform.python_version(),
            "package_versions": package_versions(tuple(self.files)),
            "source_files": {name: len(paths) for name, paths in self.files.items()},
        }


def source_files(package: str) -> list[Path]:
    """Sorted .py files of a package or single-file module, found without importing it.

    Raises UserError if there is no such package, or none with Python source.
    """
    if package == STANDARD_LIBRARY:
        return _files_below([Path(sysconfig.get_paths()["stdlib"])])
    spec = _find_spec(package)
    files = _files_below([Path(folder) for folder in spec.submodule_search_locations or ()])
    if not files and spec.origin is not None and spec.origin.endswith(".py"):
        files = [Path(spec.origin)]
    if not files:
        raise UserError(
            f"data.corpus.packages: '{package}' has no Python source files (origin: {spec.origin}); "
            "take it out of the list"
        )
    return files


def _find_spec(package: str) -> importlib.machinery.ModuleSpec:
    # A dotted name would import the parent package; names of running modules may have no spec (ValueError).
    try:
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
    except ValueError:
        spec = None
    if spec is None:
        raise UserError(
            f"data.corpus.packages: no installed package '{package}'; expected import names of top-level packages "
            f"or '{STANDARD_LIBRARY}': install it or take it out of the list"
        )
    return spec


def _files_below(folders: list[Path]) -> list[Path]:
    return sorted(
        path
        for folder in folders
        for path in folder.rglob("*.py")
        if SKIPPED_FOLDERS.isdisjoint(path.relative_to(folder).parts[:-1]) and path.is_file()
    )


def package_versions(packages: tuple[str, ...]) -> dict[str, str | None]:
    """Version of each package's distribution; None for source that no distribution claims."""
    distributions = importlib.metadata.packages_distributions()
    versions: dict[str, str | None] = {}
    for package in packages:
        if package == STANDARD_LIBRARY:
            versions[package] = platform.python_version()
        else:
            names = distributions.get(package, [])
            versions[package] = importlib.metadata.version(names[0]) if names else None
    return versions
