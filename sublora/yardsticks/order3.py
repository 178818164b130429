"""An adaptive model of order 3 that starts afresh with every document and has learned nothing beforehand.

With c_k(s) and n_k the counts of symbol s and of all symbols after the last k tokens, and u_k the number of distinct
symbols among them, all within the document so far,

    p_k(s) = (max(c_k(s) - b_k, 0) + (b_k u_k + a) p_{k-1}(s)) / (n_k + a),   k = 0 ... 3,   p_{-1}(s) = 1 / V,

and the prediction is p_3. It is the hierarchical Pitman-Yor predictor with one table per kind (Teh 2006), close to
interpolated Kneser-Ney: sum over s of max(c - b, 0) is n - b u, so p_k sums to 1 if p_{k-1} does. An order counts a
symbol only if the next higher order had not seen it in its context (update exclusion, Moffat 1990).

Discounts b and strength a take usual values from the literature, fixed without any data that is bounded. A document is
treated as if end-of-text tokens came before it.
"""

import numpy as np
from numpy.typing import NDArray

from sublora.yardsticks.targets import TargetBatch

ORDER = 3
DISCOUNTS = (0.5, 0.6, 0.7, 0.8)
"""b_0 ... b_3, all below 1, the smallest possible count."""

STRENGTH = 0.5
"""The strength a."""


class Order3:
    """A predictor for any vocabulary; time and memory are linear in the targets, up to the logarithm of sorting."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size

    def log_probabilities(self, batch: TargetBatch) -> NDArray[np.float64]:
        """Return the natural logarithm of each target's probability, shape (S,).

        All positions are computed at once: what a position has seen are the equal ones before it in its document.
        """
        contexts_KS = self._contexts(batch)
        counted_S = np.ones(len(batch.targets_S), dtype=bool)
        statistics = []
        # From the highest order down, so that update exclusion knows what the higher orders had seen.
        for contexts_S in reversed(contexts_KS):
            pairs_S = _numbered(contexts_S * self._vocab_size + batch.targets_S)
            count_S = _sums_before(pairs_S, counted_S)
            total_S = _sums_before(contexts_S, counted_S)
            kinds_S = _sums_before(contexts_S, counted_S & (count_S == 0))
            statistics.append((count_S, total_S, kinds_S))
            counted_S = counted_S & (count_S == 0)
        # From the lowest order up, each interpolated with the one below.
        p_S = np.full(len(batch.targets_S), 1.0 / self._vocab_size)
        for discount, (count_S, total_S, kinds_S) in zip(DISCOUNTS, reversed(statistics), strict=True):
            own_S = np.maximum(count_S - discount, 0.0)
            p_S = (own_S + (discount * kinds_S + STRENGTH) * p_S) / (total_S + STRENGTH)
        return np.log(p_S)

    def _contexts(self, batch: TargetBatch) -> list[NDArray[np.int64]]:
        """Return for each order k the number of each position's context: the document and its last k tokens."""
        lengths_D = np.diff(batch.offsets)
        contexts_S = np.repeat(np.arange(len(lengths_D)), lengths_D)
        place_S = np.arange(len(contexts_S)) - np.repeat(batch.offsets[:-1], lengths_D)
        contexts_KS = [contexts_S]
        for k in range(1, ORDER + 1):
            # The k-th token before a position is the one before it at the position k - 1 earlier.
            earlier_S = np.maximum(np.arange(len(contexts_S)) - (k - 1), 0)
            token_S = np.where(place_S >= k, batch.contexts_S[earlier_S], batch.contexts_S[0])
            contexts_S = _numbered(contexts_S * self._vocab_size + token_S)
            contexts_KS.append(contexts_S)
        return contexts_KS


def _numbered(keys_S: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number the keys, equal keys equally and below S, so that a number times V fits into 64 bits."""
    return np.unique(keys_S, return_inverse=True)[1]


def _sums_before(groups_S: NDArray[np.int64], counted_S: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return for each position the number of counted earlier positions in its group, shape (S,)."""
    order = np.argsort(groups_S, kind="stable")
    sorted_groups = groups_S[order]
    before: NDArray[np.int64] = np.cumsum(counted_S[order], dtype=np.int64) - counted_S[order]
    first = np.flatnonzero(np.concatenate([[True], np.diff(sorted_groups) != 0]))
    before -= np.repeat(before[first], np.diff(np.append(first, len(before))))
    sums_S = np.empty(len(groups_S), dtype=np.int64)
    sums_S[order] = before
    return sums_S
