"""Documents in a folder of text files, and of files that hold a document per line or row; or in one such file.

    .txt               a document, UTF-8
    .jsonl, .ndjson    a document per line: an object with the text under a key
    .csv               a document per row, comma-separated, with a header
    .parquet           a document per row

All but .parquet may be compressed (.gz, .bz2, .xz, .zst after the suffix). Suffixes count in upper case too. Other
files are not read, and a note names them.

The source of a line or row is the value of `unit_field`, the source of a .txt file is its path in the folder; the two
kinds never have the same source.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, cast

from sublora import config
from sublora.data.corpora.reader import TextBatch, batch_texts, source_name
from sublora.system.errors import UserError, note, printable
from sublora.system.pretrained import is_pointer, pointer_error

TEXT, LINES, CSV, PARQUET = ".txt", (".jsonl", ".ndjson"), ".csv", ".parquet"
KINDS = (TEXT, *LINES, CSV, PARQUET)
FILE_SOURCE, FIELD_SOURCE = "file ", "unit "
"""Prefixes of the names of the two kinds of sources."""
BOM = b"\xef\xbb\xbf"
LARGEST_BYTES = 1 << 30
"""The largest .txt file, line or cell, unpacked. A larger one is no document, or was made to exhaust memory."""
ROWS = 256
"""Rows of a .parquet file that are in memory at once."""
NAMED = 5
"""How many of the files that are not read the note names."""

Document = tuple[str, str | None]
"""Text and source."""


def _open_zstandard(path: Path) -> IO[bytes]:
    import pyarrow

    raw = pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd")
    return cast(IO[bytes], io.BufferedReader(raw))


OPENERS: Mapping[str, Callable[[Path], IO[bytes]]] = {
    ".gz": lambda path: cast(IO[bytes], gzip.GzipFile(path)),
    ".bz2": lambda path: cast(IO[bytes], bz2.BZ2File(path)),
    ".xz": lambda path: cast(IO[bytes], lzma.LZMAFile(path)),  # noqa: SIM115 - closed where it is read
    ".zst": _open_zstandard,
}
"""How a compressed file is opened, by the last suffix."""


class FolderReader:
    """Reads the text files below a folder, or one file, in UTF-8.

    Subfolders are included, linked ones as well; hidden files and folders are not. Memory is bounded by the largest
    .txt file or line, and by LARGEST_BYTES.
    """

    unit = "documents"
    total = None

    def __init__(self, settings: config.FolderCorpus, root: Path) -> None:
        self.settings = settings
        place = Path(root) / settings.path
        if place.is_file():
            self.folder, self.where, present = place.parent, f"file {place}", [place]
        elif place.is_dir():
            self.folder, self.where, present = place, f"folder {place}", sorted(_files_below(place))
        else:
            raise UserError(
                f"data.corpus.path: {place} does not exist; relative paths start at the folder above config/, correct "
                "the path"
            )
        self.files = [path for path in present if path.is_file() and _kind(path)[0] is not None]
        others = [path for path in present if not path.is_file() or _kind(path)[0] is None]
        if place in others:
            expected = ", ".join(KINDS)
            raise UserError(f"data.corpus.path: {place} is no text file that can be read, expected one of {expected}")
        if not self.files:
            raise UserError(
                f"data.corpus.path: no .txt or .jsonl file in {self.where}, and none of {', '.join(KINDS[2:])}"
                f"{self._named(others)}; put the text there or correct the path"
            )
        if others:
            note(f"{self.where}: not read: {len(others)} of {len(present)} files{self._named(others)}")

    def _named(self, others: list[Path]) -> str:
        """Return the first files that are not read, in words."""
        names = [path.relative_to(self.folder).as_posix() for path in others[:NAMED]]
        more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
        return f" ({', '.join(names)}{more})" if names else ""

    def batches(self) -> Iterator[TextBatch]:
        return batch_texts(document for path in self.files for document in self._documents(path))

    def provenance(self) -> dict[str, object]:
        return {"files": len(self.files), "bytes": sum(path.stat().st_size for path in self.files)}

    def _documents(self, path: Path) -> Iterator[Document]:
        """Yield the documents of a file. UserError if it is damaged."""
        kind, opener = _kind(path)
        if is_pointer(path):
            raise pointer_error(path)
        try:
            if kind == PARQUET:
                yield from self._documents_of_parquet(path)
                return
            with opener(path) as handle:
                if kind == TEXT:
                    source = f"{FILE_SOURCE}{path.relative_to(self.folder).as_posix()}"
                    yield _plain_text(_limited(handle.read(LARGEST_BYTES + 1), str(path)), str(path)), source
                elif kind == CSV:
                    yield from self._documents_of_csv(handle, path)
                else:
                    yield from self._documents_of_lines(handle, path)
        except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
            raise UserError(f"{path}: damaged ({printable(error, 100)}); bring the whole file") from None
        except (ValueError, OSError) as error:
            # What pyarrow and bz2 raise for damaged files; the operating system's own errors have a number.
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise UserError(f"{path}: damaged ({printable(error, 100)}); bring the whole file") from None

    def _documents_of_lines(self, handle: IO[bytes], path: Path) -> Iterator[Document]:
        number = 0
        while line := handle.readline(LARGEST_BYTES + 1):
            number += 1
            where = f"{path}, line {number}"
            if line.strip():
                yield self._document(_object(_limited(line, where).removeprefix(BOM), where), where, "key")

    def _documents_of_csv(self, handle: IO[bytes], path: Path) -> Iterator[Document]:
        csv.field_size_limit(LARGEST_BYTES)
        rows = csv.reader(io.TextIOWrapper(handle, encoding="utf-8-sig", newline=""), strict=True)
        header: list[str] | None = None
        try:
            for row in rows:
                where = f"{path}, line {rows.line_num}"
                if header is None:
                    header = row
                elif row and len(row) != len(header):
                    raise UserError(f"{where}: {len(row)} cells, expected {len(header)} as in the header; fix the row")
                elif row:
                    yield self._document(dict(zip(header, row, strict=True)), where, "column")
        except csv.Error as error:
            raise UserError(f"{path}, line {rows.line_num}: not valid CSV ({error}); fix the row") from None
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 ({error.reason}); convert the file to UTF-8") from None

    def _documents_of_parquet(self, path: Path) -> Iterator[Document]:
        import pyarrow.parquet

        keys = ("text_field", "unit_field")
        fields = {key: getattr(self.settings, key) for key in keys if getattr(self.settings, key) is not None}
        with pyarrow.parquet.ParquetFile(path) as file:
            for key, field in fields.items():
                _field(dict.fromkeys(file.schema_arrow.names), field, str(path), "column", key)
            number = 0
            for batch in file.iter_batches(batch_size=ROWS, columns=[*fields.values()]):
                for row in batch.to_pylist():
                    number += 1
                    yield self._document(row, f"{path}, row {number}", "column")

    def _document(self, values: Mapping[str, object], where: str, what: str) -> Document:
        """Return the document of a line or a row. `what`: how its format calls a field."""
        text = _field(values, self.settings.text_field, where, what, "text_field")
        if not isinstance(text, str):
            raise UserError(f"{where}: {what} '{self.settings.text_field}' holds {type(text).__name__}, expected text")
        if self.settings.unit_field is None:
            return text, None
        unit = _field(values, self.settings.unit_field, where, what, "unit_field")
        if (name := source_name(unit)) is None:
            raise UserError(
                f"{where}: {what} '{self.settings.unit_field}' holds {type(unit).__name__}, expected text or a whole "
                "number"
            )
        return text, FIELD_SOURCE + name


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder except hidden ones, each folder once, however often it is linked.

    Linked folders come after those that are there themselves, so that a link never renames a file.
    """
    seen: set[str] = set()
    waiting = [folder]
    while waiting:
        links: list[Path] = []
        for place in waiting:
            for where, folders, names in os.walk(place):
                real = os.path.realpath(where)
                if real in seen:
                    folders.clear()
                    continue
                seen.add(real)
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                links += [Path(where, name) for name in folders if os.path.islink(os.path.join(where, name))]
                yield from (Path(where, name) for name in names if not name.startswith("."))
        waiting = links


def _kind(path: Path) -> tuple[str | None, Callable[[Path], IO[bytes]]]:
    """Return the suffix that says what a file holds, None if nothing that is read, and how it is opened."""
    *_, first, last = ["", "", *(suffix.lower() for suffix in path.suffixes)]
    if last in OPENERS:
        return (first if first in KINDS and first != PARQUET else None), OPENERS[last]
    return (last if last in KINDS else None), lambda path: open(path, "rb")


def _limited(data: bytes, where: str) -> bytes:
    if len(data) > LARGEST_BYTES:
        raise UserError(f"{where}: more than {LARGEST_BYTES:,} bytes in one document; split it")
    return data


def _plain_text(data: bytes, where: str) -> str:
    """Return the text of a .txt file without its byte order mark."""
    text = _decode(data.removeprefix(BOM), where)
    position = text.find("\0")
    if position >= 0:
        raise UserError(
            f"{where}: holds the character NUL (at {position}), so it is UTF-16 without a byte order mark, or no text; "
            "convert the file to UTF-8"
        )
    return text


def _object(line: bytes, where: str) -> dict[str, object]:
    """Return the JSON object in a line."""
    try:
        value = json.loads(_decode(line, where))
    except RecursionError:
        raise UserError(f"{where}: nested too deep to be read; expected an object of text per line") from None
    except ValueError as error:  # not JSON, or a number of too many digits
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise UserError(f"{where}: not valid JSON ({reason}); expected one object per line") from None
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


def _field(values: Mapping[str, object], field: str, where: str, what: str, setting: str) -> object:
    if field not in values:
        found = printable(", ".join(map(repr, values)), 200)
        raise UserError(f"{where}: no {what} '{field}', found {found}; fix data.corpus.{setting}")
    return values[field]


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 at byte {error.start}; convert the file to UTF-8") from None
