"""Docstrings of the standard library and of installed packages, which are parsed and never imported."""

import ast
import inspect
from pathlib import Path

from sublora import config
from sublora.data.corpora.python_sources import PythonSourceReader, child_statements, parse_source

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
