"""A quantized w: two schemes that round w and write it as bits, and the rounding that serves the bound best.

The plain scheme has uniform levels, a 16-bit codebook and transmitted counts. It is the quantizer of the published
compression bounds (Lotfi et al., PAC-Bayes Compression Bounds So Tight That They Can Explain Generalization, NeurIPS
2022; Non-Vacuous Generalization Bounds for Large Language Models, ICML 2024) with its accounting: 16 bits per level,
ceil(log2(d + 1)) bits for the count of each level, and an arithmetic code with these counts as frequencies.

The entropy scheme has integer multiples of a step, w_i = k_i * step, zero-centred, coded with a model that adapts while
it codes (`sublora.coding.magnitudes`). The step is one of 1,024 values that are exact in binary, 16 to an octave; near
the best step the message's value hardly depends on it, so a finer grid would only cost bits.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sublora.coding.bits import BitReader, BitWriter, index_bits
from sublora.coding.magnitudes import (
    MAX_MAGNITUDE,
    check_symbols,
    decode_magnitudes,
    encode_magnitudes,
    ideal_bits,
    magnitude_bits,
    read_signs_and_excesses,
    write_signs_and_excesses,
)
from sublora.coding.range_coder import RangeDecoder, RangeEncoder, scale_frequencies

PLAIN = "plain"
CODEBOOK_ENTRY_BITS = 16


@dataclass(frozen=True, eq=False)
class PlainWeights:
    """A quantized w: `codebook` float16 of shape (levels,), `symbols` int64 of shape (d,) that index it."""

    codebook: NDArray[np.float16]
    symbols: NDArray[np.int64]

    def values(self) -> NDArray[np.float32]:
        """Return the vector that every decoder rebuilds, float32 of shape (d,)."""
        return self.codebook.astype(np.float32)[self.symbols]


def check_vector(weights: ArrayLike) -> NDArray[np.float64]:
    """Return w as float64 of shape (d,); ValueError if it is empty, not a vector, or not finite."""
    weights = np.asarray(weights, dtype=np.float64)
    if weights.ndim != 1 or not len(weights):
        raise ValueError(f"w must be a non-empty vector, got shape {weights.shape}")
    if not np.isfinite(weights).all():
        raise ValueError(f"w holds {np.count_nonzero(~np.isfinite(weights))} values that are not finite")
    return weights


def quantize_plain(weights: ArrayLike, levels: int) -> PlainWeights:
    """Round w, shape (d,), to the nearest of `levels` uniform levels from min(w) to max(w), each a 16-bit float.

    Raises ValueError if w is not finite or does not fit into 16-bit floats (largest 65,504).
    """
    weights = check_vector(weights)
    if levels < 1:
        raise ValueError(f"levels must be at least 1, got {levels}")
    largest = np.finfo(np.float16).max
    if np.abs(weights).max() > largest:
        raise ValueError(f"w reaches {np.abs(weights).max():g}; a 16-bit codebook ends at {largest:g}")
    codebook = np.linspace(weights.min(), weights.max(), levels).astype(np.float16)
    exact = codebook.astype(np.float64)
    symbols = np.searchsorted((exact[1:] + exact[:-1]) / 2, weights)
    return PlainWeights(codebook, symbols.astype(np.int64))


def write_plain(weights: PlainWeights, budget: int, levels: int, writer: BitWriter) -> dict[str, int]:
    """Append codebook, counts and symbols and return the bits of each.

    ValueError if they do not fit budget and levels.
    """
    codebook = weights.codebook
    if codebook.shape != (levels,) or codebook.dtype != np.float16 or not np.isfinite(codebook).all():
        raise ValueError(f"the codebook must hold {levels} finite values of type float16")
    symbols = np.asarray(weights.symbols)
    if symbols.shape != (budget,) or symbols.min() < 0 or symbols.max() >= levels:
        raise ValueError(f"symbols must have shape ({budget},) and lie between 0 and {levels - 1}")
    # Codebook and counts have fields of fixed width.
    start = writer.position
    for entry in codebook.view(np.uint16).tolist():
        writer.write_uint(entry, CODEBOOK_ENTRY_BITS)
    after_codebook = writer.position
    counts = np.bincount(symbols, minlength=levels)
    for count in counts.tolist():
        writer.write_uint(count, index_bits(budget + 1))
    after_counts = writer.position
    # Levels that do not occur are left out of the alphabet, since they would take frequency from the others.
    present = np.flatnonzero(counts)
    encoder = RangeEncoder()
    encoder.encode(np.searchsorted(present, symbols), scale_frequencies(counts[present]))
    writer.write_bits(encoder.finish())
    return {
        "codebook": after_codebook - start,
        "counts": after_counts - after_codebook,
        "symbols": writer.position - after_counts,
    }


def read_plain(budget: int, levels: int, reader: BitReader) -> tuple[PlainWeights, dict[str, int]]:
    """Invert `write_plain`. ValueError if the bits are not such a message."""
    # Codebook and counts have fields of fixed width.
    start = reader.position
    entries = [reader.read_uint(CODEBOOK_ENTRY_BITS) for _ in range(levels)]
    codebook = np.array(entries, dtype=np.uint16).view(np.float16)
    if not np.isfinite(codebook).all():
        raise ValueError("the codebook holds levels that are not finite")
    after_codebook = reader.position
    counts = np.array([reader.read_uint(index_bits(budget + 1)) for _ in range(levels)], dtype=np.int64)
    if counts.sum() != budget:
        raise ValueError(f"the counts of the levels sum to {counts.sum()}, expected {budget}")
    after_counts = reader.position
    # Decode the symbols over the levels that occur, and check them against the counts.
    present = np.flatnonzero(counts)
    decoder = RangeDecoder(reader.rest())
    symbols = present[decoder.decode(scale_frequencies(counts[present]), budget)]
    reader.read_bits(decoder.finish())
    if not np.array_equal(np.bincount(symbols, minlength=levels), counts):
        raise ValueError("the symbols do not occur as often as their counts say")
    items = {
        "codebook": after_codebook - start,
        "counts": after_counts - after_codebook,
        "symbols": reader.position - after_counts,
    }
    return PlainWeights(codebook, symbols), items


ENTROPY = "entropy"
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


CANDIDATES_BELOW = 8
"""The number of magnitudes tried below the exact one; zero is always tried."""
MAX_ROUNDS = 50


def round_for_rate(weights: ArrayLike, step: float, distortion_per_bit: float) -> EntropyWeights:
    """Return integers that make  sum_i (w_i - k_i step)^2 / 2  +  distortion_per_bit * message bits  small.

    The search starts from the nearest integers and alternates: prices of the magnitudes follow from the symbols under
    the adaptive model (`magnitude_bits`), symbols from the prices. It ends when the objective, measured with the
    message's ideal length, no longer falls. The best symbols seen are returned, so the result is never worse than
    rounding to the nearest.

    Args:
        weights: w, shape (d,).
        step: the quantization step, snapped to the grid of steps.
        distortion_per_bit: the exchange rate, in units of the distortion; 0 rounds to the nearest.

    Raises:
        ValueError: values that are not finite or not in these ranges.
    """
    weights = check_vector(weights)
    if not (np.isfinite(distortion_per_bit) and distortion_per_bit >= 0):
        raise ValueError(f"distortion_per_bit must be finite and not negative, got {distortion_per_bit}")
    # Start from the nearest integers; distortions are in units of w squared.
    best = quantize_entropy(weights, step)
    exact_d, weight = weights / best.step, best.step**2 / 2

    def objective(candidate: EntropyWeights) -> float:
        distortion = np.sum(weight * (exact_d - candidate.symbols) ** 2)
        return float(distortion + distortion_per_bit * ideal_message_bits(candidate))

    # Alternate between prices and symbols while the objective falls.
    current, best_value = best, objective(best)
    for _ in range(MAX_ROUNDS):
        magnitudes = _cheapest_magnitudes(np.abs(exact_d), weight, distortion_per_bit, current.symbols)
        current = EntropyWeights(np.where(weights < 0, -magnitudes, magnitudes), best.step_index)
        value = objective(current)
        if value >= best_value:
            break
        best, best_value = current, value
    return best


def _cheapest_magnitudes(
    exact_d: NDArray[np.float64], weight: float, distortion_per_bit: float, symbols_d: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return for each coefficient the magnitude of least cost under the prices that `symbols_d` imply.

    exact_d: |w| in steps; candidates (c) are zero, the magnitude above the exact one and those below it.
    """
    above_d = np.ceil(exact_d).astype(np.int64)
    below_c = np.arange(CANDIDATES_BELOW + 1)
    candidates_cd = np.vstack([np.maximum(above_d - below_c[:, None], 0), np.zeros_like(above_d)])
    bits_cd = magnitude_bits(candidates_cd, learned_from=symbols_d)
    cost_cd = weight * (exact_d - candidates_cd) ** 2 + distortion_per_bit * bits_cd
    return np.take_along_axis(candidates_cd, np.argmin(cost_cd, axis=0)[None], axis=0)[0]
