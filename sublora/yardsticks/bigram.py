"""Coded bigram: contexts that are worth their bits tilt the unigram, all others keep it.

    p(s | c) = u(s) 2^(step r(c, s)) / Z_c,   Z_c = 1 + sum over the table of c of u(s) (2^(step r(c, s)) - 1),

where u is the coded unigram, and r(c, s) is a nonzero integer for the successors in the table of c and 0 for all
others. A context without a table has p(s | c) = u(s).

The message consists of the unigram's message, the step (index), and the tables, with tokens numbered by their rank in
the unigram. Each context with a table is sent as the gap from the context before it, and each successor in its table as
the gap from the one before it, followed by r. A gap g >= 1 is sent as its number of binary digits, under an adaptive
model that depends on the number of digits of the rank reached so far, and then the digits after the leading one, which
are equally probable; 0 digits end a table, and the list of contexts.

The choice of pairs in the message. Let w_c be the share of context c among all targets, and q(s | c) the successors'
shares there. A table with tilts t = step r lowers the loss by

    w_c (sum over s of q t - log2 Z_c),   Z_c = 1 + sum over s of u (2^t - 1).

Write x_c = 1 / Z_c for the factor on successors that are not listed. To first order in the change of Z_c, a single
pair gains w_c (q t - x_c u (2^t - 1) / ln 2), which is largest at 2^t = q / (x_c u). Given x_c, pairs do not influence
each other, and a pair is listed if its gain exceeds its price. The listed pairs determine x_c = (1 - q(listed)) /
(1 - u(listed)), and the frequencies of the kinds of entries determine the bits of an entry; a few rounds settle both. A
context keeps its table if the table's gain exceeds the price of all its bits.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sublora.yardsticks.adaptive_code import AdaptiveModel, MessageReader, SymbolWriter
from sublora.yardsticks.targets import PairShares, TargetBatch
from sublora.yardsticks.unigram import Unigram

STEPS_OCTAVES = (0.5, 1.0, 1.5, 2.0)
LARGEST_TILT = 24
"""The largest |r|."""

ROUNDS = 6
FIRST_ENTRY_BITS = 8.0
CONTEXT_BITS = 6.0
"""Estimated cost of the gap to a context and of the mark that ends its table, in bits."""

SMALLEST_SHARE = 1e-9
"""A lower limit for the share of what is not listed, so that no factor is 0."""

PRIOR_TARGETS = 4.0
"""Each context's shares are estimated as if this many more targets, distributed as the unigram, had followed it."""


@dataclass(frozen=True, eq=False)
class Tables:
    """The tables of all contexts, one entry per pair, sorted by context rank, then by successor rank.

    Shapes: E entries. Ranks are those of `Unigram.ranking`.
    """

    context_ranks_E: NDArray[np.int64]
    successor_ranks_E: NDArray[np.int64]
    tilts_E: NDArray[np.int64]
    """The tilts r, none of them 0."""


class _GapModels:
    """Models of a gap's number of binary digits, one per number of digits of the rank reached so far."""

    def __init__(self, vocab_size: int) -> None:
        self._sizes = vocab_size.bit_length() + 1
        self._models = [AdaptiveModel(self._sizes) for _ in range(self._sizes)]

    def write(self, writer: SymbolWriter, gap: int, rank: int) -> None:
        """Append a gap, 0 for the end, after `rank` ranks have been passed."""
        digits = gap.bit_length()
        writer.put(self._models[rank.bit_length()], digits)
        if digits > 1:
            writer.put_uniform(gap - (1 << (digits - 1)), 1 << (digits - 1))

    def read(self, reader: MessageReader, rank: int) -> int:
        """Read a gap, 0 for the end, after `rank` ranks have been passed."""
        digits = reader.get(self._models[rank.bit_length()])
        if digits < 2:
            return digits
        return (1 << (digits - 1)) + reader.get_uniform(1 << (digits - 1))


class _Lookup(NamedTuple):
    """What scoring needs, as natural logarithms; memory is that of the tables and a few numbers per token."""

    keys_E: NDArray[np.int64]
    """c V + s of each entry, sorted."""
    log_tilts_E: NDArray[np.float64]
    log_z_V: NDArray[np.float64]
    """ln Z of each context; 0 for contexts without a table."""
    log_u_V: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Bigram:
    """The probabilities that a message describes."""

    unigram: Unigram
    step_index: int
    tables: Tables

    @cached_property
    def _lookup(self) -> _Lookup:
        tables, ranking, log_u_V = self.tables, self.unigram.ranking, self.unigram.log_p_V
        contexts_E, successors_E = ranking[tables.context_ranks_E], ranking[tables.successor_ranks_E]
        log_tilts_E = np.log(2.0) * STEPS_OCTAVES[self.step_index] * tables.tilts_E
        excess_E = np.exp(log_u_V[successors_E]) * np.expm1(log_tilts_E)
        log_z_V = np.log1p(np.bincount(contexts_E, excess_E, minlength=len(ranking)))
        keys_E = contexts_E * len(ranking) + successors_E
        order = np.argsort(keys_E)
        return _Lookup(keys_E[order], log_tilts_E[order], log_z_V, log_u_V)

    def log_probabilities(self, batch: TargetBatch) -> NDArray[np.float64]:
        """Return the natural logarithm of each target's probability, shape (S,)."""
        keys_E, log_tilts_E, log_z_V, log_u_V = self._lookup
        log_p_S = log_u_V[batch.targets_S] - log_z_V[batch.contexts_S]
        if len(keys_E):
            keys_S = batch.contexts_S * len(log_u_V) + batch.targets_S
            places_S = np.minimum(np.searchsorted(keys_E, keys_S), len(keys_E) - 1)
            log_p_S += np.where(keys_E[places_S] == keys_S, log_tilts_E[places_S], 0.0)
        return log_p_S

    def write(self, writer: SymbolWriter) -> None:
        """Append the whole message."""
        self.unigram.write(writer)
        self.write_tables(writer)

    def write_tables(self, writer: SymbolWriter) -> None:
        """Append what the message holds after the unigram: the step and the tables."""
        vocab_size = len(self.unigram.levels_V)
        writer.put_uniform(self.step_index, len(STEPS_OCTAVES))
        # A new context ends the table before it; 0 also ends the list of contexts.
        context_gaps, successor_gaps = _GapModels(vocab_size), _GapModels(vocab_size)
        tilts = AdaptiveModel(2 * LARGEST_TILT)
        context, successor = -1, -1
        tables = self.tables
        for c, s, tilt in zip(
            tables.context_ranks_E.tolist(), tables.successor_ranks_E.tolist(), tables.tilts_E.tolist(), strict=True
        ):
            if c != context:
                if context >= 0:
                    successor_gaps.write(writer, 0, successor + 1)
                context_gaps.write(writer, c - context, context + 1)
                context, successor = c, -1
            successor_gaps.write(writer, s - successor, successor + 1)
            writer.put(tilts, _symbol_of_tilt(tilt))
            successor = s
        if context >= 0:
            successor_gaps.write(writer, 0, successor + 1)
        context_gaps.write(writer, 0, context + 1)

    @classmethod
    def read(cls, reader: MessageReader, vocab_size: int) -> "Bigram":
        """Read a message. ValueError if the bits are not one."""
        unigram = Unigram.read(reader, vocab_size)
        step_index = reader.get_uniform(len(STEPS_OCTAVES))
        context_gaps, successor_gaps = _GapModels(vocab_size), _GapModels(vocab_size)
        tilts = AdaptiveModel(2 * LARGEST_TILT)
        entries: list[tuple[int, int, int]] = []
        context = -1
        while gap := context_gaps.read(reader, context + 1):
            context, successor = _advanced(context, gap, vocab_size), -1
            while gap := successor_gaps.read(reader, successor + 1):
                successor = _advanced(successor, gap, vocab_size)
                entries.append((context, successor, _tilt_of_symbol(reader.get(tilts))))
        columns = np.array(entries, dtype=np.int64).reshape(-1, 3).T
        return cls(unigram, step_index, Tables(*columns))


def _advanced(rank: int, gap: int, vocab_size: int) -> int:
    """Return the rank that a gap leads to. ValueError beyond the vocabulary."""
    if rank + gap >= vocab_size:
        raise ValueError(f"a token of rank {rank + gap} in a vocabulary of {vocab_size}")
    return rank + gap


def _symbol_of_tilt(tilt: int) -> int:
    return tilt + LARGEST_TILT - (tilt > 0)


def _tilt_of_symbol(symbol: int) -> int:
    tilt = symbol - LARGEST_TILT
    return tilt + (tilt >= 0)


class BigramSearch:
    """Builds bigrams with any step and price from one set of statistics and one unigram.

    Shapes: P pairs that could be worth their bits at the lowest price, ordered as the message lists entries.
    """

    def __init__(self, pairs: PairShares, unigram: Unigram, lowest_price: float) -> None:
        self._unigram = unigram
        # Smooth each context's shares with the unigram, and keep the pairs that could be worth one bit at the lowest
        # price.
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
        # Order contexts and pairs as the message lists them.
        context_ranks_K = rank_V[pairs.contexts_K]
        order = np.argsort(context_ranks_K)
        self._weight_K, self._context_ranks_K = pairs.context_shares_K[order], context_ranks_K[order]
        columns_P = np.concatenate([columns_of_row[k] for k in order])
        self._q_P = np.concatenate([q_of_row[k] for k in order])
        self._rows_P = np.repeat(np.arange(len(order)), [len(columns_of_row[k]) for k in order])
        self._u_P, self._ranks_P = u_L[columns_P], ranks_L[columns_P]
        # Pairs of one kind are those whose successors' ranks have the same number of binary digits.
        self._kinds_P = np.frexp(self._ranks_P + 1.0)[1]
        self._kind_sizes = np.bincount(np.frexp(ranks_L + 1.0)[1])

    def bigram(self, step_index: int, price: float) -> Bigram:
        """Return the bigram in whose tables one bit of message is worth `price` bits per token of loss."""
        # Start with unscaled probabilities and a guessed price per entry.
        step, rows_P, weight_P = STEPS_OCTAVES[step_index], self._rows_P, self._weight_K[self._rows_P]
        contexts = len(self._weight_K)
        scale_K, bits_P = np.ones(contexts), np.full(len(rows_P), FIRST_ENTRY_BITS)
        for _ in range(ROUNDS):
            # Choose each pair's best tilt, and list the pair if its gain exceeds its price.
            expected_P = scale_K[rows_P] * self._u_P
            tilts_P = np.clip(np.rint(np.log2(self._q_P / expected_P) / step), -LARGEST_TILT, LARGEST_TILT)
            excess_P = np.exp2(step * tilts_P) - 1.0
            gains_P = weight_P * (self._q_P * step * tilts_P - expected_P * excess_P / np.log(2.0))
            listed_P = gains_P > price * bits_P
            # The factor on what is not listed follows from the listed pairs.
            z_K = 1.0 + np.bincount(rows_P, listed_P * self._u_P * excess_P, minlength=contexts)
            unlisted_q_K = 1.0 - np.bincount(rows_P, listed_P * self._q_P, minlength=contexts)
            unlisted_u_K = 1.0 - np.bincount(rows_P, listed_P * self._u_P, minlength=contexts)
            scale_K = np.maximum(unlisted_q_K, SMALLEST_SHARE) / np.maximum(unlisted_u_K, SMALLEST_SHARE)
            # Drop whole tables that are not worth their bits, then estimate the bits of an entry from the rest.
            value_K = np.bincount(rows_P, listed_P * weight_P * self._q_P * step * tilts_P, minlength=contexts)
            cost_K = np.bincount(rows_P, listed_P * bits_P, minlength=contexts) + CONTEXT_BITS
            listed_P &= (value_K - self._weight_K * np.log2(z_K) > price * cost_K)[rows_P] & (tilts_P != 0)
            bits_P = self._entry_bits(listed_P, tilts_P.astype(np.int64))
        tables = Tables(
            self._context_ranks_K[rows_P[listed_P]], self._ranks_P[listed_P], tilts_P[listed_P].astype(np.int64)
        )
        return Bigram(self._unigram, step_index, tables)

    def _entry_bits(self, listed_P: NDArray[np.bool_], tilts_P: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the bits of one more entry of each pair's kind and tilt, given the listed pairs; shape (P,)."""
        kind_counts = np.bincount(self._kinds_P[listed_P], minlength=len(self._kind_sizes))
        tables = len(np.unique(self._rows_P[listed_P]))
        density = (kind_counts + 0.5) / (tables * self._kind_sizes + 1.0)
        density = np.minimum(density, 0.5)
        tilt_counts = 0.5 + np.bincount(tilts_P[listed_P] + LARGEST_TILT, minlength=2 * LARGEST_TILT + 1)
        tilt_bits = -np.log2(tilt_counts / tilt_counts.sum())
        return np.log2((1.0 - density) / density)[self._kinds_P] + tilt_bits[tilts_P + LARGEST_TILT]
