"""The adaptive model of integer coefficients k: how many bits they take, and their code.

A magnitude |k| is written in unary as flags "|k| > 0?", "|k| > 1?", ...: flag plane j holds the answers to
"|k| > j?" of all coefficients with |k| >= j. Within a plane the flags are coded adaptively: with `passed` ones among
the `reached` flags seen so far,

    P(one) = (passed + a_j) / (reached + a_j + b_j),

the predictive probability of a Beta(a_j, b_j) prior. Planes 0 and 1 start from a = b = 1/2 (Krichevsky and Trofimov,
The performance of universal encoding, IEEE Transactions on Information Theory 27 (1981)): the share of zeros gets a
parameter of its own, so that no deadzone or surplus of zeros costs anything. From plane 2 on the prior is the previous
plane's final estimate, worth PRIOR_STRENGTH observations. For geometric (Laplace) tails all these shares are equal, for
a Gaussian they drift slowly, so only about two or three parameters are learned, whatever the alphabet. No parameter and
no largest magnitude is transmitted: a plane that no coefficient reaches is not written.

The sign of k != 0 takes one bit: a random projection has no preferred sign. The excess of a magnitude over MAX_PLANES
follows as an Elias delta code.

All probabilities are integers (pseudo-counts in units of 1/UNIT), hence the same on every machine.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sublora.coding.bits import BitReader, BitWriter, elias_delta_bits
from sublora.coding.range_coder import AdaptiveFlag, RangeDecoder, RangeEncoder

MAX_PLANES = 64
PRIOR_STRENGTH = 32
"""The weight of the previous plane's estimate, in observations, but never more than the plane had.

Between 8 and 128 the code length of 1,000 Gaussian, Laplace or mixed coefficients at 0.5 to 3.5 bits each varies by
less than 1 %.
"""

UNIT = 1 << 12
MAX_COEFFICIENTS = 10**6
MAX_FLAGS = 3 * 10**6
"""Limits on a message, so that whoever is handed one decodes it in seconds: flags are decoded one after another. They
also keep every product within 63 bits."""
TOO_MANY_FLAGS = f"the magnitudes take more than {MAX_FLAGS} flags"
MAX_MAGNITUDE = (1 << 31) - 1

Integers = NDArray[np.int64]


class Prior(NamedTuple):
    """Beta prior of a plane, in units of 1/UNIT observations."""

    ones: int
    total: int


FRESH = Prior(UNIT // 2, UNIT)


def next_prior(plane: int, prior: Prior, reached: int, passed: int) -> Prior:
    """Return the prior of plane + 1 after `passed` of the `reached` flags of `plane` were ones."""
    if plane == 0:
        return FRESH
    total = UNIT * min(PRIOR_STRENGTH, max(reached, 1))
    ones = total * (prior.ones + UNIT * passed) // (prior.total + UNIT * reached)
    # An estimate near 0 or 1 of a few flags must not forbid the other answer.
    return Prior(min(max(ones, total // 64), total - total // 64), total)


def plane_counts(magnitudes: Integers) -> tuple[list[int], list[int]]:
    """Return (reached, passed): for each plane that some coefficient reaches, its flags and the ones among them."""
    histogram = np.bincount(np.minimum(magnitudes, MAX_PLANES), minlength=1)
    at_least = np.append(np.cumsum(histogram[::-1])[::-1], 0)
    planes = min(len(histogram), MAX_PLANES)
    return at_least[:planes].tolist(), at_least[1 : planes + 1].tolist()


def check_symbols(symbols: NDArray) -> Integers:
    """Return the coefficients as int64, shape (d,); ValueError if they are not integers that the code covers."""
    symbols = np.asarray(symbols)
    if symbols.ndim != 1 or not len(symbols) or not np.issubdtype(symbols.dtype, np.integer):
        raise ValueError("symbols must be a non-empty vector of integers")
    if len(symbols) > MAX_COEFFICIENTS:
        raise ValueError(f"at most {MAX_COEFFICIENTS} coefficients, got {len(symbols)}")
    if int(symbols.max()) > MAX_MAGNITUDE or int(symbols.min()) < -MAX_MAGNITUDE:
        raise ValueError(f"symbols must lie between -{MAX_MAGNITUDE} and {MAX_MAGNITUDE}; choose a larger step")
    return symbols.astype(np.int64)


def ideal_bits(symbols: NDArray) -> float:
    """Return the information content of integer coefficients, shape (d,), under this model, in bits, without encoding.

    The coder adds less than 2 bits, and about 1e-4 bits per flag because its state is finite. Closed form: a plane
    costs log2 B(a, b) - log2 B(a + passed, b + reached - passed), B the beta function.
    """
    magnitudes = np.abs(check_symbols(symbols))
    nats, prior = 0.0, FRESH
    for plane, (reached, passed) in enumerate(zip(*plane_counts(magnitudes), strict=True)):
        a, b = prior.ones / UNIT, (prior.total - prior.ones) / UNIT
        nats += _log_beta(a, b) - _log_beta(a + passed, b + reached - passed)
        prior = next_prior(plane, prior, reached, passed)
    escaped = magnitudes[magnitudes >= MAX_PLANES]
    escape_bits = sum(elias_delta_bits(int(excess)) for excess in escaped - MAX_PLANES + 1)
    return nats / math.log(2) + np.count_nonzero(magnitudes) + escape_bits


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def magnitude_bits(magnitudes: Integers, *, learned_from: NDArray) -> NDArray[np.float64]:
    """Return the bits, sign included, of one more coefficient of each magnitude after the symbols `learned_from` (d,).

    Rate-distortion rounding takes these as prices; the result has the shape of `magnitudes`.
    """
    reached_counts, passed_counts = plane_counts(np.abs(check_symbols(learned_from)))
    # Extend the table plane by plane: the price of stopping there, after the prices of passing all planes before.
    table, prior, passing_bits = np.empty(MAX_PLANES + 1), FRESH, 0.0
    for plane in range(MAX_PLANES):
        reached, passed = (counts[plane] if plane < len(counts) else 0 for counts in (reached_counts, passed_counts))
        one = (prior.ones + UNIT * passed) / (prior.total + UNIT * reached)
        table[plane] = passing_bits - math.log2(1.0 - one)
        passing_bits -= math.log2(one)
        prior = next_prior(plane, prior, reached, passed)
    table[MAX_PLANES] = passing_bits
    # Add the signs, and the codes of what exceeds the last plane.
    bits = table[np.minimum(magnitudes, MAX_PLANES)] + (magnitudes > 0)
    escaped = magnitudes >= MAX_PLANES
    bits[escaped] += [elias_delta_bits(excess) for excess in (magnitudes[escaped] - MAX_PLANES + 1).tolist()]
    return bits


def encode_magnitudes(encoder: RangeEncoder, magnitudes: Integers) -> None:
    """Append the flag planes of magnitudes, shape (d,), to a range coder.

    ValueError for more than MAX_FLAGS flags.
    """
    if int(np.minimum(magnitudes + 1, MAX_PLANES).sum()) > MAX_FLAGS:
        raise ValueError(f"{TOO_MANY_FLAGS}; choose a larger step or a smaller budget")
    prior, remaining = FRESH, magnitudes
    for plane in range(MAX_PLANES):
        if not len(remaining):
            return
        flags = (remaining > plane).astype(np.uint8)
        encoder.encode_flags(flags, AdaptiveFlag(prior.ones, prior.total, UNIT))
        prior = next_prior(plane, prior, len(flags), int(np.count_nonzero(flags)))
        remaining = remaining[flags == 1]


def decode_magnitudes(decoder: RangeDecoder, count: int) -> Integers:
    """Invert `encode_magnitudes`, except that magnitudes of MAX_PLANES and more come back as MAX_PLANES.

    ValueError if the bits are no such message; nothing is allocated for more than MAX_COEFFICIENTS.
    """
    if count > MAX_COEFFICIENTS:
        raise ValueError(f"at most {MAX_COEFFICIENTS} coefficients, got {count}")
    magnitudes = np.zeros(count, dtype=np.int64)
    prior, remaining, flags_left = FRESH, np.arange(count), MAX_FLAGS
    for plane in range(MAX_PLANES):
        if not len(remaining):
            break
        flags_left -= len(remaining)
        if flags_left < 0:
            raise ValueError(TOO_MANY_FLAGS)
        flags = decoder.decode_flags(AdaptiveFlag(prior.ones, prior.total, UNIT), len(remaining))
        prior = next_prior(plane, prior, len(flags), int(np.count_nonzero(flags)))
        remaining = remaining[flags == 1]
        magnitudes[remaining] = plane + 1
    return magnitudes


def write_signs_and_excesses(writer: BitWriter, symbols: Integers) -> None:
    """Append what the flag planes leave open, as plain bits: signs (one = negative), then Elias delta codes."""
    nonzero = symbols[symbols != 0]
    writer.write_bits((nonzero < 0).astype(np.uint8))
    for magnitude in np.abs(nonzero[np.abs(nonzero) >= MAX_PLANES]).tolist():
        writer.write_elias_delta(magnitude - MAX_PLANES + 1)


def read_signs_and_excesses(reader: BitReader, magnitudes: Integers) -> Integers:
    """Return the signed coefficients, from magnitudes cut off at MAX_PLANES and the bits that follow them."""
    negative = np.zeros(len(magnitudes), dtype=bool)
    negative[magnitudes != 0] = reader.read_bits(int(np.count_nonzero(magnitudes))) == 1
    magnitudes = magnitudes.copy()
    for index in np.flatnonzero(magnitudes == MAX_PLANES):
        excess = reader.read_elias_delta() - 1
        if excess > MAX_MAGNITUDE - MAX_PLANES:
            raise ValueError(f"the message holds a magnitude above {MAX_MAGNITUDE}")
        magnitudes[index] += excess
    return np.where(negative, -magnitudes, magnitudes)
