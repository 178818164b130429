"""Tokenized documents on disk, grouped by the first byte of their key, to be sorted in bounded memory.

The key of a document is a digest of its text, keyed with the shuffle seed. Sorting by it is therefore a random
order of the documents that depends on nothing but their text and the seed, equal documents are neighbours, and
no table of all documents is ever held in memory.

A record is key (16 bytes), number of tokens (8 bytes, little endian), tokens (TOKEN_TYPE).
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np

from sublora.data.text_keys import KEY_BYTES, TextKeys
from sublora.data.tokenizers import TOKEN_TYPE
from sublora.streams import stream_key

COUNT_BYTES = 8
HEADER_BYTES = KEY_BYTES + COUNT_BYTES
BUCKETS = 256
"""One for each value of a key's first byte."""
BUFFER_BYTES = 1 << 17
"""Records a bucket gathers before they are written: 32 MiB for all buckets."""


def document_key(text: bytes, seed: int) -> bytes:
    """The key of a document: sorting by it is a random order, one for each seed."""
    secret = stream_key(seed, "order of documents").to_bytes(KEY_BYTES, "little")
    return hashlib.blake2b(text, digest_size=KEY_BYTES, key=secret).digest()


def make_record(text: bytes, tokens: np.ndarray, seed: int) -> bytes:
    """Record of a document."""
    key = document_key(text, seed)
    return key + len(tokens).to_bytes(COUNT_BYTES, "little") + tokens.astype(TOKEN_TYPE, copy=False).tobytes()


def key_of_record(record: bytes) -> bytes:
    return record[:KEY_BYTES]


def record_of_key(key: bytes) -> bytes:
    """Record of a document of which only the key matters: it has no tokens."""
    return key + bytes(COUNT_BYTES)


class Spill:
    """Records in one temporary file; `add` in any order, then `sorted_documents` once.

    Memory: BUCKETS x BUFFER_BYTES while adding; the distinct documents of one bucket (about 1/256 of all), and as
    large a share of the excluded keys, while sorting.
    """

    def __init__(self, path: Path, exclude: TextKeys | None = None) -> None:
        """`exclude`: keys, made with the same seed, of texts that are left out."""
        self.exclude = exclude
        self.excluded = 0
        """Distinct documents that `sorted_documents` left out."""
        self._path = path
        self._file = open(path, "w+b", buffering=0)  # noqa: SIM115 - closed by __exit__
        self._buffers = [bytearray() for _ in range(BUCKETS)]
        self._extents: list[list[tuple[int, int]]] = [[] for _ in range(BUCKETS)]
        self._end = 0
        self.added = 0

    def __enter__(self) -> "Spill":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)

    def add(self, record: bytes) -> None:
        bucket = record[0]
        self._buffers[bucket] += record
        self.added += 1
        if len(self._buffers[bucket]) >= BUFFER_BYTES:
            self._flush(bucket)

    def _flush(self, bucket: int) -> None:
        data = memoryview(self._buffers[bucket])
        self._extents[bucket].append((self._end, len(data)))
        self._end += len(data)
        while data:
            data = data[self._file.write(data) :]
        self._buffers[bucket] = bytearray()

    def sorted_documents(self) -> Iterator[bytes]:
        """Tokens (TOKEN_TYPE, as bytes) of each distinct document that is not excluded, in the order of their keys."""
        for documents in self._sorted_buckets():
            for _, tokens in documents:
                yield tokens

    def sorted_keys(self) -> Iterator[bytes]:
        """Each distinct key that is not excluded, ascending; like `sorted_documents` to be called once."""
        for documents in self._sorted_buckets():
            for key, _ in documents:
                yield key

    def _sorted_buckets(self) -> Iterator[list[tuple[bytes, bytes]]]:
        """(key, tokens) of a bucket's distinct documents that are not excluded, ascending."""
        for bucket in range(BUCKETS):  # all before the first read, which moves the position of writes
            if self._buffers[bucket]:
                self._flush(bucket)
        for bucket, extents in enumerate(self._extents):
            tokens: dict[bytes, bytes] = {}
            for offset, size in extents:
                self._file.seek(offset)
                data = self._read(size)
                start = 0
                while start < size:
                    body = start + HEADER_BYTES
                    key = data[start : start + KEY_BYTES]
                    start = body + TOKEN_TYPE.itemsize * int.from_bytes(data[body - COUNT_BYTES : body], "little")
                    tokens.setdefault(key, data[body:start])
            if self.exclude is not None:
                excluded = tokens.keys() & self.exclude.starting_with(bucket)
                self.excluded += len(excluded)
                for key in excluded:
                    del tokens[key]
            yield sorted(tokens.items())

    def _read(self, size: int) -> bytes:
        parts = []
        while size:
            part = self._file.read(size)
            if not part:
                raise OSError(f"{self._path}: temporary file ended early")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)
