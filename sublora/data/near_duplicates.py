"""How much of the documents is nearly the same text: shingles shared with train, and clusters by MinHash.

Shape legend: S shingles, B bytes.
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
"""A power of two: see `shingles`."""
MULTIPLIER = 0x9E3779B97F4A7C15
"""Odd, of the polynomial hash modulo 2^64."""

Shingles = NDArray[np.uint64]
"""Distinct hashes of a document's shingles, ascending (S,)."""


@dataclasses.dataclass(frozen=True)
class ClusterRule:
    """What counts as a near duplicate, and how it is found."""

    jaccard: float = 0.5
    """Smallest share of the shingles of two documents together that both have, as MinHash estimates it."""
    bands: int = 32
    band_rows: int = 4
    """Documents are compared if their signatures agree in all rows of a band, which they do with probability
    1 - (1 - j^rows)^bands at a share j: 0.87 at j = 0.5, 0.99 at 0.6."""
    documents: int = 100_000
    """At most so many train documents are clustered, the first, which are a random subset."""

    @property
    def permutations(self) -> int:
        """Hash functions of MinHash; the estimate's standard deviation is sqrt(j (1 - j) / permutations)."""
        return self.bands * self.band_rows


@dataclasses.dataclass(frozen=True)
class Clusters:
    """The outcome of clustering; every document is in one cluster."""

    documents: int
    """Train documents that were clustered."""
    count: int
    largest: int
    """Documents of the largest cluster."""


@functools.cache
def _byte_values() -> NDArray[np.uint64]:
    """What a byte stands for in the polynomial: random, so that texts of few different bytes are told apart."""
    return generator("shingles").integers(1, 2**64, size=256, dtype=np.uint64)


def shingles(text: bytes) -> Shingles:
    """Hashes of all runs of SHINGLE_BYTES bytes of a text; a shorter text is one shingle, filled up with zero bytes.

    The hash of a run of 2 w bytes is that of its first w bytes plus that of the others times MULTIPLIER^w, so a few
    passes over the text hash all its runs. 64 bits: among a thousand million shingles a collision is unlikely (1/40).
    """
    values_B = np.frombuffer(text.ljust(SHINGLE_BYTES, b"\0"), dtype=np.uint8)
    hash_S, width, factor = _byte_values()[values_B], 1, MULTIPLIER
    while width < SHINGLE_BYTES:
        hash_S = hash_S[:-width] + hash_S[width:] * np.uint64(factor)
        width, factor = 2 * width, factor * factor % 2**64
    return np.unique(_mixed(hash_S))


def _mixed(hash_S: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijection after which every bit depends on all of them (the finalizer of MurmurHash3, 64 bits)."""
    for constant in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        hash_S = (hash_S ^ (hash_S >> np.uint64(33))) * np.uint64(constant)
    return hash_S ^ (hash_S >> np.uint64(33))


def document_shingles(dataset: TokenDataset, split: str, documents: int | None = None) -> Iterator[Shingles]:
    """Of the first documents of a split, all by default, one at a time."""
    tokenizer = dataset.load_tokenizer()
    count = len(dataset.document_lengths(split))
    for i in range(count if documents is None else min(count, documents)):
        yield shingles(tokenizer.decode(dataset.document(split, i)).encode())


def shared_shares(dataset: TokenDataset, split: str = "test") -> NDArray[np.float64]:
    """Of each document of a split the share of its distinct shingles that also occur in train, exactly (documents,).

    One pass over train; memory for the shingles of the split alone, 8 bytes each.
    """
    own = list(document_shingles(dataset, split))
    known_S = np.unique(np.concatenate(own))
    found_S = np.zeros(len(known_S), dtype=bool)
    for train_S in document_shingles(dataset, "train"):
        place_S = np.minimum(np.searchsorted(known_S, train_S), len(known_S) - 1)
        found_S[place_S[known_S[place_S] == train_S]] = True
    return np.array([found_S[np.searchsorted(known_S, one_S)].mean() for one_S in own])


def cluster(dataset: TokenDataset, rule: ClusterRule) -> Clusters:
    """Cluster train documents in their order: each joins the earlier cluster that it is most like, or opens its own.

    A cluster stands for its first document, the only one that others are compared with. Time and memory grow with the
    number of documents, not with its square: candidates come from locality-sensitive hashing of MinHash signatures
    (Broder 1997), and only first documents are kept.
    """
    minhash, lsh = _datasketch()
    index = lsh(num_perm=rule.permutations, params=(rule.bands, rule.band_rows))
    # The shingles' hashes are random already; MinHash takes 32 bits of them.
    empty = minhash(num_perm=rule.permutations, hashfunc=int)
    first: dict[int, Any] = {}
    sizes: dict[int, int] = {}
    for i, hash_S in enumerate(document_shingles(dataset, "train", rule.documents)):
        signature = empty.copy()
        signature.update_batch((hash_S >> np.uint64(32)).tolist())
        candidates = sorted(index.query(signature))
        likeness = [signature.jaccard(first[j]) for j in candidates]
        if likeness and max(likeness) >= rule.jaccard:
            sizes[candidates[likeness.index(max(likeness))]] += 1
        else:
            index.insert(i, signature)
            first[i], sizes[i] = signature, 1
    return Clusters(documents=sum(sizes.values()), count=len(sizes), largest=max(sizes.values()))


def _datasketch() -> tuple[Any, Any]:
    """MinHash and MinHashLSH; UserError without the library."""
    try:
        from datasketch import MinHash, MinHashLSH
    except ImportError:
        raise UserError(
            "near duplicates need the package datasketch, which is not installed; pip install 'sublora[duplicates]'"
        ) from None
    return MinHash, MinHashLSH
