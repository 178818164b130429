"""Batches of token chunks: random ones for training, fixed ones for evaluation.

Chunks are contiguous and may cross documents. All arrays are int64 of shape (sequences, context_length);
targets are the inputs shifted by one token.
"""

from collections.abc import Iterator

import numpy as np

from sublora.errors import UserError
from sublora.random import generator


class BatchSampler:
    """Random chunks; the batch of a step depends on the seed and the step alone, so a resumed run sees the same."""

    def __init__(
        self, tokens: np.ndarray, context_length: int, sequences_per_step: int, *seed_parts: int | str | bytes
    ) -> None:
        """`tokens`: (n,) integers, for example `TokenDataset.tokens("train")`.

        Raises UserError if there are too few for one chunk.
        """
        _check_long_enough(tokens, context_length, "train")
        self._tokens = tokens
        self._context_length = context_length
        self._sequences = sequences_per_step
        self._seed_parts = seed_parts

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(inputs, targets) of a step, chunks drawn uniformly with replacement."""
        rng = generator(*self._seed_parts, "batch of step", step)
        starts = rng.integers(len(self._tokens) - self._context_length, size=self._sequences)
        return _chunks(self._tokens, starts, self._context_length)


def evaluation_batches(
    tokens: np.ndarray, context_length: int, sequences: int, batch_sequences: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(inputs, targets) of chunks spread evenly over a split, always the same, at most batch_sequences at a time.

    Chunks do not overlap: a split that is too short for `sequences` of them gives as many as fit.
    Raises UserError if not even one fits.
    """
    _check_long_enough(tokens, context_length, "evaluation")
    count = min(sequences, (len(tokens) - 1) // context_length)
    last = len(tokens) - context_length - 1
    starts = np.linspace(0, last, count).astype(np.int64) if count > 1 else np.zeros(1, dtype=np.int64)
    for first in range(0, count, batch_sequences):
        yield _chunks(tokens, starts[first : first + batch_sequences], context_length)


def _check_long_enough(tokens: np.ndarray, context_length: int, purpose: str) -> None:
    if len(tokens) < context_length + 1:
        raise UserError(
            f"model.context_length {context_length}: {len(tokens)} {purpose} tokens, expected at least "
            f"{context_length + 1} (a chunk and its last target); give more text or a shorter context"
        )


def _chunks(tokens: np.ndarray, starts: np.ndarray, context_length: int) -> tuple[np.ndarray, np.ndarray]:
    chunks = tokens[starts[:, None] + np.arange(context_length + 1)].astype(np.int64)
    return chunks[:, :-1], chunks[:, 1:]
