"""Coded unigram: one probability per token, written as a coarsely quantized logarithm.

    p_j = 2^(-step l_j) / Z,   l_j the level of token j, for tokens more frequent than the floor,
    p_j = 2^(-h / 2) / Z       for all tokens at the floor, h their common depth in half octaves.

Level 0 belongs to the most frequent token, and Z makes the sum 1. The message, under adaptive models, holds the step
(index), the number of levels K and the depth h, then for each token in the order of ids its level, or K for the floor,
with one model after a token at the floor and another after any other token (rare tokens come in runs). Its length
follows from its content and from V, which the reader knows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sublora.yardsticks.adaptive_code import AdaptiveModel, MessageReader, SymbolWriter
from sublora.yardsticks.targets import TargetBatch

STEPS_OCTAVES = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
LEVEL_COUNTS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32, 48, 64)
FLOOR_DEPTHS = 128
"""Depths of the floor: half octaves below the most frequent token."""


@dataclass(frozen=True, eq=False)
class Unigram:
    """Token probabilities as a message describes them."""

    step_index: int
    levels_index: int
    floor_depth: int
    levels_V: NDArray[np.int64]
    """0 ... LEVEL_COUNTS[levels_index] per token; the largest value is the floor."""

    @cached_property
    def log_p_V(self) -> NDArray[np.float64]:
        """Natural logarithms of the probabilities, shape (V,)."""
        depths = STEPS_OCTAVES[self.step_index] * self.levels_V
        depths_V = np.where(self.levels_V == LEVEL_COUNTS[self.levels_index], 0.5 * self.floor_depth, depths)
        # The smallest probability is about 2^-300, hence no underflow.
        return -np.log(2.0) * depths_V - np.log(np.exp2(-depths_V).sum())

    def log_probabilities(self, batch: TargetBatch) -> NDArray[np.float64]:
        """Return the natural logarithm of each target's probability, shape (S,)."""
        return self.log_p_V[batch.targets_S]

    def write(self, writer: SymbolWriter) -> None:
        """Append the whole message."""
        floor = LEVEL_COUNTS[self.levels_index]
        writer.put_uniform(self.step_index, len(STEPS_OCTAVES))
        writer.put_uniform(self.levels_index, len(LEVEL_COUNTS))
        writer.put_uniform(self.floor_depth, FLOOR_DEPTHS)
        models = (AdaptiveModel(floor + 1), AdaptiveModel(floor + 1))
        before = floor
        for level in self.levels_V.tolist():
            writer.put(models[before == floor], level)
            before = level

    @classmethod
    def read(cls, reader: MessageReader, vocab_size: int) -> "Unigram":
        """Read a message. ValueError if the bits are not one."""
        step_index = reader.get_uniform(len(STEPS_OCTAVES))
        levels_index = reader.get_uniform(len(LEVEL_COUNTS))
        floor_depth = reader.get_uniform(FLOOR_DEPTHS)
        floor = LEVEL_COUNTS[levels_index]
        models = (AdaptiveModel(floor + 1), AdaptiveModel(floor + 1))
        levels_V = np.empty(vocab_size, dtype=np.int64)
        before = floor
        for j in range(vocab_size):
            before = levels_V[j] = reader.get(models[before == floor])
        return cls(step_index, levels_index, floor_depth, levels_V)

    @cached_property
    def ranking(self) -> NDArray[np.int64]:
        """Token ids from most to least probable, smaller ids first among equals, shape (V,); known to the decoder."""
        return np.argsort(self.levels_V, kind="stable")


def quantized(shares_V: NDArray[np.float64], step_index: int, levels_index: int, unseen_share: float) -> Unigram:
    """Return the unigram of this resolution nearest to the tokens' shares of the targets, shape (V,).

    unseen_share: the smallest share that all tokens at the floor together can have.
    """
    floor, largest = LEVEL_COUNTS[levels_index], shares_V.max()
    with np.errstate(divide="ignore"):
        depths_V = np.log2(largest) - np.log2(shares_V)
    levels_V = np.minimum(np.rint(depths_V / STEPS_OCTAVES[step_index]), floor).astype(np.int64)
    at_floor = levels_V == floor
    floor_share = max(shares_V[at_floor].sum(), unseen_share) / max(np.count_nonzero(at_floor), 1)
    floor_depth = round(2.0 * np.log2(largest / floor_share))
    return Unigram(step_index, levels_index, min(max(floor_depth, 0), FLOOR_DEPTHS - 1), levels_V)


def candidates(shares_V: NDArray[np.float64], n_units: int) -> Iterator[Unigram]:
    """Yield the unigram at every resolution. The floor gets at least half of one unit's weight."""
    for step_index in range(len(STEPS_OCTAVES)):
        for levels_index in range(len(LEVEL_COUNTS)):
            yield quantized(shares_V, step_index, levels_index, 0.5 / n_units)
