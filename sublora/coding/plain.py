"""The plain scheme: uniform levels, a 16-bit codebook and transmitted counts.

This is the quantizer of the published compression bounds (Lotfi et al., PAC-Bayes Compression Bounds So Tight That They
Can Explain Generalization, NeurIPS 2022; Non-Vacuous Generalization Bounds for Large Language Models, ICML 2024) with
its accounting: 16 bits per level, ceil(log2(d + 1)) bits for the count of each level, and an arithmetic code with these
counts as frequencies.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sublora.coding.bits import BitReader, BitWriter, index_bits
from sublora.coding.range_coder import RangeDecoder, RangeEncoder, scale_frequencies

NAME = "plain"
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
