"""The entropy scheme: integer multiples of a step, coded with a model that learns while it codes.

w_i = k_i * step, zero-centred. The step is one of 1,024 values that are exact in binary, 16 to an octave; near the
best step the message's value hardly depends on it, so a finer grid would only cost bits. Coefficients may come in
segments (w_A, w_B): then either one step serves all or each has its own, and the model learns from all of them
together or from each alone, whichever takes fewer bits. Both choices are flags in the message. The model of the
integers is in `magnitudes`.
"""

import math
from collections.abc import Sequence
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
    """The step with this index, 0 <= index < 1024: a mantissa of 4 bits and an exponent."""
    if not 0 <= index < 1 << STEP_BITS:
        raise ValueError(f"a step's index lies between 0 and {(1 << STEP_BITS) - 1}, got {index}")
    octave, sixteenth = divmod(index, STEPS_PER_OCTAVE)
    return SMALLEST_STEP * 2.0**octave * (1 + sixteenth / STEPS_PER_OCTAVE)


def nearest_step_index(step: float) -> int:
    """Index of the step of the grid nearest to `step`; ValueError outside the grid."""
    if not SMALLEST_STEP <= step <= LARGEST_STEP:
        raise ValueError(f"a step lies between {SMALLEST_STEP:g} and {LARGEST_STEP:g}, got {step:g}")
    mantissa, exponent = math.frexp(step / SMALLEST_STEP)
    return (exponent - 1) * STEPS_PER_OCTAVE + round((2 * mantissa - 1) * STEPS_PER_OCTAVE)


@dataclass(frozen=True, eq=False)
class EntropyWeights:
    """A quantized w: int64 `symbols` of shape (d,), and for each segment its length and the index of its step."""

    symbols: NDArray[np.int64]
    step_indices: tuple[int, ...]
    segment_lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        check_symbols(self.symbols)
        if len(self.step_indices) != len(self.segment_lengths):
            raise ValueError(f"{len(self.segment_lengths)} segments need as many steps, got {len(self.step_indices)}")
        if min(self.segment_lengths) < 1 or sum(self.segment_lengths) != len(self.symbols):
            raise ValueError(f"segments of {self.segment_lengths} coefficients do not make {len(self.symbols)}")
        for index in self.step_indices:
            step_of(index)

    def values(self) -> NDArray[np.float32]:
        """The vector every decoder rebuilds, float32 of shape (d,): symbol times step, rounded once."""
        steps = np.repeat([step_of(index) for index in self.step_indices], self.segment_lengths)
        return (self.symbols * steps).astype(np.float32)

    def segments(self) -> list[NDArray[np.int64]]:
        return np.split(self.symbols, np.cumsum(self.segment_lengths)[:-1])


def step_indices_of(steps: float | Sequence[float], segment_lengths: Sequence[int]) -> tuple[int, ...]:
    """Grid indices, one a segment, of one step for all segments or of one for each."""
    steps = [steps] * len(segment_lengths) if np.ndim(steps) == 0 else list(steps)
    if len(steps) != len(segment_lengths):
        raise ValueError(f"{len(segment_lengths)} segments need one step or as many, got {len(steps)}")
    return tuple(nearest_step_index(float(step)) for step in steps)


def quantize_entropy(
    weights: ArrayLike, steps: float | Sequence[float], segment_lengths: Sequence[int] | None = None
) -> EntropyWeights:
    """Round w, shape (d,), to the nearest multiples of the steps (first snapped to their grid).

    Args:
        steps: one for all segments or one for each.
        segment_lengths: coefficients of each segment; None: a single segment.

    Raises:
        ValueError: w is not finite, a step is outside the grid, or a multiple is above 2^31 - 1.
    """
    weights = check_vector(weights)
    lengths = (len(weights),) if segment_lengths is None else tuple(segment_lengths)
    indices = step_indices_of(steps, lengths)
    if min(lengths) < 1 or sum(lengths) != len(weights):
        raise ValueError(f"segments of {lengths} coefficients do not make {len(weights)}")
    multiples = np.rint(weights / np.repeat([step_of(index) for index in indices], lengths))
    if np.abs(multiples).max() > MAX_MAGNITUDE:
        raise ValueError(f"w reaches {np.abs(multiples).max():g} steps, at most {MAX_MAGNITUDE}; choose a larger step")
    return EntropyWeights(multiples.astype(np.int64), indices, lengths)


def learns_apart(weights: EntropyWeights) -> bool:
    """Whether a model for each segment takes fewer bits than one model for all."""
    apart = sum(ideal_bits(segment) for segment in weights.segments())
    return len(weights.segment_lengths) > 1 and apart < ideal_bits(weights.symbols)


def ideal_message_bits(weights: EntropyWeights) -> float:
    """Bits of the message without writing it: steps, flags and information content of the symbols.

    The written message has up to 2 bits more for ending itself, and about 1e-4 bits a flag.
    """
    groups = weights.segments() if learns_apart(weights) else [weights.symbols]
    return _step_field_bits(weights.step_indices) + sum(ideal_bits(group) for group in groups)


def _step_field_bits(step_indices: tuple[int, ...]) -> int:
    flags = 2 * (len(step_indices) > 1)
    return flags + STEP_BITS * (1 if len(set(step_indices)) == 1 else len(step_indices))


def write_entropy(weights: EntropyWeights, segment_lengths: tuple[int, ...], writer: BitWriter) -> dict[str, int]:
    """Append steps and symbols; the bits of each. ValueError if the segments are not those agreed on."""
    if tuple(weights.segment_lengths) != tuple(segment_lengths):
        raise ValueError(f"segments of {weights.segment_lengths} coefficients, expected {segment_lengths}")
    start = writer.position
    several = len(segment_lengths) > 1
    one_step = len(set(weights.step_indices)) == 1
    apart = learns_apart(weights)
    if several:
        writer.write_uint(int(not one_step), 1)
        writer.write_uint(int(apart), 1)
    for index in weights.step_indices[:1] if one_step else weights.step_indices:
        writer.write_uint(index, STEP_BITS)
    after_steps = writer.position
    encoder = RangeEncoder()
    for group in weights.segments() if apart else [weights.symbols]:
        encode_magnitudes(encoder, np.abs(group))
    writer.write_bits(encoder.finish())
    write_signs_and_excesses(writer, weights.symbols)
    return {"codebook": after_steps - start, "symbols": writer.position - after_steps}


def read_entropy(segment_lengths: tuple[int, ...], reader: BitReader) -> tuple[EntropyWeights, dict[str, int]]:
    """Inverse of write_entropy. ValueError if the bits are no such message."""
    start = reader.position
    several = len(segment_lengths) > 1
    one_step = not (several and reader.read_uint(1))
    apart = bool(several and reader.read_uint(1))
    indices = tuple(reader.read_uint(STEP_BITS) for _ in range(1 if one_step else len(segment_lengths)))
    after_steps = reader.position
    decoder = RangeDecoder(reader.rest())
    groups = segment_lengths if apart else (sum(segment_lengths),)
    magnitudes = np.concatenate([decode_magnitudes(decoder, count) for count in groups])
    reader.read_bits(decoder.finish())
    symbols = read_signs_and_excesses(reader, magnitudes)
    weights = EntropyWeights(symbols, indices * len(segment_lengths) if one_step else indices, segment_lengths)
    return weights, {"codebook": after_steps - start, "symbols": reader.position - after_steps}
