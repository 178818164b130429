"""The CSV file of a study, a row for each finished run: it is written whole after every run, so a study can go on."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sublora.system.errors import UserError
from sublora.system.files import atomic_path


def read_rows(
    path: Path, columns: Sequence[str], *, fix: str = "move it away and run the study again"
) -> list[dict[str, str]]:
    """Return the rows of a study's file, none if it is not there.

    UserError, ending in `fix`, if it has other columns.
    """
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as handle:
        reader = csv.DictReader(handle)
        rows = list(reader)
    if tuple(reader.fieldnames or ()) != tuple(columns):
        raise UserError(f"{path}: not a file of this study, its columns differ; {fix}")
    return rows


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the file whole. ValueError if a row has other columns."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
