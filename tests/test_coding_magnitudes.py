"""The adaptive model of integer coefficients: probabilities, code length, round trip."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sublora.coding.bits import BitReader, BitWriter
from sublora.coding.magnitudes import (
    MAX_MAGNITUDE,
    MAX_PLANES,
    UNIT,
    decode_magnitudes,
    encode_magnitudes,
    ideal_bits,
    magnitude_bits,
    read_signs_and_excesses,
    write_signs_and_excesses,
)
from sublora.coding.range_coder import RangeDecoder, RangeEncoder
from sublora.system.streams import generator


def message_of(symbols):
    encoder, writer = RangeEncoder(), BitWriter()
    encode_magnitudes(encoder, np.abs(symbols))
    writer.write_bits(encoder.finish())
    write_signs_and_excesses(writer, symbols)
    return writer.bits()


def symbols_of(bits, count):
    reader = BitReader(bits)
    decoder = RangeDecoder(bits)
    magnitudes = decode_magnitudes(decoder, count)
    reader.read_bits(decoder.finish())
    return read_signs_and_excesses(reader, magnitudes), reader.position


COEFFICIENTS = st.one_of(
    st.just(0), st.integers(-3, 3), st.integers(-MAX_PLANES - 3, MAX_PLANES + 3),
    st.integers(-MAX_MAGNITUDE, MAX_MAGNITUDE),
)  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(st.lists(COEFFICIENTS, min_size=1, max_size=40), st.lists(st.integers(0, 1), max_size=70))
def test_round_trip_whatever_follows(values, tail):
    symbols = np.array(values, dtype=np.int64)
    bits = message_of(symbols)
    decoded, consumed = symbols_of(np.concatenate([bits, np.array(tail, dtype=np.uint8)]), len(symbols))
    assert np.array_equal(decoded, symbols)
    assert consumed == len(bits)


@settings(deadline=None, max_examples=150)
@given(st.lists(COEFFICIENTS, min_size=1, max_size=200))
def test_ideal_length_is_the_real_one(values):
    symbols = np.array(values, dtype=np.int64)
    flags = int(np.minimum(np.abs(symbols) + 1, MAX_PLANES).sum())
    # Frequencies of 24 bits move it by up to 1e-4 bits a flag in either direction.
    assert -1e-4 * flags - 1e-6 <= len(message_of(symbols)) - ideal_bits(symbols) < 2 + 6e-3 * flags


@pytest.mark.parametrize("count", [1000, 20_000])
@pytest.mark.parametrize("shape", ["normal", "laplace"])
def test_ideal_length_of_large_vectors(count, shape):
    symbols = np.rint(getattr(generator(4, shape, count), shape)(size=count) * 2).astype(np.int64)
    assert 0 <= len(message_of(symbols)) - ideal_bits(symbols) < 2 + 3e-4 * np.sum(np.abs(symbols) + 1)


def reference_bits(symbols):
    """The model flag by flag with exact fractions, from its definition: pseudo-counts are multiples of 1/UNIT."""
    total, ones, strength = 0.0, Fraction(1, 2), 1
    for plane in range(MAX_PLANES):
        flags = [abs(k) > plane for k in symbols if abs(k) >= plane]
        if not flags:
            break
        a, b = (Fraction(1, 2), Fraction(1, 2)) if plane < 2 else (ones, strength - ones)
        for flag in flags:
            total -= math.log2((a if flag else b) / (a + b))
            a, b = a + flag, b + (not flag)
        strength = min(32, len(flags))
        ones = Fraction(math.floor(strength * UNIT * a / (a + b)), UNIT)
        ones = min(max(ones, Fraction(strength, 64)), strength - Fraction(strength, 64))
    return total + sum(k != 0 for k in symbols)


@settings(deadline=None, max_examples=100)
@example([1, 6, 6, 12])
@given(st.lists(st.integers(-12, 12), min_size=1, max_size=80))
def test_ideal_length_against_the_definition(values):
    assert ideal_bits(np.array(values)) == pytest.approx(reference_bits(values), abs=1e-8)


def test_few_bits_above_the_true_distribution():
    """Redundancy against the distribution that drew the coefficients, Laplace and Gaussian, without any parameter."""
    for shape, scale, count in itertools.product(("normal", "laplace"), (0.5, 1.0, 2.0), (1000, 2000)):
        true_bits, ours = [], []
        for repetition in range(5):
            values = getattr(generator(5, shape, scale, count, repetition), shape)(scale=scale, size=count)
            symbols = np.rint(values).astype(np.int64)
            true_bits.append(-np.log2(cell_probability(shape, symbols, scale)).sum())
            ours.append(ideal_bits(symbols))
        assert np.mean(ours) - np.mean(true_bits) < 22, (shape, scale, count)


def cell_probability(shape, symbols, scale):
    cdf = {
        "normal": np.vectorize(lambda x: 0.5 * math.erfc(-x / math.sqrt(2))),
        "laplace": np.vectorize(lambda x: 0.5 * math.exp(x) if x < 0 else 1 - 0.5 * math.exp(-x)),
    }[shape]
    # Symmetric: evaluated in the lower tail, where differences do not cancel.
    lower = -np.abs(symbols)
    return cdf((lower + 0.5) / scale) - cdf((lower - 0.5) / scale)


def test_prices_are_a_code_and_match_the_next_symbol():
    symbols = np.rint(generator(6, "prices").laplace(size=3000) * 1.5).astype(np.int64)
    magnitudes = np.arange(200_000)
    prices = magnitude_bits(magnitudes, learned_from=symbols)
    signs = np.where(magnitudes > 0, 2, 1)
    assert 0.999 < np.sum(signs * 2.0**-prices) <= 1 + 1e-9
    # A plane's prior depends on the plane before it, so one more symbol also moves the later planes a little.
    for magnitude in range(5):
        more = ideal_bits(np.append(symbols, magnitude)) - ideal_bits(symbols)
        assert prices[magnitude] == pytest.approx(more, abs=0.05)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_kraft_over_small_messages(count):
    """Prefix-free over all vectors of one length; the sum of 2^-bits stays below 1 (magnitudes cut off at 4)."""
    words = [message_of(np.array(word)) for word in itertools.product(range(-4, 5), repeat=count)]
    strings = sorted("".join(map(str, word)) for word in words)
    assert all(not after.startswith(before) for before, after in itertools.pairwise(strings))
    assert 0.1 < math.fsum(2.0 ** -len(string) for string in strings) <= 1


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="non-empty vector of integers"):
        ideal_bits(np.array([], dtype=np.int64))
    with pytest.raises(ValueError, match="non-empty vector of integers"):
        ideal_bits(np.array([0.5]))
    with pytest.raises(ValueError, match="choose a larger step"):
        ideal_bits(np.array([MAX_MAGNITUDE + 1]))
    with pytest.raises(ValueError, match="ends early"):
        symbols_of(message_of(np.array([1, -1, 2]))[:-1], 3)
