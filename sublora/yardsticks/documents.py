"""Documents as the targets a next-token predictor is scored on, and the losses of documents.

Shapes: S targets of a batch of documents, D documents, A smoothing candidates.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sublora.bounds.smoothing import Smoothing, document_losses_bits

BATCH_TARGETS = 1 << 20
"""A batch of documents is closed once it holds this many targets."""


@dataclass(frozen=True, eq=False)
class TargetBatch:
    """The targets of some documents, one after the other: each document's tokens and its closing end-of-text."""

    targets_S: NDArray[np.int64]
    contexts_S: NDArray[np.int64]
    """The token before each target: the end-of-text token where a document starts."""
    offsets: NDArray[np.int64]
    """Where each document's targets start, and the end of the last: shape (D + 1,)."""

    @classmethod
    def of(cls, documents: Sequence[NDArray[np.integer]], eot_id: int) -> "TargetBatch":
        """documents: tokens without their end-of-text token, at least one document."""
        end = np.array([eot_id])
        targets_S = np.concatenate([part for document in documents for part in (document, end)]).astype(np.int64)
        offsets = np.concatenate([[0], np.cumsum([len(document) + 1 for document in documents])]).astype(np.int64)
        contexts_S = np.concatenate([end, targets_S[:-1]])
        return cls(targets_S, contexts_S, offsets)


class Predictor(Protocol):
    """A model of the next token, decoded from its message or fixed beforehand."""

    def log_probabilities(self, batch: TargetBatch) -> NDArray[np.float64]:
        """Natural logarithm of the probability of each target given the document's tokens before it, shape (S,)."""
        ...


def batches(documents: Iterable[NDArray[np.integer]], eot_id: int) -> Iterator[TargetBatch]:
    """The documents in batches of about BATCH_TARGETS targets, so that memory does not grow with their number."""
    pending: list[NDArray[np.integer]] = []
    targets = 0
    for document in documents:
        pending.append(document)
        targets += len(document) + 1
        if targets >= BATCH_TARGETS:
            yield TargetBatch.of(pending, eot_id)
            pending, targets = [], 0
    if pending:
        yield TargetBatch.of(pending, eot_id)


def losses_bits(
    predictor: Predictor, documents: Iterable[TargetBatch], smoothing: Sequence[Smoothing], vocab_size: int
) -> NDArray[np.float64]:
    """Loss of each document under each smoothing candidate, bits per token, shape (D, A)."""
    losses_BDA = []
    for batch in documents:
        log_p_S = predictor.log_probabilities(batch)
        losses_BDA.append(document_losses_bits(smoothing, log_p_S, batch.offsets, vocab_size))
    return np.concatenate(losses_BDA)
