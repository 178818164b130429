"""The files of a prepared dataset: their names, what meta.json says of them, and whether they are what it lists."""

import contextlib
import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sublora import config
from sublora.config.corpus import Unit
from sublora.data.tokenizers import TOKENIZER_FILE, TOKENIZERS, token_type
from sublora.system.errors import UserError, printable
from sublora.system.files import UNREADABLE, read_json, reason_of, sha256_of_file, write_json
from sublora.system.validation import describe
from sublora.system.versions import UNITS_VERSION

META_FILE = "meta.json"

Count = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class MetaPart(BaseModel):
    """Part of meta.json; further keys, which are for people, are allowed."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)


class SplitCounts(MetaPart):
    documents: Count
    tokens: Count
    units: Count | None = None
    """Only where documents are grouped."""


class MetaSplits(MetaPart):
    train: SplitCounts
    val: SplitCounts
    test: SplitCounts


class FileFacts(MetaPart):
    bytes: Count
    sha256: Sha256


class ExcludedTexts(MetaPart):
    """The texts of another corpus, all of which were left out."""

    sha256: Sha256
    """Hash of their keys."""


class TextKeysFacts(BaseModel):
    """The file with the keys of all texts, of the corpus that a base is trained on."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    texts: Count
    sha256: Sha256


class TextProvenance(MetaPart):
    """Where the text came from; what else is listed depends on the kind of corpus."""

    text_keys: TextKeysFacts | None = None


class DataSettings(MetaPart):
    """The settings that made the files (`sublora.config.data_settings`): those read here, and all others."""

    unit: Unit
    min_tokens: Count


class Meta(MetaPart):
    """The content of meta.json, validated."""

    tokenizer: str
    vocab_size: Annotated[int, Field(ge=1)]
    eot_id: Count
    splits: MetaSplits
    files: dict[str, FileFacts]
    documents: dict[str, int]
    """What became of the documents that were read, by outcome."""
    excluded_texts: ExcludedTexts | None
    provenance: TextProvenance
    settings: DataSettings
    units_version: int | None = None

    def split(self, name: str) -> SplitCounts:
        """Return the counts of train, val or test."""
        counts: SplitCounts = getattr(self.splits, name)
        return counts


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


def dataset_files(meta: Meta) -> tuple[str, ...]:
    """Return the names of a dataset's files except meta.json."""
    units = UNIT_FILES if meta.settings.unit == "source" else ()
    return (*FILES, *units, *(name for name in (SOURCE_IDS_FILE, TOKENIZER_FILE) if name in meta.files))


def load_index(path: Path) -> np.ndarray:
    """Open an array of the index, memory-mapped; UserError for a damaged file."""
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        array.shape  # noqa: B018 - an archive of arrays has no shape
    except UNREADABLE as error:
        raise UserError(f"{path}: damaged ({printable(reason_of(error), 100)}); {PREPARE_AGAIN}") from None
    return array


def read_checked_meta(folder: Path, data: config.Data | None) -> Meta:
    """Read meta.json; UserError unless these settings made the files, and each file has the size that it lists.

    data: None if any settings will do.
    """
    meta = _read_meta(folder)
    if data is not None:
        _check_settings(folder, meta, data)
    _check_sizes(folder, meta)
    return meta


def _read_meta(folder: Path) -> Meta:
    """Read meta.json. UserError, which names the key, if it is missing, damaged, or lacks what its unit needs."""
    path, missing = folder / META_FILE, f", the dataset is not prepared; {PREPARE_AGAIN}"
    try:
        meta = Meta.model_validate(read_json(path, missing=missing, fix=PREPARE_AGAIN))
    except ValidationError as error:
        raise UserError(f"{path}: {describe(error, Meta.model_json_schema())}; {PREPARE_AGAIN}") from None
    grouped = meta.settings.unit == "source"
    lacking = [f"files.{name}" for name in (*FILES, *(UNIT_FILES if grouped else ())) if name not in meta.files]
    lacking += [f"splits.{split}.units" for split in SPLITS if grouped and meta.split(split).units is None]
    if lacking:
        raise UserError(f"{path}: lacks {', '.join(lacking)}; {PREPARE_AGAIN}")
    if grouped and meta.units_version != UNITS_VERSION:
        raise UserError(
            f"{path}: units_version {meta.units_version}, expected {UNITS_VERSION}: units made by "
            f"another rule (before 2, val and test kept the texts that sources share); {PREPARE_AGAIN}"
        )
    return meta


def _check_settings(folder: Path, meta: Meta, data: config.Data) -> None:
    """Check that the tokenizer, its vocabulary and all other data settings are those that made the files."""
    path = folder / META_FILE
    if meta.tokenizer != data.tokenizer:
        raise UserError(
            f"{path}: the dataset was made with tokenizer '{meta.tokenizer}', data.tokenizer is "
            f"'{data.tokenizer}'; change the setting or {PREPARE_AGAIN}"
        )
    for key in ("vocab_size", "eot_id"):
        # The vocabulary of a base's tokenizer is the one it had when the data were prepared.
        expected = getattr(TOKENIZERS[data.tokenizer], key) if data.tokenizer in TOKENIZERS else getattr(meta, key)
        if getattr(meta, key) != expected:
            raise UserError(
                f"{path}: {key} {getattr(meta, key)} does not fit tokenizer '{data.tokenizer}', which has {expected}; "
                f"{PREPARE_AGAIN}"
            )
    # Compare every key that either side has.
    wanted, found = config.data_settings(data), meta.settings.model_dump()
    for key in {**wanted, **found}:
        value = wanted.get(key)
        if found.get(key) != value:
            raise UserError(
                f"{path}: the dataset was made with data.{key} {json.dumps(found.get(key))}, the settings "
                f"say {json.dumps(value)}; change the setting or {PREPARE_AGAIN}"
            )


def _check_sizes(folder: Path, meta: Meta) -> None:
    """Check that each file is as long as meta.json says, and the token files as long as their token counts."""
    for name in dataset_files(meta):
        path = folder / name
        expected = meta.files[name].bytes
        if not path.is_file():
            raise UserError(f"{path}: no such file, expected {expected} bytes; {PREPARE_AGAIN}")
        found = path.stat().st_size
        if found != expected:
            raise UserError(f"{path}: found {found} bytes, expected {expected}; {PREPARE_AGAIN}")
    for split, name in zip(SPLITS, TOKEN_FILES, strict=True):
        tokens = meta.split(split).tokens
        if tokens * token_type(meta.vocab_size).itemsize != meta.files[name].bytes:
            raise UserError(
                f"{folder / META_FILE}: {tokens} tokens of {split} do not fit the {meta.files[name].bytes} "
                f"bytes of {name}; {PREPARE_AGAIN}"
            )


def check_hashes(folder: Path, meta: Meta) -> None:
    """Read all files; UserError if one differs from its sha256 in meta.json."""
    for name in dataset_files(meta):
        _check_hash(folder / name, sha256_of_file(folder / name), meta)


def check_hashes_of_changed_files(folder: Path, meta: Meta) -> None:
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


def _hash_of(path: Path, known: Any, meta: Meta) -> list[Any]:
    """Return [mtime_ns, bytes, inode, sha256] of a file; the hash is the known one if the other three still fit."""
    before = path.stat()
    identity = [before.st_mtime_ns, before.st_size, before.st_ino]
    fits = isinstance(known, list) and known[:-1] == identity
    sha256 = known[-1] if fits else sha256_of_file(path)
    _check_hash(path, sha256, meta)
    return [*identity, sha256]


def _check_hash(path: Path, found: Any, meta: Meta) -> None:
    expected = meta.files[path.name].sha256
    if found != expected:
        raise UserError(
            f"{path}: sha256 {found}, expected {expected} as in {META_FILE}: the file was damaged or replaced; "
            f"{PREPARE_AGAIN}"
        )
