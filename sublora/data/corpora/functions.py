"""Python functions of the standard library and of installed packages, without docstrings, parsed and never imported.

A document is a function or method as in its file: from its first decorator to the end of its last line, with the
comments in between, dedented. Functions of a module and methods of a class count, also inside `if`, `try`, `with` and
other blocks and in nested classes; whatever a function contains (functions, classes) stays part of it.

The docstrings of the function and of all functions and classes in it are removed, each with a comment behind it on its
line and with the blank lines below. A function that consists only of its docstring is left out; inside another function
its body becomes `pass`. Line ends become "\\n". The text is taken from the source, so it does not depend on how some
version of Python would print a syntax tree.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

from sublora import config
from sublora.data.corpora.python_sources import PythonSourceReader, child_statements, parse_source

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DOCUMENTED = (*FUNCTIONS, ast.ClassDef)

BLANK = rb"(?:[ \t\f]|\\\n)*"
END_OF_STATEMENT = re.compile(BLANK + rb";?" + BLANK)
REST_OF_LINE = re.compile(rb"[^\n]*\n?")
DECORATOR = re.compile(rb"[ \t\f]*@")
BLANK_LINES = re.compile(rb"(?:[ \t\f]*\n)*")


class FunctionReader(PythonSourceReader):
    """One document per function or method."""

    def __init__(self, settings: config.FunctionCorpus, root: Path | None = None) -> None:
        """Find the files; `root`, where other corpora's files are, is not used: packages are found on Python's path."""
        super().__init__(settings.packages, "functions", functions_of_source)


def functions_of_source(source: bytes) -> list[str] | None:
    """Return the text of each outermost function, without docstrings; None if the source does not parse."""
    text = _decode(source)
    tree = None if text is None else parse_source(text)
    if text is None or tree is None:
        return None
    module = _Source(text.encode())
    documents = []
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
        if not isinstance(node, FUNCTIONS):
            nodes.extend(child_statements(node))
        elif not _is_docstring_alone(node):
            documents.append(module.document(node))
    return documents


def _decode(source: bytes) -> str | None:
    """Decode a module, with "\\n" for every line end; None if it does not have its declared encoding (PEP 263).

    Python's parser does the same before it counts lines and columns.
    """
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
        text = source.decode(encoding)
    except (SyntaxError, UnicodeError, LookupError):  # LookupError: codecs that are not for text
        return None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _docstring(node: ast.AST) -> ast.Expr | None:
    """Return the docstring's statement, None if there is no docstring."""
    if isinstance(node, DOCUMENTED) and isinstance(first := node.body[0], ast.Expr):
        value = first.value
        return first if isinstance(value, ast.Constant) and isinstance(value.value, str) else None
    return None


def _is_docstring_alone(node: ast.AST) -> bool:
    return isinstance(node, DOCUMENTED) and len(node.body) == 1 and _docstring(node) is not None


class _Source:
    """The UTF-8 text of a module; syntax trees count lines from 1 and columns in bytes from 0."""

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._starts = [0, *(match.end() for match in re.finditer(rb"\n", text)), len(text)]

    def document(self, function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
        """Return the function's text, as the module's docstring defines it."""
        start = self._start(function)
        end = self._starts[function.end_lineno or function.lineno]
        pieces, position = [], start
        for first, last, substitute in sorted(self._cuts(function)):
            pieces += [self._text[position:first], substitute]
            position = last
        pieces.append(self._text[position:end])
        indentation = self._text[self._text.rfind(b"\n", 0, start) + 1 : start].rpartition(b"\f")[2]
        lines = b"".join(pieces).rstrip().split(b"\n")
        return b"\n".join(line.removeprefix(indentation) for line in lines).decode()

    def _cuts(self, function: ast.AST) -> Iterator[tuple[int, int, bytes]]:
        """Yield start, end and substitute of each docstring in a function."""
        nodes = [function]
        while nodes:
            node = nodes.pop()
            nodes.extend(child_statements(node))
            if (statement := _docstring(node)) is not None:
                yield self._cut(statement, alone=_is_docstring_alone(node))

    def _cut(self, docstring: ast.Expr, *, alone: bool) -> tuple[int, int, bytes]:
        """Return start and end of the text that is removed with a docstring, and what replaces it."""
        start = self._offset(docstring.lineno, docstring.col_offset)
        end = self._offset(docstring.end_lineno or docstring.lineno, docstring.end_col_offset or 0)
        if alone:
            return start, end, b"pass"
        after = _end(END_OF_STATEMENT, self._text, end)
        if self._text[after : after + 1] not in (b"\n", b"#"):  # another statement on the same line
            return start, after, b""
        line = self._starts[docstring.lineno - 1]
        return line, _end(BLANK_LINES, self._text, _end(REST_OF_LINE, self._text, after)), b""

    def _start(self, function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
        """Return where the text begins: at `def`, `async` or the first decorator's @, whichever comes first."""
        if not function.decorator_list:
            return self._offset(function.lineno, function.col_offset)
        line = function.decorator_list[0].lineno  # of the expression; the @ may be above, before a parenthesis
        while (match := DECORATOR.match(self._text, self._starts[line - 1])) is None:
            line -= 1
        return match.end() - 1

    def _offset(self, line: int, column: int) -> int:
        return self._starts[line - 1] + column


def _end(pattern: re.Pattern[bytes], text: bytes, position: int) -> int:
    """Return where a match of a pattern that also matches nothing ends."""
    match = pattern.match(text, position)
    return position if match is None else match.end()
