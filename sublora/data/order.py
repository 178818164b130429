"""Records on disk, grouped by the first byte of their key, to be sorted in bounded memory.

The key of a document is a digest of its text, keyed with the shuffle seed. Sorting by it is therefore a random
order of the documents that depends on nothing but their text and the seed, equal documents are neighbours, and
no table of all documents is ever held in memory. Sources have such keys too, digests of their names.

A record is a key (of the same number of bytes in the whole spill), the number of bytes of the body (8 bytes, little
endian), and the body: a document's tokens (2 or 4 bytes each, as its vocabulary needs), before them the key of its
source where documents are grouped.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np

from sublora.data.base_and_target import KEY_BYTES, TextKeys
from sublora.system.streams import stream_key

COUNT_BYTES = 8
BUCKETS = 256
"""One for each value of a key's first byte."""
BUFFER_BYTES = 1 << 17
"""Records a bucket gathers before they are written: 32 MiB for all buckets."""


def document_key(text: bytes, seed: int) -> bytes:
    """The key of a document: sorting by it is a random order, one for each seed."""
    return _key(text, seed, "order of documents")


def source_key(name: str, seed: int) -> bytes:
    """The key of a source, by its name; independent of the keys of documents."""
    return _key(name.encode(errors="surrogatepass"), seed, "order of sources")


def _key(data: bytes, seed: int, purpose: str) -> bytes:
    secret = stream_key(seed, purpose).to_bytes(KEY_BYTES, "little")
    return hashlib.blake2b(data, digest_size=KEY_BYTES, key=secret).digest()


def make_record(text: bytes, tokens: np.ndarray, seed: int, source: str | None = None) -> bytes:
    """Record of a document, its tokens of `token_type`; with the name of its source where it belongs to a group."""
    group = b"" if source is None else source_key(source, seed)
    return record_of(document_key(text, seed), group + tokens.tobytes())


def record_of(key: bytes, body: bytes) -> bytes:
    return key + len(body).to_bytes(COUNT_BYTES, "little") + body


def key_of_record(record: bytes) -> bytes:
    """The key of a document's record."""
    return record[:KEY_BYTES]


def record_of_key(key: bytes) -> bytes:
    """Record of a document of which only the key matters: it has no tokens."""
    return record_of(key, b"")


class Spill:
    """Records in one temporary file; `add` in any order, then `sorted_items` once.

    Memory: BUCKETS x BUFFER_BYTES while adding; the distinct records of one bucket (about 1/256 of all, but never
    less than all that share a first byte), and as large a share of the excluded keys, while sorting.
    """

    def __init__(self, path: Path, exclude: TextKeys | None = None, *, key_bytes: int = KEY_BYTES) -> None:
        """`exclude`: keys, made with the same seed, of texts that are left out."""
        self.exclude = exclude
        self.excluded = 0
        """Distinct documents that `sorted_items` left out."""
        self.path, self._key_bytes = path, key_bytes
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
        self.path.unlink(missing_ok=True)

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

    def sorted_items(self) -> Iterator[tuple[bytes, bytes]]:
        """(key, body) of each distinct key that is not excluded, ascending.

        Of several records with one key the smallest body is kept: where equal texts belong to several sources, that of
        the first source in the order of the keys.
        """
        for bucket in range(BUCKETS):  # all before the first read, which moves the position of writes
            if self._buffers[bucket]:
                self._flush(bucket)
        for bucket, extents in enumerate(self._extents):
            bodies: dict[bytes, bytes] = {}
            for offset, size in extents:
                self._file.seek(offset)
                self._collect(self._read(size), bodies)
            if self.exclude is not None:
                excluded = bodies.keys() & self.exclude.starting_with(bucket)
                self.excluded += len(excluded)
                for key in excluded:
                    del bodies[key]
            yield from sorted(bodies.items())

    def sorted_keys(self) -> Iterator[bytes]:
        """The keys of `sorted_items`."""
        for key, _ in self.sorted_items():
            yield key

    def _collect(self, data: bytes, bodies: dict[bytes, bytes]) -> None:
        start = 0
        while start < len(data):
            body_start = start + self._key_bytes + COUNT_BYTES
            key = data[start : start + self._key_bytes]
            start = body_start + int.from_bytes(data[body_start - COUNT_BYTES : body_start], "little")
            body = data[body_start:start]
            if key not in bodies or body < bodies[key]:
                bodies[key] = body

    def _read(self, size: int) -> bytes:
        parts = []
        while size:
            part = self._file.read(size)
            if not part:
                raise OSError(f"{self.path}: temporary file ended early")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def documents_in_order(spill: Spill, *, have_sources: bool, grouped: bool) -> Iterator[tuple[bytes, bytes]]:
    """(key of the source, tokens) of each distinct document of a spill, in the order in which they are split.

    That order is by the documents' keys, or, grouped, by the keys of their sources and then by their own: a source's
    documents are neighbours. have_sources: whether the records were made with sources; without, all keys are empty.
    Grouping takes a second temporary file as large as the first.
    """
    group = KEY_BYTES if have_sources else 0
    if not grouped:
        for _, body in spill.sorted_items():
            yield body[:group], body[group:]
        return
    with Spill(spill.path.with_name(f"{spill.path.name}_by_source"), key_bytes=2 * KEY_BYTES) as by_source:
        for key, body in spill.sorted_items():
            by_source.add(record_of(body[:group] + key, body[group:]))
        for key, tokens in by_source.sorted_items():
            yield key[:group], tokens
