"""Bit strings: writer, reader, and Elias' prefix-free codes of the positive integers.

Source of the codes: P. Elias, Universal codeword sets and representations of the integers, IEEE Transactions on
Information Theory 21 (1975), 194-203.
"""

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint8]
"""Zeros and ones, most significant bit first."""
FEW_BITS = 64


def index_bits(count: int) -> int:
    """Return ceil(log2 count), the bits of an index into `count` alternatives that both sides know.

    ValueError if count < 1.
    """
    if count < 1:
        raise ValueError(f"an index needs at least one alternative, got {count}")
    return (count - 1).bit_length()


def elias_gamma_bits(value: int) -> int:
    """Return the length of the gamma code of value >= 1: 2 floor(log2 value) + 1 bits."""
    return 2 * value.bit_length() - 1


def elias_delta_bits(value: int) -> int:
    """Return the length of the delta code of value >= 1.

    It has floor(log2 value) + 2 floor(log2(floor(log2 value) + 1)) + 1 bits.
    """
    return value.bit_length() - 1 + elias_gamma_bits(value.bit_length())


def uint_to_bits(value: int, width: int) -> Bits:
    """Return the `width` bits of an integer, 0 <= value < 2^width; ValueError if it does not fit."""
    if not 0 <= value < 1 << width:
        raise ValueError(f"{value} does not fit into {width} unsigned bits")
    padded = -width % 8
    return np.unpackbits(np.frombuffer(value.to_bytes((width + padded) // 8, "big"), dtype=np.uint8))[padded:]


def bits_to_uint(bits: Bits) -> int:
    """Return the integer that the bits spell, 0 for no bits."""
    padded = np.concatenate([np.zeros(-len(bits) % 8, dtype=np.uint8), bits])
    return int.from_bytes(np.packbits(padded).tobytes(), "big")


def bits_to_bytes(bits: Bits) -> bytes:
    """Return the bytes that hold the bits, the last byte padded with zeros."""
    return np.packbits(bits).tobytes()


def bytes_to_bits(data: bytes) -> Bits:
    """Return the bits of all bytes, 8 per byte."""
    return np.unpackbits(np.frombuffer(data, dtype=np.uint8))


class BitWriter:
    """Appends fields to a bit string; `bits()` returns everything written so far."""

    def __init__(self) -> None:
        self._parts: list[Bits] = []
        self.position = 0
        """Bits written so far."""

    def write_bits(self, bits: Bits) -> None:
        """Append bits, a vector of zeros and ones."""
        self._parts.append(np.asarray(bits, dtype=np.uint8))
        self.position += len(bits)

    def write_uint(self, value: int, width: int) -> None:
        """Append an integer in `width` bits; ValueError unless 0 <= value < 2^width."""
        self.write_bits(uint_to_bits(value, width))

    def write_elias_gamma(self, value: int) -> None:
        """Append the gamma code of value >= 1: floor(log2 value) zeros, then its binary digits.

        ValueError if value < 1.
        """
        if value < 1:
            raise ValueError(f"Elias codes start at 1, got {value}")
        self.write_uint(value, elias_gamma_bits(value))

    def write_elias_delta(self, value: int) -> None:
        """Append the delta code of value >= 1: the gamma code of its number of binary digits, then all but the first.

        ValueError if value < 1.
        """
        if value < 1:
            raise ValueError(f"Elias codes start at 1, got {value}")
        digits = value.bit_length()
        self.write_elias_gamma(digits)
        self.write_uint(value - (1 << (digits - 1)), digits - 1)

    def bits(self) -> Bits:
        """Return everything written so far."""
        return np.concatenate(self._parts) if self._parts else np.zeros(0, dtype=np.uint8)


class BitReader:
    """Reads fields from the front of a bit string and ignores what follows them.

    Every method raises ValueError when the string ends before the field does.
    """

    def __init__(self, bits: Bits) -> None:
        self._bits = np.asarray(bits, dtype=np.uint8)
        self.position = 0
        """Bits read so far."""

    def rest(self) -> Bits:
        """Return all bits that have not been read yet, without reading them."""
        return self._bits[self.position :]

    def read_bits(self, count: int) -> Bits:
        """Read the next `count` bits."""
        if count > len(self._bits) - self.position:
            raise ValueError(
                f"the bit string ends early: {count} more bits wanted at bit {self.position} of {len(self._bits)}"
            )
        self.position += count
        return self._bits[self.position - count : self.position]

    def read_uint(self, width: int) -> int:
        """Read an integer of `width` bits."""
        return bits_to_uint(self.read_bits(width))

    def read_elias_gamma(self) -> int:
        """Read a positive integer in Elias' gamma code."""
        # Look at a few bits first: the rest may be long, and few integers begin with that many zeros.
        rest = self.rest()
        ones = np.flatnonzero(rest[:FEW_BITS])
        if not len(ones):
            ones = np.flatnonzero(rest)
        if not len(ones):
            raise ValueError(f"the bit string ends early: no one after bit {self.position} of {len(self._bits)}")
        zeros = int(ones[0])
        self.position += zeros
        return self.read_uint(zeros + 1)

    def read_elias_delta(self) -> int:
        """Read a positive integer in Elias' delta code."""
        digits = self.read_elias_gamma()
        # Compare before a number of that length is made: 71 bits name a length of 2^35, 4 GB.
        if digits - 1 > len(self._bits) - self.position:
            raise ValueError(
                f"the bit string ends early: an integer of more digits than bits after bit {self.position}"
            )
        return (1 << (digits - 1)) + self.read_uint(digits - 1)
