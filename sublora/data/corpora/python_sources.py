"""Python sources of the standard library and of installed packages: found, parsed, never imported; their docstrings."""

import ast
import gc
import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import platform
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sublora import config
from sublora.data.corpora.reader import Texts
from sublora.system.errors import UserError

STANDARD_LIBRARY = "stdlib"
SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "test", "tests"})
"""Folders of the standard library with other people's packages, and with tests, which some installers leave out."""

BATCH_BYTES = 1 << 20
"""A batch of source files is closed once its files hold this many bytes."""

BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")
"""Fields of a syntax tree's nodes that hold statements, or nodes that hold statements."""

Extraction = Callable[[bytes], list[str] | None]
"""Returns the documents of a source file, None if it does not parse; a module's function, so that it can be pickled."""


class SourceFile(NamedTuple):
    """A Python file, and its name as a source, which is the same on every machine: package/path/in/it.py."""

    path: Path
    name: str


@dataclass(frozen=True)
class SourceBatch:
    """Python files; reading them parses them."""

    files: tuple[SourceFile, ...]
    extract: Extraction

    def __len__(self) -> int:
        return len(self.files)

    def read(self) -> Texts:
        documents: list[str] = []
        sources: list[str | None] = []
        unparsable = 0
        # Syntax trees hold no cycles, and garbage collection while one is built doubles the time.
        collecting = gc.isenabled()
        gc.disable()
        try:
            for path, name in self.files:
                found = self.extract(path.read_bytes())
                if found is None:
                    unparsable += 1
                else:
                    documents.extend(found)
                    sources.extend([name] * len(found))
        finally:
            if collecting:
                gc.enable()
        return Texts(documents, unparsable, sources)


def parse_source(source: bytes | str) -> ast.Module | None:
    """Return the syntax tree of a module; None if it is not valid Python for this interpreter's version."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):  # ValueError: null bytes; RecursionError: nested too deeply
        return None


def child_statements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the statements in the blocks of a node, and its handlers and cases, which hold statements."""
    for block in BLOCKS:
        value = getattr(node, block, None)
        if isinstance(value, list):  # the body of a lambda is a single expression
            yield from value


class PythonSourceReader:
    """Reads the source files of packages, found by their import names; subclasses define what a document is."""

    unit = "files"

    def __init__(self, packages: tuple[str, ...], what: str, extract: Extraction) -> None:
        self.where = f"{what} of {', '.join(packages)}"
        self.files = {name: source_files(name) for name in packages}
        self.total = sum(map(len, self.files.values()))
        self._extract = extract

    def batches(self) -> Iterator[SourceBatch]:
        batch: list[SourceFile] = []
        size = 0
        for file in (file for files in self.files.values() for file in files):
            batch.append(file)
            size += file.path.stat().st_size
            if size >= BATCH_BYTES:
                yield SourceBatch(tuple(batch), self._extract)
                batch, size = [], 0
        if batch:
            yield SourceBatch(tuple(batch), self._extract)

    def provenance(self) -> dict[str, object]:
        return {
            "python": platform.python_version(),
            "package_versions": package_versions(tuple(self.files)),
            "source_files": {name: len(files) for name, files in self.files.items()},
        }


def source_files(package: str) -> list[SourceFile]:
    """Return the .py files of a package or single-file module, sorted by path, without importing it.

    UserError if there is no such package, or it has no Python source.
    """
    if package == STANDARD_LIBRARY:
        return _files_below([Path(sysconfig.get_paths()["stdlib"])], package)
    spec = _find_spec(package)
    files = _files_below([Path(folder) for folder in spec.submodule_search_locations or ()], package)
    if not files and spec.origin is not None and spec.origin.endswith(".py"):
        files = [SourceFile(Path(spec.origin), f"{package}/{Path(spec.origin).name}")]
    if not files:
        raise UserError(
            f"data.corpus.packages: '{package}' has no Python source files (origin: {spec.origin}); "
            "take it out of the list"
        )
    return files


def _find_spec(package: str) -> importlib.machinery.ModuleSpec:
    # Finding a dotted name would import the parent package; names of running modules may have no spec (ValueError).
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


def _files_below(folders: list[Path], package: str) -> list[SourceFile]:
    return sorted(
        SourceFile(path, f"{package}/{path.relative_to(folder).as_posix()}")
        for folder in folders
        for path in folder.rglob("*.py")
        if SKIPPED_FOLDERS.isdisjoint(path.relative_to(folder).parts[:-1]) and path.is_file()
    )


def package_versions(packages: tuple[str, ...]) -> dict[str, str | None]:
    """Return the version of each package's distribution; None if no distribution lists the package."""
    distributions = importlib.metadata.packages_distributions()
    versions: dict[str, str | None] = {}
    for package in packages:
        if package == STANDARD_LIBRARY:
            versions[package] = platform.python_version()
        else:
            names = distributions.get(package, [])
            versions[package] = importlib.metadata.version(names[0]) if names else None
    return versions


DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class DocstringReader(PythonSourceReader):
    """One document per docstring."""

    def __init__(self, settings: config.DocstringCorpus, root: Path | None = None) -> None:
        """Find the files; `root`, where other corpora's files are, is not used: packages are found on Python's path."""
        super().__init__(settings.packages, "docstrings", docstrings_of_source)


def docstrings_of_source(source: bytes) -> list[str] | None:
    """Return the docstrings of the module, its classes and functions, dedented; None if it does not parse."""
    tree = parse_source(source)
    if tree is None:
        return None
    found = []
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node, clean=False)) is not None:
            found.append(inspect.cleandoc(text))
        nodes.extend(child_statements(node))
    return found
