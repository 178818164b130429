"""Which pairs a bigram's message should hold: those whose gain in loss is worth their bits.

Let u be the unigram, w_c the share of context c among all targets and q(s | c) the successors' shares there. A table
with tilts t = step r lowers the loss by

    w_c (sum over s of q t - log2 Z_c),   Z_c = 1 + sum over s of u (2^t - 1).

Write x_c = 1 / Z_c for the factor on successors that are not listed. To first order in the change of Z_c a single pair
gains w_c (q t - x_c u (2^t - 1) / ln 2), which is largest at 2^t = q / (x_c u). Given x_c, pairs do not influence each
other: one is listed if its gain exceeds its price. With these tilts x_c = (1 - q(listed)) / (1 - u(listed)), which
follows from what is listed, and so do the bits of an entry, from how often entries of its kind were listed; a few
rounds settle both. A context keeps its table if the table's own gain exceeds the price of all its bits.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sublora.yardsticks.bigram import LARGEST_TILT, STEPS_OCTAVES, Bigram, Tables
from sublora.yardsticks.unigram import Unigram

ROUNDS = 6
FIRST_ENTRY_BITS = 8.0
CONTEXT_BITS = 6.0
"""Reckoned for the gap to a context and for the mark that ends its table."""

SMALLEST_SHARE = 1e-9
"""Of what is not listed, so that no factor is 0."""

PRIOR_TARGETS = 4.0
"""Successors drawn from the unigram that every context is reckoned to have had before the training split."""


@dataclass(frozen=True, eq=False)
class PairShares:
    """Statistics of the training split. Shapes: K contexts, L successors."""

    contexts_K: NDArray[np.int64]
    successors_L: NDArray[np.int64]
    shares_KL: NDArray[np.float64]
    """Of each pair among all targets."""
    context_shares_K: NDArray[np.float64]
    targets: int
    """Number of targets behind the shares."""


class BigramSearch:
    """Makes bigrams of any step and price from one set of statistics and one unigram.

    Shapes: P pairs that could be worth their bits at the lowest price, ordered as the message lists entries.
    """

    def __init__(self, pairs: PairShares, unigram: Unigram, lowest_price: float) -> None:
        self._unigram = unigram
        rank_V = np.argsort(unigram.ranking)
        u_L, ranks_L = np.exp(unigram.log_p_V)[pairs.successors_L], rank_V[pairs.successors_L]
        prior = PRIOR_TARGETS / pairs.targets
        columns_of_row, q_of_row = [], []
        for shares_L, context_share in zip(pairs.shares_KL, pairs.context_shares_K, strict=True):
            q_L = (shares_L + prior * u_L) / (context_share + prior)
            gain_L = context_share * (q_L * np.log2(q_L / u_L) - (q_L - u_L) / np.log(2.0))
            columns = np.flatnonzero(gain_L > lowest_price)
            columns = columns[np.argsort(ranks_L[columns])]
            columns_of_row.append(columns)
            q_of_row.append(q_L[columns])
        context_ranks_K = rank_V[pairs.contexts_K]
        order = np.argsort(context_ranks_K)
        self._weight_K, self._context_ranks_K = pairs.context_shares_K[order], context_ranks_K[order]
        columns_P = np.concatenate([columns_of_row[k] for k in order])
        self._q_P = np.concatenate([q_of_row[k] for k in order])
        self._rows_P = np.repeat(np.arange(len(order)), [len(columns_of_row[k]) for k in order])
        self._u_P, self._ranks_P = u_L[columns_P], ranks_L[columns_P]
        # Pairs of one kind: successors whose ranks have equally many binary digits.
        self._kinds_P = np.frexp(self._ranks_P + 1.0)[1]
        self._kind_sizes = np.bincount(np.frexp(ranks_L + 1.0)[1])

    def bigram(self, step_index: int, price: float) -> Bigram:
        """The bigram whose tables are worth `price` bits per token of loss for each bit of message."""
        step, rows_P, weight_P = STEPS_OCTAVES[step_index], self._rows_P, self._weight_K[self._rows_P]
        contexts = len(self._weight_K)
        scale_K, bits_P = np.ones(contexts), np.full(len(rows_P), FIRST_ENTRY_BITS)
        for _ in range(ROUNDS):
            expected_P = scale_K[rows_P] * self._u_P
            tilts_P = np.clip(np.rint(np.log2(self._q_P / expected_P) / step), -LARGEST_TILT, LARGEST_TILT)
            excess_P = np.exp2(step * tilts_P) - 1.0
            gains_P = weight_P * (self._q_P * step * tilts_P - expected_P * excess_P / np.log(2.0))
            listed_P = gains_P > price * bits_P
            z_K = 1.0 + np.bincount(rows_P, listed_P * self._u_P * excess_P, minlength=contexts)
            unlisted_q_K = 1.0 - np.bincount(rows_P, listed_P * self._q_P, minlength=contexts)
            unlisted_u_K = 1.0 - np.bincount(rows_P, listed_P * self._u_P, minlength=contexts)
            scale_K = np.maximum(unlisted_q_K, SMALLEST_SHARE) / np.maximum(unlisted_u_K, SMALLEST_SHARE)
            value_K = np.bincount(rows_P, listed_P * weight_P * self._q_P * step * tilts_P, minlength=contexts)
            cost_K = np.bincount(rows_P, listed_P * bits_P, minlength=contexts) + CONTEXT_BITS
            listed_P &= (value_K - self._weight_K * np.log2(z_K) > price * cost_K)[rows_P] & (tilts_P != 0)
            bits_P = self._entry_bits(listed_P, tilts_P.astype(np.int64))
        tables = Tables(
            self._context_ranks_K[rows_P[listed_P]], self._ranks_P[listed_P], tilts_P[listed_P].astype(np.int64)
        )
        return Bigram(self._unigram, step_index, tables)

    def _entry_bits(self, listed_P: NDArray[np.bool_], tilts_P: NDArray[np.int64]) -> NDArray[np.float64]:
        """What one more entry of each pair's kind and tilt would cost, given what is listed; shape (P,)."""
        kind_counts = np.bincount(self._kinds_P[listed_P], minlength=len(self._kind_sizes))
        tables = len(np.unique(self._rows_P[listed_P]))
        density = (kind_counts + 0.5) / (tables * self._kind_sizes + 1.0)
        density = np.minimum(density, 0.5)
        tilt_counts = 0.5 + np.bincount(tilts_P[listed_P] + LARGEST_TILT, minlength=2 * LARGEST_TILT + 1)
        tilt_bits = -np.log2(tilt_counts / tilt_counts.sum())
        return np.log2((1.0 - density) / density)[self._kinds_P] + tilt_bits[tilts_P + LARGEST_TILT]
