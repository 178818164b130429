"""The texts of a corpus by their keys: sorted 16-byte digests in a file, to be left out of another dataset.

Keys are those that order documents (`sublora.data.spill.document_key`), so two corpora can be compared only under the
same shuffle seed. That two different texts have one key is as good as impossible: 2^-128 for each pair.
"""

import bisect
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sublora.data.dataset import PREPARE_AGAIN
from sublora.system.errors import UserError
from sublora.system.files import sha256_of_file

KEY_BYTES = 16
TEXT_KEYS_FILE = "text_keys.bin"


@dataclass(frozen=True)
class TextKeys:
    """A file of distinct keys, ascending."""

    path: Path
    shuffle_seed: int
    """Of the keys."""
    texts: int
    """Number of keys."""
    sha256: str
    """Of the file."""

    @classmethod
    def open(cls, path: Path, *, shuffle_seed: int, texts: int, sha256: str) -> "TextKeys":
        """Keys in a file of known content; UserError if the file is missing or another."""
        if not path.is_file():
            raise UserError(f"{path}: no such file; {PREPARE_AGAIN}")
        found = sha256_of_file(path)
        if (found, path.stat().st_size) != (sha256, texts * KEY_BYTES):
            raise UserError(
                f"{path}: {path.stat().st_size} bytes of sha256 {found}, expected {texts} keys of {KEY_BYTES} bytes of "
                f"sha256 {sha256}; {PREPARE_AGAIN}"
            )
        return cls(path, shuffle_seed, texts, sha256)

    def facts(self) -> dict[str, object]:
        """What meta.json holds."""
        return {"texts": self.texts, "sha256": self.sha256}

    def starting_with(self, byte: int) -> set[bytes]:
        """The keys with this first byte, about 1/256 of all."""
        with open(self.path, "rb") as handle:

            def first_byte(index: int) -> int:
                handle.seek(index * KEY_BYTES)
                return handle.read(1)[0]

            first = bisect.bisect_left(range(self.texts), byte, key=first_byte)
            end = bisect.bisect_right(range(self.texts), byte, lo=first, key=first_byte)
            handle.seek(first * KEY_BYTES)
            data = handle.read((end - first) * KEY_BYTES)
        return {data[start : start + KEY_BYTES] for start in range(0, len(data), KEY_BYTES)}


def write_text_keys(path: Path, sorted_keys: Iterable[bytes]) -> dict[str, object]:
    """Write ascending keys; facts about the file as in `TextKeys.facts`."""
    digest = hashlib.sha256()
    texts = 0
    with open(path, "wb", buffering=1 << 20) as handle:
        for key in sorted_keys:
            handle.write(key)
            digest.update(key)
            texts += 1
    return {"texts": texts, "sha256": digest.hexdigest()}
