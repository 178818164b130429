"""Records on disk, grouped by the first byte of their key, so that they can be sorted in bounded memory.

The key of a document is a digest of its text, keyed with the shuffle seed. Sorting by it therefore gives a random
order that depends only on the documents' texts and the seed, equal documents are neighbours, and no table of all
documents is ever in memory.

A source has two keys. The first, a digest of its name, decides which of several sources keeps a text that they share.
The second, a digest of the first, orders units for the split. If one key did both, the sources that come first would be
those that keep what they share, and val and test would hold other units than train.

A record consists of a key (with the same number of bytes in the whole spill), the number of bytes of the body (8 bytes,
little endian), and the body: a document's tokens (2 or 4 bytes each, as its vocabulary needs), after the key of its
source if documents are grouped.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType

import numpy as np

from sublora.data.base_and_target import KEY_BYTES, TextKeys
from sublora.system.streams import stream_key

COUNT_BYTES = 8
BUCKETS = 256
"""One bucket per value of a key's first byte."""
BUFFER_BYTES = 1 << 17
"""Bytes that a bucket gathers before they are written: 32 MiB for all buckets."""


def document_key(text: bytes, seed: int) -> bytes:
    """Return the key of a document. Sorting by keys gives a random order, another one for each seed."""
    return _key(text, seed, "order of documents")


def source_key(name: str, seed: int) -> bytes:
    """Return the key of a source, given its name, by which a text that several sources share stays with one of them.

    It is independent of the keys of documents.
    """
    return _key(name.encode(errors="surrogatepass"), seed, "order of sources")


def unit_key(source: bytes, seed: int) -> bytes:
    """Return the key by which a unit is placed in the split, given its source's key; the two are independent."""
    return _key(source, seed, "order of units")


def _key(data: bytes, seed: int, purpose: str) -> bytes:
    secret = stream_key(seed, purpose).to_bytes(KEY_BYTES, "little")
    return hashlib.blake2b(data, digest_size=KEY_BYTES, key=secret).digest()


def make_record(text: bytes, tokens: np.ndarray, seed: int, source: str | None = None) -> bytes:
    """Return the record of a document and its tokens of `token_type`; `source` is the name of its group, if any."""
    group = b"" if source is None else source_key(source, seed)
    return record_of(document_key(text, seed), group + tokens.tobytes())


def record_of(key: bytes, body: bytes) -> bytes:
    """Return the record of a key and a body."""
    return key + len(body).to_bytes(COUNT_BYTES, "little") + body


def key_of_record(record: bytes) -> bytes:
    """Return the key of a document's record."""
    return record[:KEY_BYTES]


def record_of_key(key: bytes) -> bytes:
    """Return the record of a document of which only the key matters: it has no tokens."""
    return record_of(key, b"")


class Spill:
    """Records in one temporary file: call `add` in any order, then `sorted_items` once.

    Memory: BUCKETS x BUFFER_BYTES while adding; while sorting, the distinct records of one bucket (about 1/256 of all,
    but at least all that share a first byte) and the excluded keys of that bucket.
    """

    def __init__(self, path: Path, exclude: TextKeys | None = None, *, key_bytes: int = KEY_BYTES) -> None:
        """Open the file. `exclude`: keys, made with the same seed, of texts that are left out."""
        self.exclude = exclude
        self.excluded = 0
        """The number of distinct documents that `sorted_items` left out."""
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
        """Append a record."""
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
        """Yield key and body of each distinct key that is not excluded, by ascending keys.

        Of several records with one key the smallest body is kept: if equal texts belong to several sources, that of the
        source with the smallest key.
        """
        for bucket in range(BUCKETS):  # all writes come before the first read, which moves the file's position
            if self._buffers[bucket]:
                self._flush(bucket)
        # Sort bucket by bucket, each without its excluded keys.
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
        """Yield the keys of `sorted_items`."""
        for key, _ in self.sorted_items():
            yield key

    def _collect(self, data: bytes, bodies: dict[bytes, bytes]) -> None:
        """Add the records in `data` to `bodies`, keeping the smallest body per key."""
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


def documents_in_order(spill: Spill, seed: int, *, have_sources: bool, grouped: bool) -> Iterator[tuple[bytes, bytes]]:
    """Yield the source's key and the tokens of each distinct document, in the order in which documents are split.

    Documents are ordered by their keys or, grouped, by their units' keys and then by their own, so that a unit's
    documents are neighbours. `seed`: the one that the records were made with. `have_sources`: whether they were made
    with sources; without, the sources' keys are empty. Grouping takes a second temporary file as large as the first.
    """
    group = KEY_BYTES if have_sources else 0
    if not grouped:
        for _, body in spill.sorted_items():
            yield body[:group], body[group:]
        return
    with Spill(spill.path.with_name(f"{spill.path.name}_by_source"), key_bytes=2 * KEY_BYTES) as by_source:
        for key, body in spill.sorted_items():
            by_source.add(record_of(unit_key(body[:group], seed) + key, body))
        for _, body in by_source.sorted_items():
            yield body[:group], body[group:]


def split_documents(
    documents: Iterable[tuple[bytes, bytes]],
    wanted: Mapping[str, int],
    *,
    grouped: bool,
    train_units: int | None = None,
) -> Iterator[tuple[str | None, bytes, bytes, bool]]:
    """Yield split, source's key and tokens of each document, and whether a unit begins with it.

    Documents come as from `documents_in_order`. Each unit goes as a whole to the first split of `wanted` that lacks
    documents, and to train when none does. Without grouping every document is a unit, and none is said to begin one.
    train_units: the largest number of units of train; those beyond it are in no split (None). None: no limit.
    """
    counts, unit, trained = dict.fromkeys(wanted, 0), None, 0
    split: str | None = None
    for source, tokens in documents:
        starts_unit = grouped and source != unit
        if starts_unit or not grouped:
            unit = source
            split = next((name for name, count in counts.items() if count < wanted[name]), "train")
            if split == "train":
                trained += 1
                split = split if train_units is None or trained <= train_units else None
        if split in counts:
            counts[split] += 1
        yield split, source, tokens, starts_unit
