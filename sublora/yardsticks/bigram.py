"""Coded bigram: contexts that earn their bits tilt the unigram, all others keep it.

    p(s | c) = u(s) 2^(step r(c, s)) / Z_c,   Z_c = 1 + sum over the table of c of u(s) (2^(step r(c, s)) - 1),

u the coded unigram, r(c, s) a whole number other than 0 for the successors in the table of c and 0 for the rest. A
context without a table has p(s | c) = u(s).

The message is that of the unigram, the step (index), and then, tokens counted by their rank in the unigram, for each
context with a table the gap to it from the one before, and in its table for each successor the gap from the one
before and r. A gap of g >= 1 is its number of binary digits, under a model that learns while it codes and that depends
on the digits of the rank reached so far, then the digits after the leading one, which are equally probable; 0 digits
end a table, and the list of contexts.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sublora.yardsticks.adaptive_code import AdaptiveModel, MessageReader, SymbolWriter
from sublora.yardsticks.documents import TargetBatch
from sublora.yardsticks.unigram import Unigram

STEPS_OCTAVES = (0.5, 1.0, 1.5, 2.0)
LARGEST_TILT = 24
"""|r| is at most this."""


@dataclass(frozen=True, eq=False)
class Tables:
    """The tables of all contexts, one entry per pair, sorted by context rank, then by successor rank.

    Shapes: E entries. Ranks are those of `Unigram.ranking`.
    """

    context_ranks_E: NDArray[np.int64]
    successor_ranks_E: NDArray[np.int64]
    tilts_E: NDArray[np.int64]
    """r, not 0."""


class _GapModels:
    """One model of a gap's number of binary digits for each number of digits of the rank reached so far."""

    def __init__(self, vocab_size: int) -> None:
        self._sizes = vocab_size.bit_length() + 1
        self._models = [AdaptiveModel(self._sizes) for _ in range(self._sizes)]

    def write(self, writer: SymbolWriter, gap: int, rank: int) -> None:
        """gap: 0 for the end; rank: number of ranks passed so far."""
        digits = gap.bit_length()
        writer.put(self._models[rank.bit_length()], digits)
        if digits > 1:
            writer.put_uniform(gap - (1 << (digits - 1)), 1 << (digits - 1))

    def read(self, reader: MessageReader, rank: int) -> int:
        digits = reader.get(self._models[rank.bit_length()])
        if digits < 2:
            return digits
        return (1 << (digits - 1)) + reader.get_uniform(1 << (digits - 1))


class _Lookup(NamedTuple):
    """What scoring needs, natural logarithms; memory is that of the tables and a few numbers per token."""

    keys_E: NDArray[np.int64]
    """c V + s of each entry, sorted."""
    log_tilts_E: NDArray[np.float64]
    log_z_V: NDArray[np.float64]
    """ln Z of each context, 0 without a table."""
    log_u_V: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Bigram:
    """The probabilities that the message gives."""

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
        keys_E, log_tilts_E, log_z_V, log_u_V = self._lookup
        log_p_S = log_u_V[batch.targets_S] - log_z_V[batch.contexts_S]
        if len(keys_E):
            keys_S = batch.contexts_S * len(log_u_V) + batch.targets_S
            places_S = np.minimum(np.searchsorted(keys_E, keys_S), len(keys_E) - 1)
            log_p_S += np.where(keys_E[places_S] == keys_S, log_tilts_E[places_S], 0.0)
        return log_p_S

    def write(self, writer: SymbolWriter) -> None:
        self.unigram.write(writer)
        self.write_tables(writer)

    def write_tables(self, writer: SymbolWriter) -> None:
        """What the message holds after the unigram."""
        vocab_size = len(self.unigram.levels_V)
        writer.put_uniform(self.step_index, len(STEPS_OCTAVES))
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
        """ValueError if the bits are no message."""
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
    if rank + gap >= vocab_size:
        raise ValueError(f"a token of rank {rank + gap} in a vocabulary of {vocab_size}")
    return rank + gap


def _symbol_of_tilt(tilt: int) -> int:
    return tilt + LARGEST_TILT - (tilt > 0)


def _tilt_of_symbol(symbol: int) -> int:
    tilt = symbol - LARGEST_TILT
    return tilt + (tilt >= 0)
