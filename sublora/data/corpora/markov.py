"""A synthetic source whose entropy rate is known in closed form.

It is a Markov chain over k symbols. The first symbol of a document comes from the stationary distribution, so that
every position has the same distribution, and the length is independent of the symbols. Documents are independent and
identically distributed. Deduplication would break that if two documents could coincide; `MarkovReader` therefore
refuses settings under which any two documents coincide with probability above MAX_DUPLICATE_PROBABILITY.

Shape suffixes: K symbols, N documents.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from sublora import config
from sublora.data.corpora.reader import Texts
from sublora.system.errors import UserError
from sublora.system.streams import generator

BATCH_DOCUMENTS = 512
"""Documents per random stream; part of the definition of the corpus."""

FIRST_SYMBOL = ord("!")
"""The first symbol; the others are the printable ASCII characters that follow it."""

MAX_DUPLICATE_PROBABILITY = 1e-9
CORPUS_STREAM = "corpus"


class MarkovSource:
    """The chain that settings describe, and its documents."""

    def __init__(self, settings: config.MarkovCorpus) -> None:
        self.settings = settings
        rows = generator(settings.seed, "markov transitions").dirichlet(
            np.full(settings.symbols, settings.concentration), size=settings.symbols
        )
        self.transition_KK: np.ndarray = rows / rows.sum(axis=1, keepdims=True)
        """Probability of the column's symbol after the row's symbol."""

    @cached_property
    def stationary_K(self) -> np.ndarray:
        """The stationary distribution: the probability vector pi with pi P = pi."""
        k = self.settings.symbols
        equations = np.vstack([self.transition_KK.T - np.eye(k), np.ones(k)])
        right = np.append(np.zeros(k), 1.0)
        solution: np.ndarray = np.clip(np.linalg.lstsq(equations, right, rcond=None)[0], 0.0, None)
        solution /= solution.sum()
        return solution

    @property
    def entropy_rate_bits(self) -> float:
        """Entropy of a symbol given all symbols before it, in bits per token: -sum_i pi_i sum_j P_ij log2 P_ij.

        A document's first symbol and its end-of-text token are not included. Source: Cover and Thomas, Elements of
        Information Theory, Theorem 4.2.4.
        """
        return float(self.stationary_K @ _entropy_bits(self.transition_KK))

    @property
    def symbol_entropy_bits(self) -> float:
        """Entropy of one symbol without context, in bits: the best loss of a model that ignores context."""
        return float(_entropy_bits(self.stationary_K))

    def log2_coincidence(self, length: int) -> float:
        """Return log2 of the probability that two independent documents of this length are equal.

        The probability is the sum over all documents x of p(x)^2 = (pi * pi) (P * P)^(length-1) 1, with elementwise
        products; it decreases with the length.
        """
        squares_KK = self.transition_KK**2
        vector_K = self.stationary_K**2
        log2_scale = 0.0
        for _ in range(length - 1):
            total = vector_K.sum()
            log2_scale += math.log2(total)
            vector_K = (vector_K / total) @ squares_KK
        return log2_scale + math.log2(vector_K.sum())

    def fresh_documents(self, count: int, seed: int) -> list[str]:
        """Draw documents from the same source, independent of the corpus and of the documents of other seeds."""
        return self._documents(count, f"fresh {seed}")

    def corpus_batch(self, index: int) -> list[str]:
        """Return the documents of the corpus from index * BATCH_DOCUMENTS on, at most BATCH_DOCUMENTS."""
        first = index * BATCH_DOCUMENTS
        return self._batch(CORPUS_STREAM, index, min(BATCH_DOCUMENTS, self.settings.documents - first))

    def _documents(self, count: int, stream: str) -> list[str]:
        documents: list[str] = []
        while len(documents) < count:
            size = min(BATCH_DOCUMENTS, count - len(documents))
            documents += self._batch(stream, len(documents) // BATCH_DOCUMENTS, size)
        return documents

    def _batch(self, stream: str, index: int, count: int) -> list[str]:
        settings = self.settings
        rng = generator(settings.seed, "markov documents", stream, index)
        lengths_N = rng.integers(settings.min_length, settings.max_length, size=BATCH_DOCUMENTS, endpoint=True)[:count]
        bounds_KK = np.cumsum(self.transition_KK, axis=1)[:, :-1]
        symbols = np.empty((count, settings.max_length), dtype=np.uint8)
        state_N = np.searchsorted(np.cumsum(self.stationary_K)[:-1], rng.random(BATCH_DOCUMENTS), side="right")[:count]
        for position in range(settings.max_length):
            symbols[:, position] = state_N
            draws_N = rng.random(BATCH_DOCUMENTS)[:count]
            state_N = (bounds_KK[state_N] <= draws_N[:, None]).sum(axis=1)
        symbols += FIRST_SYMBOL
        return [row[:length].tobytes().decode("ascii") for row, length in zip(symbols, lengths_N, strict=True)]


def _entropy_bits(probabilities: np.ndarray) -> np.ndarray:
    """Return the entropy over the last axis, in bits, with 0 log 0 = 0."""
    logs = np.log2(probabilities, where=probabilities > 0, out=np.zeros_like(probabilities))
    entropy: np.ndarray = -(probabilities * logs).sum(axis=-1)
    return entropy


@dataclass(frozen=True)
class MarkovBatch:
    """BATCH_DOCUMENTS documents, fewer in the last batch; reading them draws them."""

    settings: config.MarkovCorpus
    index: int

    def __len__(self) -> int:
        return min(BATCH_DOCUMENTS, self.settings.documents - self.index * BATCH_DOCUMENTS)

    def read(self) -> Texts:
        return Texts(MarkovSource(self.settings).corpus_batch(self.index))


class MarkovReader:
    """Draws the corpus in batches, each from its own random stream."""

    unit = "documents"

    def __init__(self, settings: config.MarkovCorpus, root: Path | None = None) -> None:
        """Check that documents will differ; `root`, where other corpora's files are, is not used.

        UserError if two documents may coincide.
        """
        self.settings = settings
        self.where = f"markov source of {settings.symbols} symbols, seed {settings.seed}"
        self.total = settings.documents
        self._source = MarkovSource(settings)
        pairs = settings.documents * (settings.documents - 1) / 2
        log2_probability = math.log2(max(pairs, 1.0)) + self._source.log2_coincidence(settings.min_length)
        if log2_probability > math.log2(MAX_DUPLICATE_PROBABILITY):
            raise UserError(
                f"data.corpus.min_length {settings.min_length}: two of {settings.documents} documents may coincide "
                f"(probability up to 2^{log2_probability:.0f}), and deduplication would make them dependent; "
                "raise min_length or concentration"
            )

    def batches(self) -> Iterator[MarkovBatch]:
        return (MarkovBatch(self.settings, index) for index in range(math.ceil(self.total / BATCH_DOCUMENTS)))

    def provenance(self) -> dict[str, object]:
        return {
            "entropy_rate_bits": self._source.entropy_rate_bits,
            "symbol_entropy_bits": self._source.symbol_entropy_bits,
        }
