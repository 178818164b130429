"""Labelled sentences and pairs of sentences with the columns of GLUE's QQP and CoLA, from local files."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from sublora.system.errors import UserError, printable
from sublora.system.streams import generator

COLUMNS = {"qqp": (("question1", "question2"), "is_duplicate"), "cola": (("sentence",), "label")}
"""Columns of the text and column of the label, by task."""
HEADERLESS = {"cola": (4, (3,), 1)}
"""Number of columns, those of the text, and that of the label in a TSV file without a header, by task."""
LONGEST_TEXT = 1 << 17
"""Characters of a sentence, at most: what is longer is a damaged row."""
NAMED = 20
"""How many broken rows a message names."""


Row = tuple[int, tuple[str, ...], object]
"""Number of the line, texts, and the label as the file has it."""
Complain = Callable[[int, str], None]
"""Told the number of a line and what is wrong with it."""


@dataclasses.dataclass(frozen=True)
class Example:
    """One labelled example."""

    texts: tuple[str, ...]
    label: int
    """0 or 1."""


@dataclasses.dataclass(frozen=True)
class Examples:
    """The examples of a file."""

    distinct: list[Example]
    """In the order of the file; a repeated text counts once."""
    broken_rows: int
    """Rows that were skipped."""


def read_examples(path: Path, task: str, *, broken_rows: Literal["refuse", "skip"] = "refuse") -> Examples:
    """Return the distinct examples of a .tsv or .jsonl file.

    A row is broken if it has another number of cells, a label that is not 0 or 1, or no proper text. UserError, in one
    line, for a missing file or column, for broken rows unless they are skipped, or for a text that occurs with both
    labels.
    """
    readers = {".tsv": _tsv_rows, ".jsonl": _jsonl_rows}
    if path.suffix not in readers:
        raise UserError(f"{path}: expected a name that ends in {' or '.join(readers)}")
    broken: list[str] = []

    def complain(line: int, reason: str) -> None:
        broken.append(f"line {line}{reason}" if len(broken) < NAMED else "")

    # Keep the first example of each text, and refuse a text that comes again with the other label.
    found: dict[tuple[str, ...], Example] = {}
    try:
        for line, texts, label in readers[path.suffix](path, task, complain):
            if reason := _complaint(texts, label):
                complain(line, reason)
                continue
            example = Example(texts, int(str(label)))
            if found.setdefault(example.texts, example).label != example.label:
                raise UserError(f"{path}: line {line} repeats a text with the other label; keep one of them")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; data.path names a .tsv or .jsonl file of task {task}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not text in UTF-8 ({error.reason} at byte {error.start})") from None
    if broken and broken_rows == "refuse":
        more = f"; and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
        raise UserError(
            f"{path}: {'; '.join(broken[:NAMED])}{more}; fix the rows, or set data.broken_rows: skip, which "
            "leaves them out"
        )
    if not found:
        raise UserError(f"{path}: holds no examples{f' and {len(broken)} broken rows' if broken else ''}")
    return Examples(list(found.values()), len(broken))


def _complaint(texts: tuple[str, ...], label: object) -> str | None:
    """Return what is wrong with the texts or the label of a row, None if nothing is."""
    if str(label) not in ("0", "1"):
        return f": label {printable(label, 40)!r}, expected 0 or 1"
    for text in texts:
        if len(text) > LONGEST_TEXT:
            return f": a text of {len(text):,} characters, expected at most {LONGEST_TEXT:,}"
        try:
            text.encode()
        except UnicodeEncodeError:
            return ": a text with half of a surrogate pair, which is no character"
    return None


def split_examples(
    examples: list[Example], *, test_examples: int, seed: int, path: Path
) -> tuple[list[Example], list[Example]]:
    """Return test and training examples in a random order. UserError if fewer than 2 are left to train on."""
    if len(examples) < test_examples + 2:
        raise UserError(
            f"{path}: {len(examples)} distinct examples leave none beside data.test_examples {test_examples}"
        )
    order = generator(seed, "classification split").permutation(len(examples))
    shuffled = [examples[i] for i in order]
    return shuffled[:test_examples], shuffled[test_examples:]


def labels_of(examples: list[Example]) -> np.ndarray:
    """Return the labels, int64 (examples)."""
    return np.array([example.label for example in examples], dtype=np.int64)


def _tsv_rows(path: Path, task: str, complain: Complain) -> Iterator[Row]:
    """Yield line, texts and label of each row. Cells are separated by tabs and never quoted, as in GLUE."""
    text_names, label_name = COLUMNS[task]
    with open(path, encoding="utf-8-sig", newline="") as handle:
        rows = ((line, text.rstrip("\r\n").split("\t")) for line, text in enumerate(handle, start=1))
        _, first = next(rows, (1, []))
        wanted = (*text_names, label_name)
        # Find the columns by the header, or by position in a headerless file whose first row has the right width.
        if set(wanted) <= set(first):
            width, columns = len(first), [first.index(name) for name in wanted]
        elif task in HEADERLESS and len(first) == HEADERLESS[task][0]:
            width, text_columns, label_column = HEADERLESS[task]
            columns = [*text_columns, label_column]
            yield 1, tuple(first[column] for column in text_columns), first[label_column]
        else:
            names = printable(", ".join(first), 100)
            raise UserError(f"{path}: expected the columns {', '.join(wanted)} in its first line, found {names!r}")
        for line, row in rows:
            if row == [""]:
                continue
            if len(row) != width:
                complain(line, f" has {len(row)} cells, expected {width}")
                continue
            *texts, label = (row[column] for column in columns)
            yield line, tuple(texts), label


def _jsonl_rows(path: Path, task: str, complain: Complain) -> Iterator[Row]:
    """Yield line, texts and label of each line that is not blank."""
    text_names, label_name = COLUMNS[task]
    with open(path, encoding="utf-8-sig") as handle:
        for line, text in enumerate(handle, start=1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except RecursionError:
                complain(line, " is nested too deep to be read")
                continue
            except ValueError as error:  # not JSON, or a number of too many digits
                complain(line, f" is not JSON: {printable(error, 100)}")
                continue
            if reason := _lacks(row, text_names, label_name):
                complain(line, reason)
                continue
            label = row[label_name]
            yield line, tuple(row[name] for name in text_names), int(label) if isinstance(label, bool) else label


def _lacks(row: object, text_names: tuple[str, ...], label_name: str) -> str | None:
    """Return what a line lacks, None if it has texts and a label."""
    for name in (*text_names, label_name):
        if not isinstance(row, dict) or name not in row:
            return f" has no '{name}'"
        if name in text_names and not isinstance(row[name], str):
            return f": '{name}' is {type(row[name]).__name__}, expected text"
    return None
