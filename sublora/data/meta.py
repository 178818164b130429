"""The schema of a prepared dataset's meta.json: what it must hold to be read."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sublora.config.corpus import Unit
from sublora.system.errors import UserError
from sublora.system.files import read_json
from sublora.system.validation import describe

META_FILE = "meta.json"

Count = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Facts(BaseModel):
    """Part of meta.json; further keys, which are for people, are allowed."""

    model_config = ConfigDict(extra="allow", strict=True)


class _Split(_Facts):
    documents: Count
    tokens: Count
    units: Count | None = None


class _Splits(_Facts):
    train: _Split
    val: _Split
    test: _Split


class _File(_Facts):
    bytes: Count
    sha256: Sha256


class _Excluded(_Facts):
    sha256: Sha256


class _TextKeys(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    texts: Count
    sha256: Sha256


class _Provenance(_Facts):
    text_keys: _TextKeys | None = None


class _Settings(_Facts):
    unit: Unit
    min_tokens: Count


class _Meta(_Facts):
    tokenizer: str
    vocab_size: Annotated[int, Field(ge=1)]
    eot_id: Count
    splits: _Splits
    files: dict[str, _File]
    documents: dict[str, int]
    excluded_texts: _Excluded | None
    provenance: _Provenance
    settings: _Settings
    units_version: int | None = None


def read_meta(folder: Path, *, missing: str, fix: str) -> dict[str, Any]:
    """Read meta.json in a folder. UserError, which names the key, if it is missing or damaged."""
    path = folder / META_FILE
    values: dict[str, Any] = read_json(path, missing=missing, fix=fix)
    try:
        _Meta.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{path}: {describe(error, _Meta.model_json_schema())}; {fix}") from None
    return values
