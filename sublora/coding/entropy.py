"""The entropy scheme: integer multiples of a step, coded with a model that adapts while it codes.

w_i = k_i * step, zero-centred. The step is one of 1,024 values that are exact in binary, 16 to an octave; near the
best step the message's value hardly depends on it, so a finer grid would only cost bits. The model of the integers is
in `magnitudes`.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sublora.coding.bits import BitReader, BitWriter
from sublora.coding.magnitudes import (
    MAX_MAGNITUDE,
    check_symbols,
    decode_magnitudes,
    encode_magnitudes,
    ideal_bits,
    read_signs_and_excesses,
    write_signs_and_excesses,
)
from sublora.coding.plain import check_vector
from sublora.coding.range_coder import RangeDecoder, RangeEncoder

NAME = "entropy"
STEP_BITS = 10
STEPS_PER_OCTAVE = 16
SMALLEST_STEP = 2.0**-40
LARGEST_STEP = SMALLEST_STEP * 2.0**63 * (2 - 1 / STEPS_PER_OCTAVE)


def step_of(index: int) -> float:
    """Return the step with this index: a mantissa of 4 bits times a power of two.

    ValueError unless 0 <= index < 1024.
    """
    if not 0 <= index < 1 << STEP_BITS:
        raise ValueError(f"a step's index lies between 0 and {(1 << STEP_BITS) - 1}, got {index}")
    octave, sixteenth = divmod(index, STEPS_PER_OCTAVE)
    return SMALLEST_STEP * 2.0**octave * (1 + sixteenth / STEPS_PER_OCTAVE)


def nearest_step_index(step: float) -> int:
    """Return the index of the grid's step nearest to `step`; ValueError outside the grid."""
    if not SMALLEST_STEP <= step <= LARGEST_STEP:
        raise ValueError(f"a step lies between {SMALLEST_STEP:g} and {LARGEST_STEP:g}, got {step:g}")
    mantissa, exponent = math.frexp(step / SMALLEST_STEP)
    return (exponent - 1) * STEPS_PER_OCTAVE + round((2 * mantissa - 1) * STEPS_PER_OCTAVE)


@dataclass(frozen=True, eq=False)
class EntropyWeights:
    """A quantized w: int64 `symbols` of shape (d,), and the index of their step."""

    symbols: NDArray[np.int64]
    step_index: int

    def __post_init__(self) -> None:
        check_symbols(self.symbols)
        step_of(self.step_index)

    @property
    def step(self) -> float:
        """The quantization step."""
        return step_of(self.step_index)

    def values(self) -> NDArray[np.float32]:
        """Return the vector that every decoder rebuilds, float32 of shape (d,): symbol times step, rounded once."""
        return (self.symbols * self.step).astype(np.float32)


def quantize_entropy(weights: ArrayLike, step: float) -> EntropyWeights:
    """Round w, shape (d,), to the nearest multiples of the step, which is first snapped to its grid.

    ValueError if w is not finite, the step is outside the grid, or a multiple is above 2^31 - 1.
    """
    weights = check_vector(weights)
    index = nearest_step_index(step)
    multiples = np.rint(weights / step_of(index))
    if np.abs(multiples).max() > MAX_MAGNITUDE:
        raise ValueError(f"w reaches {np.abs(multiples).max():g} steps, at most {MAX_MAGNITUDE}; choose a larger step")
    return EntropyWeights(multiples.astype(np.int64), index)


def ideal_message_bits(weights: EntropyWeights) -> float:
    """Return the bits of the message without writing it: the step, and the information content of the symbols.

    The written message has up to 2 bits more, which make it self-delimiting, and about 1e-4 bits more per flag.
    """
    return STEP_BITS + ideal_bits(weights.symbols)


def write_entropy(weights: EntropyWeights, budget: int, writer: BitWriter) -> dict[str, int]:
    """Append step and symbols and return the bits of each. ValueError if there are not `budget` symbols."""
    if len(weights.symbols) != budget:
        raise ValueError(f"symbols must have shape ({budget},), got {weights.symbols.shape}")
    start = writer.position
    writer.write_uint(weights.step_index, STEP_BITS)
    after_step = writer.position
    encoder = RangeEncoder()
    encode_magnitudes(encoder, np.abs(weights.symbols))
    writer.write_bits(encoder.finish())
    write_signs_and_excesses(writer, weights.symbols)
    return {"codebook": after_step - start, "symbols": writer.position - after_step}


def read_entropy(budget: int, reader: BitReader) -> tuple[EntropyWeights, dict[str, int]]:
    """Invert `write_entropy`. ValueError if the bits are not such a message."""
    start = reader.position
    step_index = reader.read_uint(STEP_BITS)
    after_step = reader.position
    decoder = RangeDecoder(reader.rest())
    magnitudes = decode_magnitudes(decoder, budget)
    reader.read_bits(decoder.finish())
    weights = EntropyWeights(read_signs_and_excesses(reader, magnitudes), step_index)
    return weights, {"codebook": after_step - start, "symbols": reader.position - after_step}
