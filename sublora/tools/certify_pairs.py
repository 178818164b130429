"""`sublora certify --against`: read values of two models on the same examples, compare them, and say the result."""

import collections
from pathlib import Path
from typing import Any

from sublora.bounds.certify import certify
from sublora.bounds.certify_pairs import CertifiedComparison, CertifiedExcess
from sublora.system.errors import UserError
from sublora.tools.certify import read_identified, write_certified
from sublora.tools.sample_lines import ExampleValues, paired_values, read_sample_lines

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
