"""The plain scheme: uniform levels, 16-bit codebook, transmitted counts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sublora.coding.bits import BitReader, BitWriter
from sublora.coding.quantizer import PlainWeights, quantize_plain, read_plain, write_plain
from sublora.system.streams import generator

VECTORS = hnp.arrays(
    np.float32,
    st.integers(1, 60),
    elements=st.one_of(st.sampled_from([0.0, -0.0, 1.0, 65504.0, -65504.0]), st.floats(-6e4, 6e4, width=32)),
)


@settings(deadline=None, max_examples=200)
@given(VECTORS, st.sampled_from([1, 2, 3, 11, 255]), st.lists(st.integers(0, 1), max_size=70))
def test_round_trip_is_exact_whatever_follows(vector, levels, tail):
    weights = quantize_plain(vector, levels)
    writer = BitWriter()
    items = write_plain(weights, len(vector), levels, writer)
    assert sum(items.values()) == writer.position
    writer.write_bits(np.array(tail, dtype=np.uint8))
    reader = BitReader(writer.bits())
    decoded, read_items = read_plain(len(vector), levels, reader)
    assert decoded.codebook.tobytes() == weights.codebook.tobytes()
    assert np.array_equal(decoded.symbols, weights.symbols)
    assert decoded.values().tobytes() == weights.values().tobytes()
    assert read_items == items
    assert reader.position == sum(items.values())


@settings(max_examples=100)
@given(VECTORS, st.integers(2, 40))
def test_every_coefficient_takes_its_nearest_level(vector, levels):
    weights = quantize_plain(vector, levels)
    codebook = weights.codebook.astype(np.float64)
    errors = np.abs(vector.astype(np.float64)[:, None] - codebook)
    assert np.array_equal(errors[np.arange(len(vector)), weights.symbols], errors.min(axis=1))
    assert codebook[0] == np.float16(vector.min())
    assert codebook[-1] == np.float16(vector.max())
    uniform = np.linspace(float(vector.min()), float(vector.max()), levels)
    assert np.array_equal(weights.codebook, uniform.astype(np.float16))


def test_values_are_those_of_the_sixteen_bit_codebook():
    weights = quantize_plain(np.array([-1.0, 0.1, 2.0]), 4)
    assert weights.values().dtype == np.float32
    assert weights.values().tolist() == [-1.0, 0.0, 2.0]
    third = quantize_plain(np.array([0.0, 1.0, 1 / 3]), 4).values()[2]
    assert third == np.float32(np.float16(1 / 3)) != np.float32(1 / 3)


@pytest.mark.parametrize("count", [1000, 2000])
def test_bits_are_those_of_the_published_accounting(count):
    vector = generator(1, "plain", count).normal(size=count)
    weights = quantize_plain(vector, 11)
    items = write_plain(weights, count, 11, BitWriter())
    occurring = np.bincount(weights.symbols)
    occurring = occurring[occurring > 0]
    entropy_bits = -np.sum(occurring * np.log2(occurring / count))
    assert items["codebook"] == 11 * 16
    assert items["counts"] == 11 * int(np.ceil(np.log2(count + 1)))
    assert entropy_bits <= items["symbols"] < entropy_bits + 2 + 3e-4 * count


def test_a_single_level_costs_no_symbol_bits():
    for vector in (np.full(50, 0.25), np.zeros(3), np.array([7.0])):
        weights = quantize_plain(vector, 11)
        assert write_plain(weights, len(vector), 11, BitWriter())["symbols"] == 0
        assert np.array_equal(weights.values(), vector)


@pytest.mark.parametrize(
    ("vector", "complaint"),
    [
        ([1.0, np.nan], "1 values that are not finite"),
        ([np.inf, -np.inf], "2 values that are not finite"),
        ([], "non-empty vector"),
        ([[1.0]], "non-empty vector"),
        ([7e4], "16-bit codebook ends at 65504"),
    ],
)
def test_vectors_that_cannot_be_coded_are_refused(vector, complaint):
    with pytest.raises(ValueError, match=complaint):
        quantize_plain(np.array(vector), 11)


def test_misfits_and_damage_are_refused():
    weights = quantize_plain(np.array([0.0, 1.0, 0.5, 0.5]), 3)
    with pytest.raises(ValueError, match="must hold 2 finite values"):
        write_plain(weights, 4, 2, BitWriter())
    with pytest.raises(ValueError, match=r"shape \(5,\)"):
        write_plain(weights, 5, 3, BitWriter())
    with pytest.raises(ValueError, match="finite values of type float16"):
        write_plain(PlainWeights(np.full(3, np.nan, dtype=np.float16), weights.symbols), 4, 3, BitWriter())
    writer = BitWriter()
    write_plain(weights, 4, 3, writer)
    bits = writer.bits()
    wrong_count = bits.copy()
    wrong_count[3 * 16 + 2] ^= 1
    with pytest.raises(ValueError, match="counts of the levels sum to"):
        read_plain(4, 3, BitReader(wrong_count))
    with pytest.raises(ValueError, match="ends early|end early"):
        read_plain(4, 3, BitReader(bits[:-1]))
    nan = bits.copy()
    nan[:16] = 1
    with pytest.raises(ValueError, match="levels that are not finite"):
        read_plain(4, 3, BitReader(nan))
