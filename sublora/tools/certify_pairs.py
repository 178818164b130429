"""`sublora certify --against`: read values of two models on the same examples, compare them, and say the result.

In JSON Lines, as evaluation programs write them (`samples_*.jsonl` of lm-evaluation-harness), a line is an object; a
metric is one of its keys. What identifies the example is `doc_id`, and where a hash of its text (`doc_hash`) is given
as well, both files must agree on it.
"""

import collections
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sublora.bounds.certify import certify
from sublora.bounds.certify_pairs import CertifiedComparison, CertifiedExcess
from sublora.system.errors import UserError
from sublora.tools.certify import read_identified, write_certified

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
    """Yield the number of each line and its object; blank lines are skipped."""
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


SAMPLE_LINES = (".jsonl", ".ndjson")


def certify_pairs_file(
    path: Path,
    *,
    against: str,
    column: str | None,
    id_column: str | None,
    filter_name: str | None,
    json_path: Path | None,
    **arguments: Any,
) -> CertifiedComparison | CertifiedExcess:
    """Read both models' values, compare or bound them, print the result, and write JSON.

    against: another file with the same examples, or a column of the same file. column, id_column: names of the values
    and of what identifies an example, in both files. arguments: those of `sublora.bounds.certify.certify`. UserError in
    one line for every bad input.
    """
    if Path(against).is_file():
        model, reference = (
            _read(each, column, id_column=id_column, filter_name=filter_name) for each in (path, Path(against))
        )
        values_D, reference_D = paired_values(model, reference)
    else:
        if Path(against).suffix in {".csv", ".npz", ".npy", ".parquet", *SAMPLE_LINES}:
            raise UserError(f"{against}: there is no such file")
        if column is None:
            raise UserError(f"{path}: name the model's values with --column; --against {against} names the reference's")
        values_D, reference_D = (
            _read(path, name, id_column=id_column, filter_name=filter_name).values_D for name in (column, against)
        )
    try:
        found = certify(values_D, against=reference_D, **arguments)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    assert isinstance(found, CertifiedComparison | CertifiedExcess)
    _print(found)
    write_certified(json_path, found.as_json())
    return found


def _read(path: Path, column: str | None, *, id_column: str | None, filter_name: str | None) -> ExampleValues:
    """Return the values of one file, with what identifies its examples where that is known."""
    if path.suffix in SAMPLE_LINES:
        return read_sample_lines(path, column, id_column, filter_name)
    if filter_name is not None:
        raise UserError(f"{path}: only lines of JSON have filters; leave --filter out")
    values_D, keys = read_identified(path, column, id_column)
    if keys is not None and len(set(keys)) != len(keys):
        repeated = next(key for key, count in collections.Counter(keys).items() if count > 1)
        raise UserError(f"{path}: {id_column} {repeated} occurs more than once; keep one row for each example")
    return ExampleValues(path, values_D, keys)


def _print(found: CertifiedComparison | CertifiedExcess) -> None:
    """Print sizes, the result in words, and what it takes on trust."""
    if isinstance(found, CertifiedComparison):
        print(
            f"n = {found.n:,} examples, paired; values in [{found.lower:g}, {found.upper:g}], {found.direction} is "
            f"better; mean difference {found.mean_difference:+.4g}"
        )
    else:
        draw = f"{found.m:,} of them drawn with replacement" if found.subsample else "all scored"
        print(f"n = {found.n:,} examples, {draw}; C = {found.code_bits:,g} bits; mean excess {found.mean_excess:+.4g}")
    print(found.sentence)
    print("Taken on trust:")
    for premise in found.on_trust:
        print(f"  - {premise}")
