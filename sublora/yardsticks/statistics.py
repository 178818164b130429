"""How often tokens, and pairs of tokens, occur in the training split, streamed so that memory stays bounded.

Every count is weighted: a target of a document of T targets counts 1/T, divided among the documents of a unit, and sums
are divided by the number of units. So the result is a distribution, and the code length it assigns is the quantity that
is bounded, the mean over units of the mean over their documents of the mean over their targets.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sublora.data.dataset import TokenDataset

BLOCK_TOKENS = 1 << 20
"""Tokens that are in memory at once."""

PAIR_TABLE_BYTES = 1 << 27
"""Most memory of the table of pairs, 128 MiB."""

MAX_SUCCESSORS = 1 << 13
"""Only so many of the most frequent tokens are counted as successors where not all pairs fit into the table."""


def target_shares(dataset: TokenDataset) -> NDArray[np.float64]:
    """Share of each token among the targets of a training unit, shape (V,), sum 1."""
    shares = np.zeros(dataset.vocab_size)
    for _, tokens, weights in _weighted_blocks(dataset):
        shares += np.bincount(tokens, weights, minlength=dataset.vocab_size)
    return shares / dataset.n_units


def pair_candidates(shares: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Contexts and successors whose pairs are counted: the most frequent tokens, as many as the table has room for.

    Both most frequent first (smaller ids first among equals), and only tokens that occur.
    """
    seen = np.argsort(-shares, kind="stable")[: np.count_nonzero(shares)]
    cells = PAIR_TABLE_BYTES // np.dtype(np.float64).itemsize
    successors = seen if len(seen) ** 2 <= cells else seen[:MAX_SUCCESSORS]
    return seen[: cells // len(successors)], successors


def pair_shares(
    dataset: TokenDataset, contexts: NDArray[np.int64], successors: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weighted counts of (context, successor) over one pass.

    A document starts with the end-of-text token as its context, which is the token that stands before it in the file.

    Returns:
        Shares of the pairs among all targets, shape (contexts, successors), and of each context before any successor,
        counted or not, shape (contexts,).
    """
    row_of = np.full(dataset.vocab_size, -1, dtype=np.int64)
    column_of = np.full(dataset.vocab_size, -1, dtype=np.int64)
    row_of[contexts], column_of[successors] = np.arange(len(contexts)), np.arange(len(successors))
    pairs, context_shares = np.zeros(len(contexts) * len(successors)), np.zeros(len(contexts))
    for before, tokens, weights in _weighted_blocks(dataset):
        rows = row_of[np.concatenate([[before], tokens[:-1]])]
        counted = rows >= 0
        context_shares += np.bincount(rows[counted], weights[counted], minlength=len(contexts))
        columns = column_of[tokens]
        counted &= columns >= 0
        np.add.at(pairs, rows[counted] * len(successors) + columns[counted], weights[counted])
    pairs /= dataset.n_units
    return pairs.reshape(len(contexts), len(successors)), context_shares / dataset.n_units


def _weighted_blocks(dataset: TokenDataset) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.float64]]]:
    """The token before a block of the training split, the block's tokens, and the weight of each."""
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
