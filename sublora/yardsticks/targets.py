"""Documents as the targets on which a next-token predictor is scored: their frequencies in train, and their losses.

A target is a token of a document or its closing end-of-text token. Frequencies are weighted: a target of a document
with T targets counts 1/T, divided by the number of documents in its unit, and sums are divided by the number of units.
The result is a distribution, and the code length under it is the quantity that is bounded: the mean over units of the
mean over their documents of the mean over their targets. Counting and scoring stream, so memory stays bounded.

Shapes: S targets of a batch of documents, D documents, A smoothing candidates, V tokens, K contexts, L successors.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sublora.bounds.smoothing import Smoothing, document_losses_bits
from sublora.data.dataset import TokenDataset

BATCH_TARGETS = 1 << 20
"""A batch of documents is closed once it holds this many targets."""

BLOCK_TOKENS = 1 << 20
"""Tokens of train that are in memory at once while they are counted."""

PAIR_TABLE_BYTES = 1 << 27
"""Largest size of the table of pairs in bytes, 128 MiB."""

MAX_SUCCESSORS = 1 << 13
"""If the table cannot hold all pairs, this many of the most frequent tokens are counted as successors."""


@dataclass(frozen=True, eq=False)
class TargetBatch:
    """The targets of some documents, one after another: each document's tokens and its closing end-of-text."""

    targets_S: NDArray[np.int64]
    contexts_S: NDArray[np.int64]
    """The token before each target: the end-of-text token at a document's start."""
    offsets: NDArray[np.int64]
    """The position where each document's targets start, and the end of the last, shape (D + 1,)."""

    @classmethod
    def of(cls, documents: Sequence[NDArray[np.integer]], eot_id: int) -> "TargetBatch":
        """Lay out documents, at least one, given as tokens without their end-of-text token."""
        end = np.array([eot_id])
        targets_S = np.concatenate([part for document in documents for part in (document, end)]).astype(np.int64)
        offsets = np.concatenate([[0], np.cumsum([len(document) + 1 for document in documents])]).astype(np.int64)
        contexts_S = np.concatenate([end, targets_S[:-1]])
        return cls(targets_S, contexts_S, offsets)


class NextTokenModel(Protocol):
    """A model of the next token, decoded from its message or fixed beforehand."""

    def log_probabilities(self, batch: TargetBatch) -> NDArray[np.float64]:
        """Return the natural logarithm of each target's probability given the tokens before it, shape (S,)."""
        ...


def batches(documents: Iterable[NDArray[np.integer]], eot_id: int) -> Iterator[TargetBatch]:
    """Yield the documents in batches of about BATCH_TARGETS targets, so that memory does not grow with their number."""
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
    predictor: NextTokenModel, documents: Iterable[TargetBatch], smoothing: Sequence[Smoothing], vocab_size: int
) -> NDArray[np.float64]:
    """Return the loss of each document under each smoothing candidate, bits per token, shape (D, A)."""
    losses_BDA = []
    for batch in documents:
        log_p_S = predictor.log_probabilities(batch)
        losses_BDA.append(document_losses_bits(smoothing, log_p_S, batch.offsets, vocab_size))
    return np.concatenate(losses_BDA)


def target_shares(dataset: TokenDataset) -> NDArray[np.float64]:
    """Return the share of each token among the targets of a training unit, shape (V,), sum 1."""
    shares = np.zeros(dataset.vocab_size)
    for _, tokens, weights in _weighted_blocks(dataset):
        shares += np.bincount(tokens, weights, minlength=dataset.vocab_size)
    return shares / dataset.n_units


def pair_candidates(shares: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the contexts and the successors whose pairs are counted: as many frequent tokens as the table can hold.

    Both are sorted by frequency, the most frequent first (smaller ids first among equals), and hold only tokens that
    occur.
    """
    seen = np.argsort(-shares, kind="stable")[: np.count_nonzero(shares)]
    cells = PAIR_TABLE_BYTES // np.dtype(np.float64).itemsize
    successors = seen if len(seen) ** 2 <= cells else seen[:MAX_SUCCESSORS]
    return seen[: cells // len(successors)], successors


@dataclass(frozen=True, eq=False)
class PairShares:
    """How often pairs of a context and its successor occur in the training split."""

    contexts_K: NDArray[np.int64]
    successors_L: NDArray[np.int64]
    shares_KL: NDArray[np.float64]
    """Share of each pair among all targets."""
    context_shares_K: NDArray[np.float64]
    """Share of the targets that follow each context, whether or not the successor is counted."""
    targets: int
    """The number of targets from which the shares were counted."""


def pair_shares(dataset: TokenDataset, contexts_K: NDArray[np.int64], successors_L: NDArray[np.int64]) -> PairShares:
    """Count pairs in one pass over the training split.

    The context of a document's first token is the end-of-text token, which is also the token before it in the file.
    """
    # Map tokens to rows and columns of the table, -1 for those that are not counted.
    row_of_V = np.full(dataset.vocab_size, -1, dtype=np.int64)
    column_of_V = np.full(dataset.vocab_size, -1, dtype=np.int64)
    row_of_V[contexts_K], column_of_V[successors_L] = np.arange(len(contexts_K)), np.arange(len(successors_L))
    pairs, context_shares_K = np.zeros(len(contexts_K) * len(successors_L)), np.zeros(len(contexts_K))
    for before, tokens, weights in _weighted_blocks(dataset):
        # Contexts count with every successor, pairs only where the successor has a column.
        rows = row_of_V[np.concatenate([[before], tokens[:-1]])]
        counted = rows >= 0
        context_shares_K += np.bincount(rows[counted], weights[counted], minlength=len(contexts_K))
        columns = column_of_V[tokens]
        counted &= columns >= 0
        np.add.at(pairs, rows[counted] * len(successors_L) + columns[counted], weights[counted])
    # Shares are means over units.
    pairs /= dataset.n_units
    shares_KL = pairs.reshape(len(contexts_K), len(successors_L))
    targets = len(dataset.tokens("train"))
    return PairShares(contexts_K, successors_L, shares_KL, context_shares_K / dataset.n_units, targets)


def _weighted_blocks(dataset: TokenDataset) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.float64]]]:
    """Yield the token before a block of the training split, the block's tokens, and the weight of each."""
    tokens, lengths, units = dataset.tokens("train"), dataset.document_lengths("train"), dataset.units("train")
    before, first_document = dataset.eot_id, 0
    for start in range(0, len(tokens), BLOCK_TOKENS):
        block = np.array(tokens[start : start + BLOCK_TOKENS], dtype=np.int64)
        ends = block == dataset.eot_id
        document_of = np.cumsum(ends) - ends
        documents = slice(first_document, first_document + int(document_of[-1]) + 1)
        targets_D = lengths[documents] + 1
        yield before, block, (1.0 / (targets_D * units.size_around(documents)))[document_of]
        before, first_document = int(block[-1]), first_document + int(np.count_nonzero(ends))
