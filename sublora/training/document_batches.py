"""Batches of document windows in which every document counts the same, as it does in the bound.

Shape legend: N windows, T positions.
"""

import numpy as np

from sublora import config
from sublora.data.dataset import TokenDataset
from sublora.random import generator


class DocumentSampler:
    """Draws a document, then one of its targets, and takes the window that scores this target.

    The expectation of the weighted loss of a batch is the mean over documents of the mean loss of their targets, so
    training sees what `sublora.scoring` measures: the same windows, the end-of-text token before a document's first
    target, nothing across documents. A batch depends on the seed parts and the step alone.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        eot_indices: np.ndarray,
        *,
        eot_id: int,
        context_length: int,
        stride: int,
        windows_per_step: int,
        seed_parts: tuple[int | str, ...],
    ) -> None:
        """tokens: (all tokens,) of a split, its documents ended by `eot_id` at `eot_indices`."""
        # As a plain array: indexing a memory map makes another memory map each time.
        self._tokens, self._eot_id, self._stride = np.asarray(tokens), eot_id, stride
        self._context, self._windows, self._seed_parts = context_length, windows_per_step, seed_parts
        self._starts = np.concatenate([[0], np.asarray(eot_indices[:-1], dtype=np.int64) + 1])
        self._targets = np.asarray(eot_indices, dtype=np.int64) + 1 - self._starts

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(inputs, targets, weights): int64, int64 and float32 (N x T); the weights of all positions sum to 1."""
        rng = generator(*self._seed_parts, "document batch of step", step)
        documents = rng.integers(len(self._starts), size=self._windows)
        drawn = (rng.random(self._windows) * self._targets[documents]).astype(np.int64)
        return self._assemble(documents, drawn)

    def spread(self, documents: int, windows_each: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(inputs, targets, weights, document of each window) of the first documents, at evenly spread targets.

        The weights of each document sum to 1, so that weighted sums estimate its mean loss.
        """
        documents = np.repeat(np.arange(min(documents, len(self._starts))), windows_each)
        share = np.tile((np.arange(windows_each) + 0.5) / windows_each, len(documents) // windows_each)
        inputs, targets, weights = self._assemble(documents, (share * self._targets[documents]).astype(np.int64))
        return inputs, targets, weights * (len(documents) / windows_each), documents

    def _assemble(self, documents_N: np.ndarray, drawn_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Windows that score target `drawn` of each document; shorter documents are padded on the right."""
        first_N, count_N = self._starts[documents_N], self._targets[documents_N]
        later_N = np.maximum(0, -(-(drawn_N + 1 - self._context) // self._stride))
        stop_N = np.minimum(self._context + later_N * self._stride, count_N)
        start_N = np.maximum(0, stop_N - self._context)
        # The first window scores all it holds, a later one what its predecessor did not reach.
        scored_N = np.where(later_N, stop_N - (self._context + (later_N - 1) * self._stride), stop_N)
        length_N1 = (stop_N - start_N)[:, None]
        position_T = np.arange(self._context)
        inside_NT = position_T < length_N1
        place_NT = np.where(inside_NT, (first_N + start_N)[:, None] + position_T, first_N[:, None])
        targets_NT = np.where(inside_NT, self._tokens[place_NT], self._eot_id)
        # Input position p holds the token before target p: for the first target the EOT that ends the document before,
        # and for the first document, at place -1, the one that ends the split.
        inputs_NT = np.where(inside_NT, self._tokens[place_NT - 1], self._eot_id)
        weight_N1 = 1.0 / (scored_N[:, None] * len(documents_N))
        weights_NT = np.where(inside_NT & (position_T >= length_N1 - scored_N[:, None]), weight_N1, 0.0)
        return inputs_NT.astype(np.int64), targets_NT.astype(np.int64), weights_NT.astype(np.float32)


def training_documents(settings: config.Settings, run: config.RunSpec, dataset: TokenDataset) -> DocumentSampler:
    """The batches of a run that trains for its message."""
    context = settings.model.context_length
    return DocumentSampler(
        dataset.tokens("train"),
        dataset.eot_indices,
        eot_id=dataset.eot_id,
        context_length=context,
        stride=settings.scoring.sliding_window,
        windows_per_step=settings.training.tokens_per_step // context,
        seed_parts=(run.seed, "train documents"),
    )
