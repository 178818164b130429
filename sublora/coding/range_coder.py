"""Range coding of integer symbols with integer frequencies, where the message ends at the first bit that suffices.

The arithmetic is that of constriction's range coder (words of 32 bits, a state of 64, probabilities in units of 2^-24).
This module adds two things.

**Exact frequencies.** A model is a row of integers, each at least 1, that sum to TOTAL = 2^24. constriction takes
floating-point weights p_0 ... p_{n-1} and makes the cumulative frequencies

    c_i = floor((p_0 + ... + p_{i-1}) * (2^24 - n) / (p_0 + ... + p_{n-1})) + i.

Given p_i = f_i - 1, all partial sums are integers below 2^24, which float32 holds exactly in any order of summation,
the quotient is exactly 1, and so c_i = f_0 + ... + f_{i-1}. No operation rounds, hence every machine codes with the
same integers. `tests/test_coding_range_coder.py` compares the result with arbitrary-precision integers.

**A self-delimiting end.** The symbols shrink [0, 1) to an interval [low, high); every real number in it, read as a
stream of bits, decodes to the same symbols. The message is the shortest bit string t of length L with
[t 2^-L, (t+1) 2^-L) inside [low, high): whatever follows it, the stream stays in the interval. The message is therefore
self-delimiting, and no length has to be charged. Messages of equally many symbols are prefix-free (their intervals are
disjoint), and L < log2(1 / (high - low)) + 2.
"""

from typing import NamedTuple

import constriction
import numpy as np
from numpy.typing import ArrayLike, NDArray

from sublora.coding.bits import Bits, uint_to_bits

PRECISION_BITS = 24
TOTAL = 1 << PRECISION_BITS
"""Sum of the frequencies of a model."""

WORD_BITS = 32
STATE_BITS = 64
STATE_MASK = (1 << STATE_BITS) - 1
BLOCK_FLAGS = 1 << 18
"""Flags whose frequencies are in memory at once."""
NO_MESSAGE = "these bits are not a range-coded message of this model"

_FAMILY = constriction.stream.model.Categorical(perfect=False)


def scale_frequencies(counts: ArrayLike) -> NDArray[np.int64]:
    """Return frequencies (each >= 1, sum TOTAL) nearly proportional to positive integer counts, by integer arithmetic.

    The few units lost by rounding down go to the first of the largest counts. ValueError for other counts.
    """
    counts = np.asarray(counts, dtype=np.int64)
    if counts.ndim != 1 or not len(counts) or counts.min() < 1:
        raise ValueError("counts must be a row of positive integers")
    if counts.sum() > TOTAL or len(counts) > TOTAL // 2:
        raise ValueError(f"counts must sum to at most {TOTAL}, over at most {TOTAL // 2} symbols")
    frequencies = 1 + counts * (TOTAL - len(counts)) // counts.sum()
    frequencies[np.argmax(counts)] += TOTAL - frequencies.sum()
    return frequencies


class AdaptiveFlag(NamedTuple):
    """A model of flags that counts what it has seen: P(one) is near ones / total.

    Both counts are in units of 1 / unit flags and grow by `unit` with each flag, `ones` with each one.
    """

    ones: int
    total: int
    unit: int

    def after(self, flags: int, ones: int) -> "AdaptiveFlag":
        """Return the model after that many flags, that many of them ones."""
        return AdaptiveFlag(self.ones + self.unit * ones, self.total + self.unit * flags, self.unit)

    def frequencies_of_one(self, flags: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the integer frequency of a one, from 1 to TOTAL - 1, before each of these flags; shape (flags,)."""
        seen = np.arange(len(flags), dtype=np.int64)
        ones = self.ones + self.unit * (np.cumsum(flags, dtype=np.int64) - flags)
        return 1 + ones * (TOTAL - 2) // (self.total + self.unit * seen)


def flag_frequencies(ones: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the frequencies of 0 and 1, shape (d, 2), given those of 1, shape (d,)."""
    return np.stack([TOTAL - ones, ones], axis=1)


def _check(frequencies: ArrayLike) -> NDArray[np.int64]:
    frequencies = np.asarray(frequencies)
    if not np.issubdtype(frequencies.dtype, np.integer) or frequencies.ndim not in (1, 2) or not frequencies.shape[-1]:
        raise ValueError("frequencies must be integers of shape (alphabet) or (symbols, alphabet)")
    if frequencies.size and (frequencies.min() < 1 or (frequencies.sum(axis=-1, dtype=np.int64) != TOTAL).any()):
        raise ValueError(f"frequencies must be at least 1 and sum to {TOTAL}")
    return frequencies


def _weights(frequencies: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the weights that constriction turns into exactly these frequencies (see the module's docstring)."""
    return np.ascontiguousarray(frequencies - 1, dtype=np.float32)


class RangeEncoder:
    """Encodes symbols batch by batch; `finish()` returns the bits."""

    def __init__(self) -> None:
        self._encoder = constriction.stream.queue.RangeEncoder()

    def encode(self, symbols: ArrayLike, frequencies: ArrayLike) -> None:
        """Append symbols to the message.

        Args:
            symbols: integers in [0, alphabet), shape (d,).
            frequencies: integers >= 1 with sum TOTAL; shape (alphabet,) for all symbols, or (d, alphabet) with one row
                per symbol.

        Raises:
            ValueError: symbols outside the alphabet, or frequencies that break the rule above.
        """
        # Check the arguments; one symbol that is certain takes no bits.
        frequencies = _check(frequencies)
        symbols = np.asarray(symbols)
        alphabet = frequencies.shape[-1]
        if symbols.ndim != 1 or (frequencies.ndim == 2 and len(frequencies) != len(symbols)):
            raise ValueError("symbols must have shape (d,) and a frequency row each, or one row for all")
        if not len(symbols):
            return
        if not np.issubdtype(symbols.dtype, np.integer) or symbols.min() < 0 or symbols.max() >= alphabet:
            raise ValueError(f"symbols must be integers from 0 to {alphabet - 1}")
        if alphabet == 1:
            return
        # constriction takes a family of models for many rows, and one model for a single row.
        symbols = np.ascontiguousarray(symbols, dtype=np.int32)
        weights = _weights(frequencies)
        if weights.ndim == 2:
            self._encoder.encode(symbols, _FAMILY, weights)
        else:
            self._encoder.encode(symbols, constriction.stream.model.Categorical(weights, perfect=False))

    def encode_flags(self, flags: NDArray[np.integer], adaptive: AdaptiveFlag) -> None:
        """Append flags, zeros and ones, whose frequencies adapt after each one."""
        for start in range(0, len(flags), BLOCK_FLAGS):
            block = flags[start : start + BLOCK_FLAGS]
            self.encode(block, flag_frequencies(adaptive.frequencies_of_one(block)))
            adaptive = adaptive.after(len(block), int(np.count_nonzero(block)))

    def state(self) -> tuple[int, tuple[int, int]]:
        """Return the words before the state, and the state: the interval's lower end modulo 2^64, and its width."""
        position, (low, width) = self._encoder.pos()
        return position, (low, width)

    def finish(self) -> Bits:
        """Return the shortest bits every continuation of which decodes to the symbols; no bits for no symbols."""
        if self._encoder.is_empty():
            return np.zeros(0, dtype=np.uint8)
        position, (low_state, width) = self._encoder.pos()
        window = WORD_BITS * position + STATE_BITS
        # constriction's own message is some point of the interval. It gives the digits of `low` above the state, which
        # hold the carries: low <= point < low + 2^64 and low = low_state modulo 2^64.
        words = self._encoder.get_compressed()
        point = int.from_bytes(words.astype(">u4").tobytes(), "big") << (window - WORD_BITS * len(words))
        low = point - ((point - low_state) & ((1 << STATE_BITS) - 1))
        # 2^(window - L) <= width is necessary; one more bit always suffices.
        length = window - width.bit_length() + 1
        while True:
            shift = window - length
            prefix = -(-low >> shift)
            if (prefix + 1) << shift <= low + width:
                return uint_to_bits(prefix, length)
            length += 1


class RangeDecoder:
    """Decodes what RangeEncoder wrote at the front of `bits`, whatever follows it."""

    def __init__(self, bits: Bits) -> None:
        self._bits = np.asarray(bits, dtype=np.uint8)
        padded = np.concatenate([self._bits, np.zeros(-len(self._bits) % WORD_BITS, dtype=np.uint8)])
        self._words = np.packbits(padded).view(">u4").astype(np.uint32)
        self._decoder = constriction.stream.queue.RangeDecoder(self._words)
        # Encoding the decoded symbols again shows where the message ended.
        self._mirror = RangeEncoder()

    def decode(self, frequencies: ArrayLike, count: int | None = None) -> NDArray[np.int32]:
        """Decode the next symbols: one per row of (d, alphabet) frequencies, or `count` with one row (alphabet,).

        ValueError if the bits are not a message under these frequencies, or if a single row comes without a count.
        """
        frequencies = _check(frequencies)
        count = len(frequencies) if frequencies.ndim == 2 else count
        if count is None or count < 0:
            raise ValueError("a single row of frequencies needs the count of symbols")
        if not count or frequencies.shape[-1] == 1:
            return np.zeros(count, dtype=np.int32)
        # constriction reports an impossible message by a failed assertion.
        weights = _weights(frequencies)
        try:
            if weights.ndim == 2:
                symbols = self._decoder.decode(_FAMILY, weights)
            else:
                symbols = self._decoder.decode(constriction.stream.model.Categorical(weights, perfect=False), count)
        except AssertionError:
            raise ValueError(NO_MESSAGE) from None
        self._mirror.encode(symbols, frequencies)
        return symbols

    def decode_flags(self, adaptive: "AdaptiveFlag", count: int) -> NDArray[np.uint8]:
        """Decode the next `count` symbols of the alphabet {0, 1}, whose frequencies adapt after each one.

        This is constriction's decoder in whole numbers of Python: a call of the library for each flag would take three
        times as long. ValueError as in `decode`.
        """
        # The state: the width of the interval, and how far above its lower end the message lies.
        position, (low, width) = self._mirror.state()
        words = self._words[position:].tolist()
        words += [0] * (2 - len(words))
        offset = ((words[0] << WORD_BITS | words[1]) - low) & STATE_MASK
        flags, read, ones, total = bytearray(count), 2, adaptive.ones, adaptive.total
        for index in range(count):
            unit = width >> PRECISION_BITS
            zeros_width = unit * (TOTAL - 1 - ones * (TOTAL - 2) // total)
            if offset < zeros_width:
                width = zeros_width
            else:
                offset -= zeros_width
                width = (unit << PRECISION_BITS) - zeros_width
                if offset >= width:
                    raise ValueError(NO_MESSAGE)
                flags[index] = 1
                ones += adaptive.unit
            total += adaptive.unit
            if width < 1 << WORD_BITS:
                width <<= WORD_BITS
                offset = offset << WORD_BITS | (words[read] if read < len(words) else 0)
                read += 1
        # Encode the same flags, and let constriction go on from there; beyond the last word there are zeros.
        decoded = np.frombuffer(flags, dtype=np.uint8)
        self._mirror.encode_flags(decoded, adaptive)
        position, state = self._mirror.state()
        self._decoder.seek(min(position, len(self._words)), state)
        return decoded

    def finish(self) -> int:
        """Return the length of the message in bits; all its symbols must have been decoded.

        ValueError if these bits are not what RangeEncoder writes for the decoded symbols.
        """
        message = self._mirror.finish()
        if not np.array_equal(message, self._bits[: len(message)]):
            raise ValueError("these bits are not a range-coded message of this model, or they end early")
        return len(message)
