"""Integers coded by models that learn from the integers before them.

Writer and reader keep the same counts and turn them into the same integer frequencies, so the reader follows the
writer exactly on every machine. A message whose number of symbols is fixed or announced is self-delimiting (see
`sublora.coding.range_coder`).
"""

import math
from typing import Protocol

import numpy as np

from sublora.coding.bits import Bits
from sublora.coding.range_coder import RangeDecoder, RangeEncoder, scale_frequencies

INCREMENT = 2
"""Counts start at 1 and grow by 2, the rule of Krichevsky and Trofimov (1981): a prior of 1/2 per symbol."""

MAX_TOTAL = 1 << 10
"""Counts are halved once their sum exceeds this, so that a model follows statistics that drift along the list."""


class AdaptiveModel:
    """Counts of the symbols 0 ... size - 1 seen so far."""

    def __init__(self, size: int) -> None:
        if not 1 <= size <= MAX_TOTAL // 4:
            raise ValueError(f"an adaptive model needs 1 to {MAX_TOTAL // 4} symbols, got {size}")
        self.counts = [1] * size
        self.total = size

    def learn(self, symbol: int) -> None:
        """Count a symbol."""
        self.counts[symbol] += INCREMENT
        self.total += INCREMENT
        if self.total > MAX_TOTAL:
            self.counts = [(count + 1) // 2 for count in self.counts]
            self.total = sum(self.counts)


class SymbolWriter(Protocol):
    """What messages are written with: real writers and counters of bits."""

    def put(self, model: AdaptiveModel, symbol: int) -> None:
        """Append a symbol under the model, which then counts it."""
        ...

    def put_uniform(self, value: int, size: int) -> None:
        """Append 0 <= value < size, all equally probable."""
        ...


class BitCounter:
    """A writer that only adds up the information content of its symbols, in `bits`."""

    def __init__(self) -> None:
        self.bits = 0.0

    def put(self, model: AdaptiveModel, symbol: int) -> None:
        self.bits += math.log2(model.total / model.counts[symbol])
        model.learn(symbol)

    def put_uniform(self, value: int, size: int) -> None:
        self.bits += math.log2(size)


DIGIT = 256
"""The base in which uniform values are coded digit by digit, so that no row of frequencies is long."""


def _uniform_sizes(size: int) -> list[int]:
    """Return the alphabets of a uniform value's digits, most significant first.

    Every digit except the first is uniform over DIGIT values, so a size that is not a multiple of a power of DIGIT is
    rounded up to one.
    """
    sizes = []
    while size > DIGIT:
        sizes.append(DIGIT)
        size = -(-size // DIGIT)
    return [size, *reversed(sizes)]


def _uniform(size: int) -> np.ndarray:
    return scale_frequencies(np.ones(size, dtype=np.int64))


class MessageWriter:
    """Writes symbols with the range coder; `finish()` returns the bits."""

    def __init__(self) -> None:
        self._encoder = RangeEncoder()

    def put(self, model: AdaptiveModel, symbol: int) -> None:
        self._encoder.encode([symbol], scale_frequencies(model.counts))
        model.learn(symbol)

    def put_uniform(self, value: int, size: int) -> None:
        if not 0 <= value < size:
            raise ValueError(f"{value} is not below {size}")
        sizes = _uniform_sizes(size)
        for place, digits in zip(reversed(range(len(sizes))), sizes, strict=True):
            self._encoder.encode([value // DIGIT**place % DIGIT], _uniform(digits))

    def finish(self) -> Bits:
        """Return the message of all symbols."""
        return self._encoder.finish()


class MessageReader:
    """Reads what MessageWriter wrote at the front of `bits` and ignores what follows. ValueError for damaged bits."""

    def __init__(self, bits: Bits) -> None:
        self._decoder = RangeDecoder(bits)

    def get(self, model: AdaptiveModel) -> int:
        """Read a symbol under the model, which then counts it."""
        symbol = int(self._decoder.decode(scale_frequencies(model.counts), 1)[0])
        model.learn(symbol)
        return symbol

    def get_uniform(self, size: int) -> int:
        """Read 0 <= value < size. ValueError for a value outside."""
        value = 0
        for digits in _uniform_sizes(size):
            value = value * DIGIT + int(self._decoder.decode(_uniform(digits), 1)[0])
        if value >= size:
            raise ValueError(f"a value of {value} where one below {size} is expected")
        return value

    def finish(self) -> int:
        """Return the length of the message in bits."""
        return self._decoder.finish()
