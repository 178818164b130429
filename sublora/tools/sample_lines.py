"""Values per example in JSON Lines, as evaluation programs write them: `samples_*.jsonl` of lm-evaluation-harness.

A line is an object; a metric is one of its keys. What identifies the example is `doc_id`, and where a hash of its text
(`doc_hash`) is given as well, both files must agree on it.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sublora.system.errors import UserError

DOC_ID, DOC_HASH, FILTER = "doc_id", "doc_hash", "filter"
SHOWN = 3
"""Examples that a message names of those that lack their pair."""


@dataclasses.dataclass(frozen=True, eq=False)
class ExampleValues:
    """Values of the examples of a file, in its order."""

    path: Path
    values_D: NDArray
    keys: tuple[str, ...] | None = None
    """What identifies each example; None: its place."""
    hashes: tuple[str | None, ...] | None = None
    """Hashes of the examples' texts, where the file has them."""


def read_sample_lines(path: Path, column: str | None, key: str | None, filter_name: str | None) -> ExampleValues:
    """Return the values of one metric; the key is `doc_id` if every line has it, unless another is asked for.

    filter_name: keep the lines of this filter of the harness, which writes one line per example and filter. UserError
    for a line that is not an object or lacks metric or key, for a metric that is no number, and for an example that
    occurs twice.
    """
    lines = [(number, line) for number, line in _objects(path) if filter_name in (None, line.get(FILTER))]
    if not lines:
        of_filter = "" if filter_name is None else f" with {FILTER} {filter_name!r}"
        raise UserError(f"{path}: holds no line{of_filter}")
    column = column or _only_metric(path, lines[0][1])
    values_D = np.array([_number(path, number, line, column) for number, line in lines])
    if key is None and all(DOC_ID in line for _, line in lines):
        key = DOC_ID
    if key is None:
        return ExampleValues(path, values_D)
    keys = tuple(_key(path, number, line, key) for number, line in lines)
    _refuse_repeats(path, keys, [line.get(FILTER) for _, line in lines], key)
    hashes = tuple(None if (found := line.get(DOC_HASH)) is None else str(found) for _, line in lines)
    return ExampleValues(path, values_D, keys, hashes)


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number of each line and its object; blank lines are passed over."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable file of JSON lines in UTF-8: {error}") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            raise UserError(f"{path}: line {number} is not JSON; expected one object per line") from None
        if not isinstance(found, dict):
            raise UserError(f"{path}: line {number} is no object; expected one object per line")
        yield number, found


def _only_metric(path: Path, line: dict[str, Any]) -> str:
    """Return the metric that the harness lists in each line, if it is a single one."""
    listed = line.get("metrics")
    names = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
    if len(names) == 1:
        return names[0]
    there = names or [name for name, value in line.items() if _is_number(value) and name != DOC_ID]
    raise UserError(f"{path}: name the values with --column; there are {', '.join(map(repr, there)) or 'no numbers'}")


def _is_number(value: object) -> bool:
    return isinstance(value, bool | int | float)


def _number(path: Path, number: int, line: dict[str, Any], column: str) -> float:
    if column not in line:
        numeric = [name for name, value in line.items() if _is_number(value)]
        raise UserError(f"{path}: line {number} has no {column!r}; its numbers are {', '.join(map(repr, numeric))}")
    value = line[column]
    if not _is_number(value):
        raise UserError(
            f"{path}: line {number}: {column!r} is {json.dumps(value)[:60]}, expected a number for each example"
        )
    try:
        return float(value)
    except OverflowError:
        raise UserError(f"{path}: line {number}: {column!r} is beyond every floating-point number") from None


def _key(path: Path, number: int, line: dict[str, Any], key: str) -> str:
    value = line.get(key)
    if not isinstance(value, str | int):
        raise UserError(f"{path}: line {number}: {key!r} is {json.dumps(value)[:60]}, expected text or a whole number")
    return str(value)


def _refuse_repeats(path: Path, keys: Sequence[str], filters: Sequence[object], key: str) -> None:
    """Raise UserError if an example occurs twice, with the filters that tell its lines apart."""
    seen: dict[str, object] = {}
    for name, of_filter in zip(keys, filters, strict=True):
        if name in seen:
            cure = "keep one line for each example"
            if seen[name] != of_filter:
                cure = f"name one of its filters with --filter, {seen[name]!r} or {of_filter!r}"
            raise UserError(f"{path}: {key} {name} occurs twice; {cure}")
        seen[name] = of_filter


def paired_values(model: ExampleValues, reference: ExampleValues) -> tuple[NDArray, NDArray]:
    """Return the values of both files on the same examples, in the order of the first.

    UserError if the files do not hold the same examples, or disagree on the text of one.
    """
    if model.keys is None or reference.keys is None:
        if len(model.values_D) != len(reference.values_D):
            raise UserError(
                f"{model.path} has {len(model.values_D):,} values, {reference.path} {len(reference.values_D):,}; "
                "expected the same examples in the same order, or a column that identifies them (--id-column)"
            )
        return model.values_D, reference.values_D
    places = {name: place for place, name in enumerate(reference.keys)}
    for one, other in ((model, reference), (reference, model)):
        theirs = set(other.keys or ())
        if alone := [name for name in one.keys or () if name not in theirs]:
            shown = ", ".join(alone[:SHOWN]) + (", ..." if len(alone) > SHOWN else "")
            raise UserError(
                f"{other.path}: lacks {len(alone):,} examples of {one.path} ({shown}); give the same to both"
            )
    order_D = np.array([places[name] for name in model.keys], dtype=np.int64)
    _refuse_other_texts(model, reference, order_D)
    return model.values_D, reference.values_D[order_D]


def _refuse_other_texts(model: ExampleValues, reference: ExampleValues, order_D: NDArray[np.int64]) -> None:
    """Raise UserError if an example has another text in the other file, as far as both know its hash."""
    if model.hashes is None or reference.hashes is None or model.keys is None:
        return
    for name, own, place in zip(model.keys, model.hashes, order_D.tolist(), strict=True):
        theirs = reference.hashes[place]
        if own is not None and theirs is not None and own != theirs:
            raise UserError(
                f"{reference.path}: example {name} has another {DOC_HASH} than in {model.path}; the files are of "
                "different versions of the data"
            )
