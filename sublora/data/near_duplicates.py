"""How much of the documents is nearly the same text: shingles shared with train, and clusters by MinHash.

Shape legend: S shingles, B bytes, F first documents, P permutations, C candidates.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sublora.data.dataset import TokenDataset
from sublora.system.errors import UserError
from sublora.system.streams import generator

SHINGLE_BYTES = 32
"""The length of a shingle; a power of two, see `shingles`."""
MULTIPLIER = 0x9E3779B97F4A7C15
"""The multiplier of the polynomial hash modulo 2^64; odd."""

Shingles = NDArray[np.uint64]
"""Distinct hashes of a document's shingles, ascending, shape (S,)."""


@dataclasses.dataclass(frozen=True)
class ClusterRule:
    """What counts as a near duplicate, and how it is found."""

    jaccard: float = 0.5
    """Smallest Jaccard similarity of two documents' shingles, as MinHash estimates it."""
    bands: int = 32
    band_rows: int = 4
    """Documents are compared if their signatures agree in all rows of a band. At a similarity j this has probability
    1 - (1 - j^rows)^bands: 0.87 at j = 0.5, 0.99 at 0.6."""
    documents: int = 100_000
    """The largest number of train documents that are clustered; the first ones are a random subset."""

    @property
    def permutations(self) -> int:
        """MinHash's number of hash functions; its estimate has standard deviation sqrt(j (1 - j) / permutations)."""
        return self.bands * self.band_rows


@dataclasses.dataclass(frozen=True)
class Clusters:
    """The result of clustering; every document is in exactly one cluster."""

    documents: int
    """Train documents that were clustered."""
    count: int
    largest: int
    """Documents in the largest cluster."""


@functools.cache
def _byte_values() -> NDArray[np.uint64]:
    """Return the value of each byte in the polynomial, random so that texts of few different bytes are told apart."""
    return generator("shingles").integers(1, 2**64, size=256, dtype=np.uint64)


def shingles(text: bytes) -> Shingles:
    """Return the hashes of all runs of SHINGLE_BYTES bytes of a text; a shorter text is padded with zero bytes.

    The hash of a run of 2 w bytes is that of its first w bytes plus MULTIPLIER^w times that of the others, so a few
    passes over the text hash all its runs. With 64 bits, a collision among a thousand million shingles is unlikely
    (1/40).
    """
    values_B = np.frombuffer(text.ljust(SHINGLE_BYTES, b"\0"), dtype=np.uint8)
    hash_S, width, factor = _byte_values()[values_B], 1, MULTIPLIER
    while width < SHINGLE_BYTES:
        hash_S = hash_S[:-width] + hash_S[width:] * np.uint64(factor)
        width, factor = 2 * width, factor * factor % 2**64
    return np.unique(_mixed(hash_S))


def _mixed(hash_S: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Map hashes by a bijection after which every bit depends on all of them (MurmurHash3's 64-bit finalizer)."""
    for constant in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        hash_S = (hash_S ^ (hash_S >> np.uint64(33))) * np.uint64(constant)
    return hash_S ^ (hash_S >> np.uint64(33))


def document_shingles(dataset: TokenDataset, split: str, documents: int | None = None) -> Iterator[Shingles]:
    """Yield the shingles of the first documents of a split, by default of all."""
    tokenizer = dataset.load_tokenizer()
    count = len(dataset.document_lengths(split))
    for i in range(count if documents is None else min(count, documents)):
        yield shingles(tokenizer.decode(dataset.document(split, i)).encode())


def shared_shares(dataset: TokenDataset, split: str = "test") -> NDArray[np.float64]:
    """Return the share of each document's distinct shingles that also occur in train, exactly, float64 (documents,).

    One pass over train; memory is needed only for the shingles of the split, 8 bytes each.
    """
    own = list(document_shingles(dataset, split))
    known_S = np.unique(np.concatenate(own))
    found_S = np.zeros(len(known_S), dtype=bool)
    for train_S in document_shingles(dataset, "train"):
        place_S = np.minimum(np.searchsorted(known_S, train_S), len(known_S) - 1)
        found_S[place_S[known_S[place_S] == train_S]] = True
    return np.array([found_S[np.searchsorted(known_S, one_S)].mean() for one_S in own])


def cluster(dataset: TokenDataset, rule: ClusterRule) -> Clusters:
    """Cluster train documents in their order: each joins the most similar earlier cluster, or opens a new one.

    A cluster is represented by its first document, the only one that others are compared with. Time and memory grow
    with the number of documents, not with its square: candidates come from locality-sensitive hashing of MinHash
    signatures (Broder 1997), of which a document is compared with at most `rule.bands` times MOST_IN_BUCKET.
    """
    minhash = _datasketch()
    # The shingles' hashes are already random; MinHash takes 32 bits of them.
    empty = minhash(num_perm=rule.permutations, hashfunc=int)
    first_documents, sizes = FirstDocuments(rule), []
    for hash_S in document_shingles(dataset, "train", rule.documents):
        signature = empty.copy()
        signature.update_batch((hash_S >> np.uint64(32)).tolist())
        joined = first_documents.find_or_add(signature.hashvalues)
        if joined is None:
            sizes.append(1)
        else:
            sizes[joined] += 1
    return Clusters(documents=sum(sizes), count=len(sizes), largest=max(sizes))


MOST_IN_BUCKET = 64
"""The largest number of first documents that a bucket lists. What more documents share, such as the text of a template,
does not tell near duplicates apart; a copy of one of them shares other, rarer bands with it as well. Another number
needs another NEAR_DUPLICATES_FORMAT."""


class FirstDocuments:
    """MinHash signatures of the first documents of clusters, found by the bands that they share.

    Not datasketch's index: its buckets grow with the documents that share a template, and its comparison takes one
    document at a time.
    """

    def __init__(self, rule: ClusterRule) -> None:
        self._rule = rule
        self._count = 0
        self._signature_FP = np.empty((1024, rule.permutations), dtype=np.uint32)
        """One row per first document; rows beyond `_count` are free."""
        self.buckets: list[dict[bytes, list[int]]] = [{} for _ in range(rule.bands)]
        """For each band, places of first documents by the band's bytes."""

    def find_or_add(self, signature_P: NDArray[np.uint64]) -> int | None:
        """Return the place of the most similar first document, of equally similar ones the earliest.

        Where none is similar enough, add the document as a first one and return None.
        """
        values_P = signature_P.astype(np.uint32)  # hashes have 32 bits
        keys = [band.tobytes() for band in values_P.reshape(self._rule.bands, self._rule.band_rows)]
        places = {place for key, bucket in zip(keys, self.buckets, strict=True) for place in bucket.get(key, ())}
        if places:
            places_C = np.array(sorted(places))
            likeness_C = np.mean(self._signature_FP[places_C] == values_P, axis=1)
            best = int(np.argmax(likeness_C))
            if likeness_C[best] >= self._rule.jaccard:
                return int(places_C[best])
        self._add(values_P, keys)
        return None

    def _add(self, values_P: NDArray[np.uint32], keys: list[bytes]) -> None:
        """Add a first document, and list it in the buckets of its bands that are not full."""
        if self._count == len(self._signature_FP):
            self._signature_FP = np.concatenate([self._signature_FP, np.empty_like(self._signature_FP)])
        self._signature_FP[self._count] = values_P
        for key, bucket in zip(keys, self.buckets, strict=True):
            members = bucket.setdefault(key, [])
            if len(members) < MOST_IN_BUCKET:
                members.append(self._count)
        self._count += 1


def _datasketch() -> Any:
    """Import MinHash; UserError if the library is not installed."""
    try:
        from datasketch import MinHash
    except ImportError:
        raise UserError(
            "near duplicates need the package datasketch, which is not installed; pip install 'sublora[duplicates]'"
        ) from None
    return MinHash
