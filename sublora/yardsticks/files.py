"""data/{dataset}/yardsticks.json: written whole or not at all, read only if it is what was written.

format     YARDSTICKS_FORMAT
data_hash  identity of the prepared dataset (`TokenDataset.data_hash`)
rows       one row per yardstick, by name (see `sublora.yardsticks.rows`); losses and bounds in bits per token
sha256     of the other three, as canonical JSON
"""

import json
from pathlib import Path
from typing import Any

from sublora.system.digests import json_sha256
from sublora.system.errors import UserError
from sublora.system.files import read_json, write_json

YARDSTICKS_FILE = "yardsticks.json"
YARDSTICKS_FORMAT = 1
"""Version of the layout; a reader refuses every other one."""

_KEYS = {"format", "data_hash", "rows", "sha256"}
_MEND = "delete it and run the workflow again"


def write_yardsticks(path: Path, contents: dict[str, Any]) -> None:
    """Write what `compute_yardsticks` gave, atomically. ValueError for a number that is not finite."""
    facts = {key: contents[key] for key in _KEYS - {"sha256"}}
    write_json(path, facts | {"sha256": json_sha256(facts)})


def read_yardsticks(path: Path, data_hash: str) -> dict[str, Any]:
    """The contents that `write_yardsticks` was given.

    Raises UserError if the file is missing, damaged, of another format, or about another dataset.
    """
    missing = ", expected the yardsticks of the dataset; run the workflow"
    found = read_json(path, missing=missing, fix=f"expected yardsticks; {_MEND}")
    if not isinstance(found, dict) or "format" not in found:
        raise UserError(f"{path}: not a file of yardsticks, it has no 'format'; {_MEND}")
    if found["format"] != YARDSTICKS_FORMAT:
        raise UserError(
            f"{path}: format {json.dumps(found['format'])}, this version reads {YARDSTICKS_FORMAT}; {_MEND}"
        )
    if set(found) != _KEYS or found["sha256"] != json_sha256(
        facts := {k: v for k, v in found.items() if k != "sha256"}
    ):
        raise UserError(f"{path}: damaged, its contents do not have the sha256 it states; {_MEND}")
    if facts["data_hash"] != data_hash:
        raise UserError(
            f"{path}: yardsticks of the dataset {facts['data_hash']}, expected those of {data_hash}; {_MEND}"
        )
    return facts
