"""`sublora certify`: read losses from any file, and give every bound on them as a table and as JSON.

This module knows no runs, settings or networks; heavy readers are imported only for the formats that need them.
"""

import contextlib
import csv
import re
import sys
import zipfile
from collections.abc import Callable, Iterator
from decimal import ROUND_CEILING, Decimal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sublora.bounds.certify import Certified, certify
from sublora.system.errors import UserError
from sublora.system.files import write_json

Columns = dict[str, Callable[[], NDArray]]
"""Columns or arrays: what reads each of them, by name. Those that are not used may hold anything."""

DELIMITERS = (",", ";", "\t")
DECIMALS = 4
"""The number of decimals of printed bounds, which are rounded up; JSON has all digits."""


def certify_file(
    path: Path, *, column: str | None, counts: str | None, json_path: Path | None, **arguments: Any
) -> Certified:
    """Read losses, bound them, print the table, and write JSON.

    column, counts: as in `read_example_losses`; arguments: those of `sublora.bounds.certify.certify` other than losses
    and counts. UserError in one line, which begins with the file, for every bad input.
    """
    losses, multiplicities = read_example_losses(path, column, counts)
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
    path: Path, column: str | None = None, counts: str | None = None
) -> tuple[NDArray, NDArray | None]:
    """Return losses and, if `counts` is given, how often each was drawn; as stored, with unchecked values.

    column: a column of a CSV or parquet file, or an array of an .npz file; not needed if there is only one. counts: the
    same for the counts; for an .npy file, another .npy file. UserError, which names the file, if it cannot be read.
    """
    columns = _columns(path)
    losses = columns[_chosen(path, columns, column, besides=counts)]()
    if counts is None:
        return losses, None
    if path.suffix == ".npy":
        return losses, _npy(Path(counts))
    return losses, columns[_chosen(path, columns, counts)]()


def read_identified(path: Path, column: str | None, id_column: str | None) -> tuple[NDArray, tuple[str, ...] | None]:
    """Return values and, if a column for it is named, what identifies each example; errors as `read_example_losses`."""
    columns = _columns(path)
    values = columns[_chosen(path, columns, column, besides=id_column)]()
    if id_column is None:
        return values, None
    chosen = _chosen(path, columns, id_column)
    if path.suffix == ".csv":
        names, rows = _csv_rows(path)
        return values, tuple(cells[names.index(chosen)].strip() for _, cells in rows)
    return values, tuple(map(str, columns[chosen]().tolist()))


def _columns(path: Path) -> Columns:
    readers = {".csv": _csv_columns, ".npz": _npz_columns, ".npy": _npy_columns, ".parquet": _parquet_columns}
    if path.suffix not in readers:
        raise UserError(f"{path}: expected a name that ends in {', '.join(readers)}")
    return readers[path.suffix](path)


def _chosen(path: Path, columns: Columns, asked: str | None, besides: str | None = None) -> str:
    """Return the column that was asked for, or the only one besides the counts."""
    names = [name for name in columns if name != besides]
    if asked is None and len(names) == 1:
        return names[0]
    there = ", ".join(map(repr, columns)) or "nothing"
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
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, csv.Error) as error:
        raise UserError(f"{path}: not a readable {what}: {str(error).splitlines()[0]}") from error


def _npy(path: Path) -> NDArray:
    with _reading(path, ".npy file of numbers"):
        values = np.load(path, allow_pickle=False)
    if not isinstance(values, np.ndarray):
        values.close()
        raise UserError(f"{path}: holds several arrays: an .npz file under another name")
    return values


def _npy_columns(path: Path) -> Columns:
    return {"": partial(_npy, path)}


def _npz_columns(path: Path) -> Columns:
    def array(name: str) -> NDArray:
        with _reading(path, ".npz file of numbers"), np.load(path, allow_pickle=False) as archive:
            return archive[name]

    with _reading(path, ".npz file"), zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
    return {name: partial(array, name) for name in names}


def _parquet_columns(path: Path) -> Columns:
    import pandas as pd

    with _reading(path, "parquet file"):
        table = pd.read_parquet(path)
    return {str(name): partial(_series_values, table[name]) for name in table.columns}


def _series_values(series: Any) -> NDArray:
    """Return numbers unchanged, missing ones as NaN; `certify` refuses NaN, text and objects."""
    numbers = series.dtype.kind in "fiu"
    return series.to_numpy(dtype=np.float64, na_value=np.nan) if numbers and series.hasnans else series.to_numpy()


def _csv_columns(path: Path) -> Columns:
    """Return columns by name, or as "1", "2", ... without a header."""
    names, rows = _csv_rows(path)
    return {name: partial(_csv_numbers, path, rows, index) for index, name in enumerate(names)}


def _csv_rows(path: Path) -> tuple[list[str], "Rows"]:
    """Return the names of the columns, and the rows. Cells are separated by comma, semicolon or tab."""
    with _reading(path, "CSV file in UTF-8"), open(path, encoding="utf-8-sig", newline="") as handle:
        first = handle.readline()
        handle.seek(0)
        reader = csv.reader(handle, delimiter=next((each for each in DELIMITERS if each in first), ","))
        rows = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    if not rows:
        raise UserError(f"{path}: is empty")
    names, rows = _without_header(path, rows)
    for line, cells in rows:
        if len(cells) != len(names):
            raise UserError(f"{path}: line {line} has {len(cells)} cells, expected {len(names)}")
    return names, rows


Rows = list[tuple[int, list[str]]]
"""Line numbers in the file, and cells."""


def _without_header(path: Path, rows: Rows) -> tuple[list[str], Rows]:
    """Return the names of the columns and the rows below. A first line that is not all numbers is a header."""
    (line, first), below = rows[0], rows[1:]
    first = [cell.strip() for cell in first]
    alone = len(first) == 1
    if all(map(_is_number, first)):
        if alone and below and first[0].isdigit() and not any(cells[0].strip().isdigit() for _, cells in below):
            raise UserError(
                f"{path}: line {line} holds {first[0]!r} above losses with decimals: delete it if it is a header, "
                "or write it with decimals if it is a loss"
            )
        return [str(index + 1) for index in range(len(first))], rows
    if alone and re.match(r"[-+]?\.?\d", first[0]):
        raise UserError(f"{path}: line {line} holds {first[0]!r}, neither a number nor the name of a column")
    if not below:
        raise UserError(f"{path}: holds a header and no losses")
    if len(set(first)) != len(first):
        raise UserError(f"{path}: two columns have the same name: {', '.join(map(repr, first))}")
    return first, below


def _csv_numbers(path: Path, rows: Rows, index: int) -> NDArray[np.float64]:
    for line, cells in rows:
        if not _is_number(cells[index]):
            raise UserError(
                f"{path}: line {line} holds {cells[index]!r}, expected a number with a decimal point (a second header? "
                "a decimal comma? an empty cell?)"
            )
    return np.array([float(cells[index]) for _, cells in rows])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


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
        f"n = {result.n:,} examples, {draw}; mean loss {result.mean_loss:.4f} in [{result.lower:g}, {result.upper:g}]"
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
    return str(Decimal(value).quantize(Decimal(1).scaleb(-DECIMALS), rounding=ROUND_CEILING))
