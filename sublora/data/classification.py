"""Labelled sentences and pairs of sentences with the columns of GLUE's QQP and CoLA, from local files."""

import csv
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sublora.system.errors import UserError, printable
from sublora.system.streams import generator

COLUMNS = {"qqp": (("question1", "question2"), "is_duplicate"), "cola": (("sentence",), "label")}
"""Columns of the text and column of the label, by task."""
HEADERLESS = {"cola": (4, (3,), 1)}
"""Number of columns, those of the text, and that of the label in a TSV file without a header, by task."""


Row = tuple[int, tuple[str, ...], object]
"""Number of the line, texts, and the label as the file has it."""


@dataclasses.dataclass(frozen=True)
class Example:
    """One labelled example."""

    texts: tuple[str, ...]
    label: int
    """0 or 1."""


def read_examples(path: Path, task: str) -> list[Example]:
    """Return the distinct examples of a .tsv or .jsonl file in its order; a repeated text counts once.

    UserError, in one line, for a missing file or column, a row with another number of cells, a label that is not 0 or
    1, or a text that occurs with both labels.
    """
    readers = {".tsv": _tsv_rows, ".jsonl": _jsonl_rows}
    if path.suffix not in readers:
        raise UserError(f"{path}: expected a name that ends in {' or '.join(readers)}")
    # Keep the first example of each text, and refuse a text that comes again with the other label.
    found: dict[tuple[str, ...], Example] = {}
    try:
        for line, texts, label in readers[path.suffix](path, task):
            if str(label) not in ("0", "1"):
                raise UserError(f"{path}: line {line}: label {printable(label, 40)!r}, expected 0 or 1")
            example = Example(texts, int(str(label)))
            if found.setdefault(example.texts, example).label != example.label:
                raise UserError(f"{path}: line {line} repeats a text with the other label; keep one of them")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; data.path names a .tsv or .jsonl file of task {task}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not text in UTF-8 ({error.reason} at byte {error.start})") from None
    if not found:
        raise UserError(f"{path}: holds no examples")
    return list(found.values())


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


def _tsv_rows(path: Path, task: str) -> Iterator[Row]:
    """Yield line, texts and label of each row. Cells are separated by tabs and never quoted, as in GLUE."""
    text_names, label_name = COLUMNS[task]
    with open(path, encoding="utf-8-sig", newline="") as handle:
        rows = csv.reader(handle, delimiter="\t", quoting=csv.QUOTE_NONE)
        first = next(rows, [])
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
        for row in rows:
            if len(row) != width:
                raise UserError(f"{path}: line {rows.line_num} has {len(row)} cells, expected {width}")
            *texts, label = (row[column] for column in columns)
            yield rows.line_num, tuple(texts), label


def _jsonl_rows(path: Path, task: str) -> Iterator[Row]:
    """Yield line, texts and label of each line."""
    text_names, label_name = COLUMNS[task]
    with open(path, encoding="utf-8") as handle:
        for line, text in enumerate(handle, start=1):
            try:
                row = json.loads(text)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}: line {line} is not JSON: {error}") from None
            for name in (*text_names, label_name):
                if not isinstance(row, dict) or name not in row:
                    raise UserError(f"{path}: line {line} has no '{name}'")
            for name in text_names:
                if not isinstance(row[name], str):
                    raise UserError(f"{path}: line {line}: '{name}' is {type(row[name]).__name__}, expected text")
            label = row[label_name]
            yield line, tuple(row[name] for name in text_names), int(label) if isinstance(label, bool) else label
