"""Bit strings and Elias codes."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublora.coding.bits import (
    BitReader,
    BitWriter,
    bits_to_bytes,
    bytes_to_bits,
    elias_delta_bits,
    elias_gamma_bits,
    index_bits,
)

FIELDS = st.one_of(
    st.tuples(st.just("uint"), st.integers(0, 70)).flatmap(
        lambda kind: st.tuples(st.just("uint"), st.integers(0, 2 ** kind[1] - 1), st.just(kind[1]))
    ),
    st.tuples(st.sampled_from(["gamma", "delta"]), st.integers(1, 2**40), st.just(0)),
)


def write(writer: BitWriter, field: tuple[str, int, int]) -> None:
    kind, value, width = field
    if kind == "uint":
        writer.write_uint(value, width)
    elif kind == "gamma":
        writer.write_elias_gamma(value)
    else:
        writer.write_elias_delta(value)


def read(reader: BitReader, field: tuple[str, int, int]) -> int:
    kind, _, width = field
    if kind == "uint":
        return reader.read_uint(width)
    return reader.read_elias_gamma() if kind == "gamma" else reader.read_elias_delta()


@given(st.lists(FIELDS, max_size=20), st.binary(max_size=4))
def test_fields_come_back_whatever_follows_them(fields, garbage):
    writer = BitWriter()
    for field in fields:
        write(writer, field)
    message = writer.bits()
    assert len(message) == writer.position
    reader = BitReader(np.concatenate([message, bytes_to_bits(garbage)]))
    assert [read(reader, field) for field in fields] == [value for _, value, _ in fields]
    assert reader.position == writer.position
    assert np.array_equal(bytes_to_bits(bits_to_bytes(message))[: len(message)], message)


def test_elias_codes_match_the_published_ones():
    # P. Elias (1975): gamma of 1, 2, 5 and delta of 1, 2, 5, 17.
    expected = {
        ("gamma", 1): "1", ("gamma", 2): "010", ("gamma", 5): "00101",
        ("delta", 1): "1", ("delta", 2): "0100", ("delta", 5): "01101", ("delta", 17): "001010001",
    }  # fmt: skip
    for (kind, value), digits in expected.items():
        writer = BitWriter()
        write(writer, (kind, value, 0))
        assert "".join(map(str, writer.bits())) == digits


@pytest.mark.parametrize(("kind", "length"), [("gamma", elias_gamma_bits), ("delta", elias_delta_bits)])
def test_elias_lengths_are_those_written_and_satisfy_kraft(kind, length):
    for value in itertools.chain(range(1, 300), (2**31, 2**31 - 1)):
        writer = BitWriter()
        write(writer, (kind, value, 0))
        assert writer.position == length(value)
    assert 0.5 < sum(2.0 ** -length(value) for value in range(1, 1 << 12)) <= 1


def test_index_bits_is_the_ceiling_of_the_binary_logarithm():
    assert [index_bits(count) for count in (1, 2, 3, 4, 5, 8, 9, 1001)] == [0, 1, 2, 2, 3, 3, 4, 10]
    with pytest.raises(ValueError, match="at least one alternative"):
        index_bits(0)


def test_a_field_that_ends_early_is_refused():
    with pytest.raises(ValueError, match="ends early: 5 more bits wanted at bit 3 of 4"):
        reader = BitReader(np.zeros(4, dtype=np.uint8))
        reader.read_bits(3)
        reader.read_uint(5)
    with pytest.raises(ValueError, match="ends early"):
        BitReader(np.zeros(7, dtype=np.uint8)).read_elias_gamma()
    with pytest.raises(ValueError, match="4 does not fit into 2"):
        BitWriter().write_uint(4, 2)
    with pytest.raises(ValueError, match="start at 1"):
        BitWriter().write_elias_delta(0)
