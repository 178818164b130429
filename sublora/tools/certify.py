"""`sublora certify`: read losses from any file, and give every bound on them as a table and as JSON.

This module knows no runs, settings or networks; heavy readers are imported only for the formats that need them.
"""

import array
import codecs
import contextlib
import csv
import dataclasses
import io
import itertools
import re
import sys
from collections.abc import Callable, Iterator
from decimal import ROUND_CEILING, Context, Decimal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sublora.bounds.certify import Certified, certify
from sublora.system.archives import LARGEST_FILE, Archive, most_unpacked, read_array
from sublora.system.errors import UserError
from sublora.system.files import UNREADABLE, read_regular, reason_of, write_json

Columns = dict[str, Callable[[], NDArray]]
"""Columns or arrays: what reads each of them, by name. Those that are not used may hold anything."""

DELIMITERS = (",", ";", "\t")
LONGEST_LINE = 1 << 20
"""Characters of a line of a CSV file."""
MOST_NAMES = 20
"""Names of columns in an error message."""
DECIMALS = 4
"""The number of decimals of printed bounds, which are rounded up; JSON has all digits."""
LARGEST_PLAIN = 1e12
"""Numbers from here on are printed with an exponent."""


def certify_file(
    path: Path, *, column: str | None, counts: str | None, json_path: Path | None, **arguments: Any
) -> Certified:
    """Read losses, bound them, print the table, and write JSON.

    column, counts: as in `read_example_losses`; arguments: those of `sublora.bounds.certify.certify` other than losses
    and counts. UserError in one line, which begins with the file, for every bad input.
    """
    losses, multiplicities = read_example_losses(path, column, counts, drawn=bool(arguments.get("subsample")))
    try:
        result = certify(losses, counts=multiplicities, **arguments)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    print_certified(result)
    write_certified(json_path, result.as_json())
    return result


def write_certified(path: Path | None, contents: dict[str, Any]) -> None:
    """Write a result as JSON where a file is asked for; UserError if it cannot be written."""
    if path is None:
        return
    try:
        write_json(path, contents)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error


def read_example_losses(
    path: Path, column: str | None = None, counts: str | None = None, *, drawn: bool = False
) -> tuple[NDArray, NDArray | None]:
    """Return losses and, if `counts` is given, how often each was drawn; as stored, with unchecked values.

    column: a column of a CSV or parquet file, or an array of an .npz file; not needed if there is only one. counts: the
    same for the counts; for an .npy file, another .npy file. drawn: the losses belong to a draw, so their number does
    not tell whether a first line of whole numbers in a CSV file is a header. UserError, which names the file, if it
    cannot be read.
    """
    columns = _columns(path, drawn=drawn)
    losses = columns[_chosen(path, columns, column, besides=counts)]()
    if counts is None:
        return losses, None
    if path.suffix == ".npy":
        return losses, _npy(Path(counts))
    return losses, columns[_chosen(path, columns, counts)]()


def read_identified(path: Path, column: str | None, id_column: str | None) -> tuple[NDArray, tuple[str, ...] | None]:
    """Return values and, if a column for it is named, what identifies each example; errors as `read_example_losses`."""
    columns = _columns(path, drawn=True)
    values = columns[_chosen(path, columns, column, besides=id_column)]()
    if id_column is None:
        return values, None
    chosen = _chosen(path, columns, id_column)
    if path.suffix == ".csv":
        table = CsvText.read(path)
        names, skipped = _header(table, drawn=True)
        return values, tuple(cells[names.index(chosen)].strip() for _, cells in table.below(skipped))
    return values, tuple(map(str, columns[chosen]().tolist()))


def _columns(path: Path, *, drawn: bool = False) -> Columns:
    readers: dict[str, Callable[[Path], Columns]] = {
        ".csv": partial(_csv_columns, drawn=drawn),
        ".npz": _npz_columns,
        ".npy": _npy_columns,
        ".parquet": _parquet_columns,
    }
    if path.suffix not in readers:
        raise UserError(f"{path}: expected a name that ends in {', '.join(readers)}")
    return readers[path.suffix](path)


def _chosen(path: Path, columns: Columns, asked: str | None, besides: str | None = None) -> str:
    """Return the column that was asked for, or the only one besides the counts."""
    names = [name for name in columns if name != besides]
    if asked is None and len(names) == 1:
        return names[0]
    there = ", ".join(map(repr, itertools.islice(columns, MOST_NAMES))) or "nothing"
    there += f" and {len(columns) - MOST_NAMES:,} more" if len(columns) > MOST_NAMES else ""
    if asked is None:
        raise UserError(f"{path}: holds {there}; name the losses with --column (of a table) or --key (of an .npz file)")
    if asked not in columns:
        raise UserError(f"{path}: has no {asked!r}, it holds {there}")
    return asked


@contextlib.contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    """Raise as UserError, in one line, whatever a library says about a file that it cannot read."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file") from error
    except (*UNREADABLE, OSError, csv.Error) as error:
        raise UserError(f"{path}: not a readable {what}: {reason_of(error)}") from error


def _npy(path: Path) -> NDArray:
    with _reading(path, ".npy file of numbers"):
        data = read_regular(path, most_bytes=LARGEST_FILE)
        if data.startswith(b"PK"):
            raise ValueError("it holds several arrays: an .npz file under another name")
        return read_array(io.BytesIO(data), len(data))


def _npy_columns(path: Path) -> Columns:
    return {"": partial(_npy, path)}


def _npz_columns(path: Path) -> Columns:
    with _reading(path, ".npz file"):
        archive = Archive(read_regular(path, most_bytes=LARGEST_FILE))

    def unpacked(name: str) -> NDArray:
        with _reading(path, ".npz file of numbers"):
            return archive.read(name)

    return {name: partial(unpacked, name) for name in archive.names}


def _parquet_columns(path: Path) -> Columns:
    """Return the columns of a parquet file, each read when it is asked for; those of pandas' index are left out."""
    import pyarrow as arrow
    from pyarrow import parquet

    with _reading(path, "parquet file"):
        data = read_regular(path, most_bytes=LARGEST_FILE)
        file = parquet.ParquetFile(arrow.BufferReader(data))
        schema, rows = file.schema_arrow, file.metadata.num_rows
        index = (schema.pandas_metadata or {}).get("index_columns", [])

    def cells(name: str) -> NDArray:
        """Return numbers unchanged, missing ones as NaN, which `certify` refuses, and texts, equal ones only once."""
        kind, types = schema.field(name).type, arrow.types
        if 8 * rows > most_unpacked(len(data)):
            raise UserError(f"{path}: {rows:,} rows in a file of {len(data):,} bytes; write the losses to an .npy file")
        with _reading(path, "parquet file"):
            if types.is_integer(kind) or types.is_floating(kind):
                return file.read(columns=[name]).column(0).to_numpy()
            if not (types.is_string(kind) or types.is_large_string(kind)):
                raise ValueError(f"{name!r} holds {str(kind)[:40]}, expected numbers or text")
            reader = parquet.ParquetFile(arrow.BufferReader(data), read_dictionary=[name])
            chunks = reader.read(columns=[name]).column(0).chunks
            if any(chunk.null_count for chunk in chunks):
                raise ValueError(f"{name!r} has empty cells")
            texts = [chunk.dictionary.to_numpy(zero_copy_only=False)[chunk.indices.to_numpy()] for chunk in chunks]
            return np.concatenate(texts) if texts else np.zeros(0, dtype=object)

    if len(set(schema.names)) < len(schema.names):
        raise UserError(f"{path}: two columns have the same name")
    return {name: partial(cells, name) for name in schema.names if name not in index}


@dataclasses.dataclass(frozen=True)
class CsvText:
    """The text of a CSV file, gone through line by line: as lists of cells it would take thirty times the file."""

    path: Path
    text: str
    delimiter: str

    @classmethod
    def read(cls, path: Path) -> "CsvText":
        """UserError if the file is missing, too long, or in another encoding than UTF-8."""
        with _reading(path, "CSV file in UTF-8"):
            data = read_regular(path, most_bytes=LARGEST_FILE)
            # Without its byte-order mark UTF-16 is valid UTF-8, with a NUL beside every letter.
            if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data[:4096]:
                raise ValueError("it looks like UTF-16; save it as UTF-8")
            text = data.decode("utf-8-sig")
        first = text[:LONGEST_LINE].partition("\n")[0]
        return cls(path, text, next((each for each in DELIMITERS if each in first), ","))

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Yield line numbers in the file, and cells, of all lines that are not blank."""
        with _reading(self.path, "CSV file in UTF-8"):
            reader = csv.reader(self._lines(), delimiter=self.delimiter)
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    yield reader.line_num, cells

    def _lines(self) -> Iterator[str]:
        handle = io.StringIO(self.text, newline="")
        while line := handle.readline(LONGEST_LINE):
            if len(line) == LONGEST_LINE:
                raise ValueError(f"a line of more than {LONGEST_LINE:,} characters")
            yield line

    def below(self, skipped: int) -> Iterator[tuple[int, list[str]]]:
        """Yield the rows without the first `skipped` ones."""
        return itertools.islice(self.rows(), skipped, None)

    def numbers(self, index: int, *, skipped: int) -> NDArray[np.float64]:
        """Return a column as numbers, without the first `skipped` rows."""
        values = array.array("d")
        for line, cells in self.below(skipped):
            if not _is_number(cells[index]):
                raise UserError(
                    f"{self.path}: line {line} holds {cells[index][:40]!r}, expected a number with a decimal point (a "
                    "second header? a decimal comma? an empty cell?)"
                )
            values.append(float(cells[index]))
        return np.frombuffer(values, dtype=np.float64)


def _csv_columns(path: Path, *, drawn: bool) -> Columns:
    """Return columns by name, or as "1", "2", ... without a header. Cells are separated by comma, semicolon or tab."""
    table = CsvText.read(path)
    names, skipped = _header(table, drawn=drawn)
    for line, cells in table.below(skipped):
        if len(cells) != len(names):
            raise UserError(f"{path}: line {line} has {len(cells)} cells, expected {len(names)}")
    return {name: partial(table.numbers, index, skipped=skipped) for index, name in enumerate(names)}


def _header(table: CsvText, *, drawn: bool) -> tuple[list[str], int]:
    """Return the names of the columns and how many rows hold them. A first row that is not all numbers is a header.

    A first row of whole numbers may be one too: pandas writes 0, 1, ... for columns without names. Above losses with
    decimals it is refused, and in a draw or a comparison, where the number of rows does not tell, always.
    """
    path, rows = table.path, table.rows()
    line, first = next(rows, (0, []))
    if not first:
        raise UserError(f"{path}: is empty")
    first = [cell.strip() for cell in first]
    alone, below = len(first) == 1, next(rows, None)
    if all(map(_is_number, first)):
        whole = all(map(_is_whole, first))
        decimals_below = (
            alone and below is not None and not any(_is_whole(cells[0].strip()) for _, cells in table.below(1))
        )
        if whole and (drawn or decimals_below):
            where = ", and the number of rows does not tell what it is" if drawn else " above losses with decimals"
            raise UserError(
                f"{path}: line {line} holds {', '.join(first)[:40]!r}{where}: delete it if it is a header, as pandas "
                "writes it for columns without names, or write a line with the names of the columns above it"
            )
        return [str(index + 1) for index in range(len(first))], 0
    if alone and re.match(r"[-+]?\.?\d", first[0]):
        raise UserError(f"{path}: line {line} holds {first[0][:40]!r}, neither a number nor the name of a column")
    if below is None:
        raise UserError(f"{path}: holds a header and no losses")
    if len(set(first)) != len(first):
        raise UserError(f"{path}: two columns have the same name: {', '.join(map(repr, first[:MOST_NAMES]))}")
    return first, 1


NUMBER = re.compile(
    r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*|\s*[-+]?(nan|inf|infinity)\s*", re.ASCII | re.IGNORECASE
)
"""A number as other programs write it: float() would also take 3_0 for 30."""


def _is_number(text: str) -> bool:
    return NUMBER.fullmatch(text) is not None


def _is_whole(text: str) -> bool:
    return text.isascii() and text.isdigit()


def print_certified(result: Certified) -> None:
    """Print every bound, the one to quote and the assumptions to stdout, and warnings to stderr."""
    # The bounds, largest first; the one to quote stands out.
    table = Table("inequality", "bound", "above the mean loss", "")
    for column in table.columns[1:3]:
        column.justify = "right"
    for name, bound in sorted(result.bounds.items(), key=lambda item: -item[1]):
        chosen = name == result.quoted
        cells = (name, _up(bound), _up(bound - result.mean_loss), "quote this one" if chosen else "")
        table.add_row(*map(Text, cells), style="bold" if chosen else None)
    # How the bound came about.
    draw, price = "all scored", ""
    if result.delta_sample is not None:
        draw, price = f"{result.m:,} of them drawn with replacement", f" with {result.delta_sample:g} for the draw"
    if result.alternatives > 1:
        price += f", for {result.alternatives:,} alternatives at once"
    print(
        f"n = {result.n:,} examples, {draw}; mean loss {_shown(result.mean_loss)} "
        f"in [{result.lower:g}, {result.upper:g}]"
    )
    print(f"C = {result.code_bits:,g} bits, delta = {result.delta:g}{price}")
    Console().print(table)
    # What it states, assumes, and what looks unusual.
    print(
        f"With probability {1 - result.delta:g} the expected loss of a fresh example is at most "
        f"{_up(result.value)} ({result.why})."
    )
    print("Taken on trust:")
    for premise in result.on_trust:
        print(f"  - {premise}")
    for warning in result.warnings:
        print(f"warning: {warning}", file=sys.stderr)


def _up(value: float) -> str:
    """Return the value rounded up, so that the printed number is a bound as well."""
    if abs(value) >= LARGEST_PLAIN:
        return str(Context(prec=8, rounding=ROUND_CEILING).plus(Decimal(value)))
    return str(Decimal(value).quantize(Decimal(1).scaleb(-DECIMALS), rounding=ROUND_CEILING))


def _shown(value: float) -> str:
    return f"{value:.{DECIMALS}f}" if abs(value) < LARGEST_PLAIN else f"{value:.7e}"
