"""The range coder against arbitrary-precision integers, its end, Kraft's inequality, and its overhead."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sublora.coding import range_coder
from sublora.coding.bits import bits_to_uint
from sublora.coding.range_coder import (
    TOTAL,
    AdaptiveFlag,
    RangeDecoder,
    RangeEncoder,
    flag_frequencies,
    scale_frequencies,
)
from sublora.system.streams import generator


def encode(symbols, frequencies):
    encoder = RangeEncoder()
    encoder.encode(np.asarray(symbols, dtype=np.int64), frequencies)
    return encoder.finish()


def with_tail(bits, tail):
    return np.concatenate([bits, np.asarray(tail, dtype=np.uint8)])


def random_frequencies(random, count, alphabet):
    """Rows of very uneven frequencies."""
    shares = random.dirichlet(np.full(alphabet, 0.2), size=count)
    frequencies = 1 + np.floor(shares * (TOTAL - alphabet)).astype(np.int64)
    frequencies[:, random.integers(alphabet)] += TOTAL - frequencies.sum(axis=1)
    return frequencies


def reference_interval(symbols, rows):
    """The coder's definition in exact integers: (low, width, window), the interval is [low, low + width) / 2^window."""
    low, width, window = 0, (1 << 64) - 1, 64
    for symbol, row in zip(symbols, rows, strict=True):
        unit = width >> 24
        low += unit * sum(int(f) for f in row[:symbol])
        width = unit * int(row[symbol])
        if width < 1 << 32:
            low, width, window = low << 32, width << 32, window + 32
    return low, width, window


@pytest.mark.parametrize("alphabet", [2, 3, 11, 255, 1000])
@pytest.mark.parametrize("count", [1, 10, 200])
def test_message_is_the_shortest_that_stays_inside_the_exact_interval(count, alphabet):
    random = generator(1, "range coder", count, alphabet)
    rows = random_frequencies(random, count, alphabet)
    symbols = np.array([random.choice(alphabet, p=row / TOTAL) for row in rows])
    low, width, window = reference_interval(symbols, rows)

    def inside(length):
        """Whether some bit string of this length has all its continuations in the interval."""
        first = -(-low >> (window - length))
        return (first + 1) << (window - length) <= low + width

    bits = encode(symbols, rows)
    shift = window - len(bits)
    assert low <= bits_to_uint(bits) << shift
    assert (bits_to_uint(bits) + 1) << shift <= low + width
    assert not any(inside(length) for length in range(len(bits)))
    assert np.array_equal(RangeDecoder(bits).decode(rows), symbols)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_round_trip_whatever_follows(data):
    alphabet = data.draw(st.sampled_from([1, 2, 3, 11, 256]))
    count = data.draw(st.integers(0, 60))
    symbols = np.array(data.draw(st.lists(st.integers(0, alphabet - 1), min_size=count, max_size=count)), dtype=int)
    weights = data.draw(st.lists(st.sampled_from([1, 2, 1000, 30_000]), min_size=alphabet, max_size=alphabet))
    frequencies = scale_frequencies(weights)
    bits = encode(symbols, frequencies)
    tails = [[], [0] * 100, [1] * 100, data.draw(st.lists(st.integers(0, 1), max_size=80))]
    for tail in tails:
        decoder = RangeDecoder(with_tail(bits, tail))
        assert np.array_equal(decoder.decode(frequencies, count), symbols)
        assert decoder.finish() == len(bits)
    assert np.array_equal(encode(symbols, np.tile(frequencies, (count, 1))), bits)


@pytest.mark.parametrize("alphabet", [1, 2, 11, 255, 300])
@pytest.mark.parametrize("count", [0, 1, 10, 1000, 20_000])
def test_bits_stay_within_two_of_the_information_content(count, alphabet):
    random = generator(2, "overhead", count, alphabet)
    counts = random.integers(1, 50, size=alphabet) ** 3
    frequencies = scale_frequencies(counts)
    symbols = random.choice(alphabet, size=count, p=counts / counts.sum())
    information = -float(np.log2(frequencies / TOTAL)[symbols].sum())
    bits = encode(symbols, frequencies)
    # Two bits for the end; the state of 64 bits loses 1.3e-4 bits a symbol in the mean.
    assert information <= len(bits) < information + 2 + 3e-4 * count
    assert np.array_equal(RangeDecoder(bits).decode(frequencies, count), symbols)


def test_extreme_frequencies():
    nearly_certain = np.array([TOTAL - 2, 1, 1])
    assert len(encode(np.zeros(20_000, dtype=int), nearly_certain)) == 1
    rare = np.full(1000, 2)
    bits = encode(rare, nearly_certain)
    assert 24_000 <= len(bits) < 24_002
    assert np.array_equal(RangeDecoder(with_tail(bits, [1] * 40)).decode(nearly_certain, 1000), rare)
    assert len(encode([], nearly_certain)) == 0
    assert len(encode([0] * 500, [TOTAL])) == 0


@pytest.mark.parametrize("counts", [[1, 1, 1], [1, 2, 4, 1], [3, 1, 3]])
def test_intervals_around_a_carry(counts):
    """Messages around 1/2: for all their words 0.0111... and 0.1000... both lie in the interval, undecided."""
    frequencies = scale_frequencies(counts)
    half = np.append([1], np.zeros(2000)).astype(np.uint8)
    symbols = RangeDecoder(half).decode(frequencies, 400)
    for count in range(1, 401):
        rows = np.tile(frequencies, (count, 1))
        low, width, window = reference_interval(symbols[:count], rows)
        assert low <= 1 << (window - 1) < low + width
        bits = encode(symbols[:count], frequencies)
        shift = window - len(bits)
        assert low <= bits_to_uint(bits) << shift
        assert (bits_to_uint(bits) + 1) << shift <= low + width


@pytest.mark.parametrize("counts", [[1, 1], [1, 30], [2, 3, 7], [1, 1, 1], [1, 500, 1], [1, 2, 3, 4]])
@pytest.mark.parametrize("length", [1, 2, 5, 6])
def test_kraft_over_all_messages(counts, length):
    """All messages of one length: prefix-free, and their sum of 2^-bits neither above 1 nor wastefully low."""
    frequencies = scale_frequencies(counts)
    messages = [encode(word, frequencies) for word in itertools.product(range(len(counts)), repeat=length)]
    strings = sorted("".join(map(str, message)) for message in messages)
    assert all(not after.startswith(before) for before, after in itertools.pairwise(strings))
    assert 0.25 < math.fsum(2.0 ** -len(string) for string in strings) <= 1


def adaptive_rows(flags, model):
    """The frequencies of each flag from the definition, flag by flag."""
    ones, total, rows = model.ones, model.total, []
    for flag in flags:
        rows.append(1 + ones * (TOTAL - 2) // total)
        ones, total = ones + model.unit * int(flag), total + model.unit
    return flag_frequencies(np.array(rows, dtype=np.int64))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.97, 1.0])
@pytest.mark.parametrize("model", [AdaptiveFlag(1, 2, 2), AdaptiveFlag(4000, 32 << 12, 1 << 12)])
def test_adaptive_flags_between_other_symbols(share, model):
    """Flags are decoded in Python and all else by constriction: one hands its state to the other, in every order."""
    random = generator(3, "flags", int(1000 * share), model.total)
    others, parts = scale_frequencies([5, 1, 1]), [0, 1, 2, 700, 3, 0, 40]
    encoder, whole, encoded = RangeEncoder(), RangeEncoder(), []
    for count in parts:
        flags, symbols = (random.random(count) < share).astype(np.uint8), random.integers(3, size=4)
        encoder.encode_flags(flags, model)
        whole.encode(flags.astype(np.int64), adaptive_rows(flags, model)) if count else None
        for each in (encoder, whole):
            each.encode(symbols, others)
        encoded.append((flags.tolist(), symbols.tolist()))
    bits = encoder.finish()
    assert np.array_equal(bits, whole.finish())
    for tail in ([], [1, 0, 1], [1] * 90):
        decoder = RangeDecoder(with_tail(bits, tail))
        for flags, symbols in encoded:
            assert decoder.decode_flags(model, len(flags)).tolist() == flags
            assert decoder.decode(others, 4).tolist() == symbols
        assert decoder.finish() == len(bits)


def test_flags_in_several_blocks(monkeypatch):
    flags, model = (generator(3, "blocks").random(1000) < 0.2).astype(np.uint8), AdaptiveFlag(1, 2, 2)
    encoder, blocks = RangeEncoder(), RangeEncoder()
    encoder.encode_flags(flags, model)
    monkeypatch.setattr(range_coder, "BLOCK_FLAGS", 7)
    blocks.encode_flags(flags, model)
    assert np.array_equal(blocks.finish(), encoder.finish())


def test_bits_of_no_flags_are_refused():
    """The last 2^-24 of an interval belongs to no symbol; a flag that is all but certain leaves the most of it."""
    with pytest.raises(ValueError, match="not a range-coded message"):
        RangeDecoder(np.ones(256, dtype=np.uint8)).decode_flags(AdaptiveFlag(1, 3, 1 << 30), 3000)


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=40))
def test_scaled_frequencies_are_exact_and_nearly_proportional(counts):
    frequencies = scale_frequencies(counts)
    assert frequencies.sum() == TOTAL
    assert frequencies.min() >= 1
    assert np.abs(frequencies / TOTAL - np.array(counts) / sum(counts)).max() <= 2 * len(counts) / TOTAL


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="sum to"):
        encode([0], [1, 2, 3])
    with pytest.raises(ValueError, match="at least 1"):
        encode([0], [0, TOTAL])
    with pytest.raises(ValueError, match="integers from 0 to 1"):
        encode([2], [TOTAL - 1, 1])
    with pytest.raises(ValueError, match="frequency row each"):
        encode([0, 1], [[TOTAL - 1, 1]])
    with pytest.raises(ValueError, match="frequencies must be integers"):
        encode([0], [0.5, 0.5])
    with pytest.raises(ValueError, match="positive integers"):
        scale_frequencies([1, 0])


def test_other_bits_than_the_encoders_are_refused():
    frequencies = scale_frequencies([1, 2, 3, 4])
    bits = encode([3, 1, 0, 2, 3, 3, 1, 0], frequencies)
    truncated = RangeDecoder(bits[:-1])
    truncated.decode(frequencies, 8)
    with pytest.raises(ValueError, match="end early"):
        truncated.finish()
    # The last 2^-24 of the unit interval or so belongs to no message.
    with pytest.raises(ValueError, match="not a range-coded message"):
        RangeDecoder(np.ones(256, dtype=np.uint8)).decode(scale_frequencies([1] * 3), 20_000)
