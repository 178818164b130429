"""Facts of a dataset taken from its tokens: where documents end, how short they are, whether one occurs twice."""

import dataclasses
import hashlib
from array import array

import numpy as np
from numpy.typing import NDArray

from sublora.data.dataset import BLOCK_TOKENS, TokenDataset, partitions
from sublora.data.dataset_files import SPLITS
from sublora.runs.verify.checks import Check

DIGEST_BYTES = 8
"""Length of a document's digest. Documents with equal digests are then compared token by token."""


@dataclasses.dataclass(frozen=True, eq=False)
class SplitFacts:
    """Result of one pass over the tokens of a split. Shape legend: D documents."""

    ends_D: NDArray[np.int64]
    """Positions of the end-of-text tokens."""
    digests_D: NDArray[np.uint64]
    largest_token: int
    trailing_tokens: int
    """Tokens after the last end-of-text, which belong to no document."""

    @property
    def lengths_D(self) -> NDArray[np.int64]:
        """Tokens of each document, its end-of-text not counted."""
        return np.diff(self.ends_D, prepend=-1) - 1


def split_facts(dataset: TokenDataset, split: str) -> SplitFacts:
    """Read a split once, in blocks; 16 bytes per document are kept."""
    tokens_S = dataset.tokens(split)
    ends, digests = array("q"), array("Q")
    largest, end, hasher = 0, -1, hashlib.blake2b(digest_size=DIGEST_BYTES)
    for start in range(0, len(tokens_S), BLOCK_TOKENS):
        block = np.array(tokens_S[start : start + BLOCK_TOKENS])
        largest = max(largest, int(block.max()))
        data, width, begin = memoryview(block.tobytes()), block.itemsize, 0
        for position in np.flatnonzero(block == dataset.eot_id).tolist():
            hasher.update(data[begin * width : position * width])
            digests.append(int.from_bytes(hasher.digest(), "little"))
            end, begin, hasher = start + position, position + 1, hashlib.blake2b(digest_size=DIGEST_BYTES)
            ends.append(end)
        hasher.update(data[begin * width :])
    return SplitFacts(
        np.frombuffer(ends, dtype=np.int64) if ends else np.zeros(0, dtype=np.int64),
        np.frombuffer(digests, dtype=np.uint64) if digests else np.zeros(0, dtype=np.uint64),
        largest,
        len(tokens_S) - 1 - end,
    )


def repeated_document(dataset: TokenDataset, facts: dict[str, SplitFacts]) -> str | None:
    """Name two equal documents of the dataset, in one split or in two; None if all documents differ."""
    splits = list(facts)
    first = np.cumsum([0] + [len(facts[split].ends_D) for split in splits])
    digests_D = np.concatenate([each.digests_D for each in facts.values()])
    sorted_D = np.sort(digests_D)
    for value in np.unique(sorted_D[1:][sorted_D[1:] == sorted_D[:-1]]):
        seen: dict[bytes, str] = {}
        for index in np.flatnonzero(digests_D == value).tolist():
            k = int(np.searchsorted(first, index, side="right")) - 1
            split, i = splits[k], index - int(first[k])
            begin = int(facts[split].ends_D[i - 1]) + 1 if i else 0
            text = np.array(dataset.tokens(split)[begin : int(facts[split].ends_D[i])]).tobytes()
            if text in seen:
                return f"{split} document {i} is {seen[text]}"
            seen[text] = f"{split} document {i}"
    return None


def _units_found(dataset: TokenDataset, split: str, documents: int) -> int:
    """Return the number of units, 0 if they do not partition that many documents."""
    starts = dataset.units(split).starts_U
    if starts is None:
        return documents
    return len(starts) if partitions(starts, documents) else 0


def data_checks(
    dataset: TokenDataset, *, min_tokens: int, vocab_size: int, n_documents: int, n_units: int
) -> list[Check]:
    """Compare the claimed facts of a dataset with its tokens: n, the documents' ends and lengths, V, no document twice.

    Units must partition the documents that the tokens show. Which documents belong together cannot be seen from them.
    """
    facts = {split: split_facts(dataset, split) for split in SPLITS}
    train = facts["train"]
    listed = np.array_equal(dataset.eot_indices, train.ends_D)
    lengths = np.array_equal(dataset.document_lengths("train"), train.lengths_D)
    checks = [
        Check("training documents, from the tokens", n_documents, len(train.ends_D)),
        Check("training units n", n_units, _units_found(dataset, "train", len(train.ends_D))),
        Check("vocabulary size V", vocab_size, dataset.vocab_size),
        Check("documents end where the end-of-text tokens are", True, listed),
        Check("documents are as long as their tokens", True, lengths),
    ]
    for split, found in facts.items():
        shortest = int(found.lengths_D.min(initial=np.iinfo(np.int64).max))
        checks += [
            Check(f"{split} documents", dataset.meta["splits"][split]["documents"], len(found.ends_D)),
            Check(f"{split} tokens below V", True, found.largest_token < vocab_size),
            Check(f"{split} tokens after the last end-of-text", 0, found.trailing_tokens),
            Check(
                f"units of {split} partition its documents", True, _units_found(dataset, split, len(found.ends_D)) > 0
            ),
            Check(f"{split} documents have min_tokens {min_tokens} or more", True, shortest >= min_tokens),
        ]
    return [*checks, Check("a document that occurs twice", None, repeated_document(dataset, facts))]
