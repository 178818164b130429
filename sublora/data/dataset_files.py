"""The files of a prepared dataset: their names, and whether they are those that meta.json lists."""

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from sublora import config
from sublora.data.meta import META_FILE, read_meta
from sublora.data.tokenizers import TOKENIZER_FILE, TOKENIZERS, token_type
from sublora.system.errors import UserError, printable
from sublora.system.files import UNREADABLE, read_json, sha256_of_file, write_json
from sublora.system.versions import UNITS_VERSION

SPLITS = ("train", "val", "test")
EOT_INDICES_FILE = "eot_indices.npy"
DOC_LENGTHS_FILE = "doc_lengths.npy"
SOURCE_IDS_FILE = "source_ids.npy"
"""Written only if documents are units and the corpus knows their sources."""
TOKEN_FILES = tuple(f"{split}.bin" for split in SPLITS)
FILES = (*TOKEN_FILES, EOT_INDICES_FILE, DOC_LENGTHS_FILE)
"""Files that every dataset has."""
HASHES_FILE = ".hashes.json"
"""The hashes that were found, with mtime, size and inode of each file at that time."""

PREPARE_AGAIN = "run: sublora prepare --config FILE"


def unit_starts_file(split: str) -> str:
    """Return the name of the file with the first document of each unit, for a dataset with data.unit: source."""
    return f"unit_starts_{split}.npy"


UNIT_FILES = tuple(map(unit_starts_file, SPLITS))


def dataset_files(meta: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of a dataset's files except meta.json."""
    units = UNIT_FILES if meta["settings"]["unit"] == "source" else ()
    return (*FILES, *units, *(name for name in (SOURCE_IDS_FILE, TOKENIZER_FILE) if name in meta["files"]))


def load_index(path: Path) -> np.ndarray:
    """Open an array of the index, memory-mapped; UserError for a damaged file."""
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        array.shape  # noqa: B018 - an archive of arrays has no shape
    except UNREADABLE as error:
        raise UserError(f"{path}: damaged ({printable(error, 100)}); {PREPARE_AGAIN}") from None
    return array


def read_checked_meta(folder: Path, data: config.Data | None) -> dict[str, Any]:
    """Read meta.json; UserError unless these settings made the files, and each file has the size that it lists.

    data: None if any settings will do.
    """
    meta = _read_meta(folder)
    if data is not None:
        _check_settings(folder, meta, data)
    _check_sizes(folder, meta)
    return meta


def _read_meta(folder: Path) -> dict[str, Any]:
    missing = f", the dataset is not prepared; {PREPARE_AGAIN}"
    meta = read_meta(folder, missing=missing, fix=PREPARE_AGAIN)
    grouped = meta["settings"]["unit"] == "source"
    lacking = [f"files.{name}" for name in (*FILES, *(UNIT_FILES if grouped else ())) if name not in meta["files"]]
    lacking += [f"splits.{split}.units" for split in SPLITS if grouped and "units" not in meta["splits"][split]]
    if lacking:
        raise UserError(f"{folder / META_FILE}: lacks {', '.join(lacking)}; {PREPARE_AGAIN}")
    if grouped and meta.get("units_version") != UNITS_VERSION:
        raise UserError(
            f"{folder / META_FILE}: units_version {meta.get('units_version')}, expected {UNITS_VERSION}: units made by "
            f"another rule (before 2, val and test kept the texts that sources share); {PREPARE_AGAIN}"
        )
    return meta


def _check_settings(folder: Path, meta: dict[str, Any], data: config.Data) -> None:
    """Check that the tokenizer, its vocabulary and all other data settings are those that made the files."""
    path = folder / META_FILE
    if meta["tokenizer"] != data.tokenizer:
        raise UserError(
            f"{path}: the dataset was made with tokenizer '{meta['tokenizer']}', data.tokenizer is "
            f"'{data.tokenizer}'; change the setting or {PREPARE_AGAIN}"
        )
    for key in ("vocab_size", "eot_id"):
        # The vocabulary of a base's tokenizer is the one it had when the data were prepared.
        expected = getattr(TOKENIZERS[data.tokenizer], key) if data.tokenizer in TOKENIZERS else meta[key]
        if meta[key] != expected:
            raise UserError(
                f"{path}: {key} {meta[key]} does not fit tokenizer '{data.tokenizer}', which has {expected}; "
                f"{PREPARE_AGAIN}"
            )
    # Compare every key that either side has.
    wanted = config.data_settings(data)
    for key in {**wanted, **meta["settings"]}:
        value = wanted.get(key)
        if meta["settings"].get(key) != value:
            raise UserError(
                f"{path}: the dataset was made with data.{key} {json.dumps(meta['settings'].get(key))}, the settings "
                f"say {json.dumps(value)}; change the setting or {PREPARE_AGAIN}"
            )


def _check_sizes(folder: Path, meta: dict[str, Any]) -> None:
    """Check that each file is as long as meta.json says, and the token files as long as their token counts."""
    for name in dataset_files(meta):
        path = folder / name
        expected = meta["files"][name]["bytes"]
        if not path.is_file():
            raise UserError(f"{path}: no such file, expected {expected} bytes; {PREPARE_AGAIN}")
        found = path.stat().st_size
        if found != expected:
            raise UserError(f"{path}: found {found} bytes, expected {expected}; {PREPARE_AGAIN}")
    for split, name in zip(SPLITS, TOKEN_FILES, strict=True):
        tokens = meta["splits"][split]["tokens"]
        if tokens * token_type(meta["vocab_size"]).itemsize != meta["files"][name]["bytes"]:
            raise UserError(
                f"{folder / META_FILE}: {tokens} tokens of {split} do not fit the {meta['files'][name]['bytes']} "
                f"bytes of {name}; {PREPARE_AGAIN}"
            )


def check_hashes(folder: Path, meta: dict[str, Any]) -> None:
    """Read all files; UserError if one differs from its sha256 in meta.json."""
    for name in dataset_files(meta):
        _check_hash(folder / name, sha256_of_file(folder / name), meta)


def check_hashes_of_changed_files(folder: Path, meta: dict[str, Any]) -> None:
    """Check all hashes as `check_hashes` does, but read a file only if it changed since it was last read.

    `.hashes.json` keeps the hash that was found together with the file's time of change in nanoseconds, its size and
    its inode. If `.hashes.json` cannot be written, all files are read each time. UserError if a file differs.
    """
    known = _known_hashes(folder / HASHES_FILE)
    found = {name: _hash_of(folder / name, known.get(name), meta) for name in dataset_files(meta)}
    if found != known:
        with contextlib.suppress(UserError):
            write_json(folder / HASHES_FILE, found)


def _known_hashes(path: Path) -> dict[str, Any]:
    """Return the contents of `.hashes.json`, empty if it is missing or damaged."""
    try:
        known = read_json(path, missing="", fix="")
    except (UserError, OSError):
        return {}
    return known if isinstance(known, dict) else {}


def _hash_of(path: Path, known: Any, meta: dict[str, Any]) -> list[Any]:
    """Return [mtime_ns, bytes, inode, sha256] of a file; the hash is the known one if the other three still fit."""
    before = path.stat()
    identity = [before.st_mtime_ns, before.st_size, before.st_ino]
    fits = isinstance(known, list) and known[:-1] == identity
    sha256 = known[-1] if fits else sha256_of_file(path)
    _check_hash(path, sha256, meta)
    return [*identity, sha256]


def _check_hash(path: Path, found: Any, meta: dict[str, Any]) -> None:
    expected = meta["files"][path.name]["sha256"]
    if found != expected:
        raise UserError(
            f"{path}: sha256 {found}, expected {expected} as in {META_FILE}: the file was damaged or replaced; "
            f"{PREPARE_AGAIN}"
        )
