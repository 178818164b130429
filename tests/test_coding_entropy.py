"""The entropy scheme: step grid, quantizer, message."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sublora.coding.bits import BitReader, BitWriter
from sublora.coding.quantizer import (
    LARGEST_STEP,
    SMALLEST_STEP,
    STEP_BITS,
    EntropyWeights,
    ideal_message_bits,
    nearest_step_index,
    quantize_entropy,
    read_entropy,
    step_of,
    write_entropy,
)
from sublora.system.streams import generator

VECTORS = hnp.arrays(
    np.float32,
    st.integers(1, 50),
    elements=st.one_of(st.sampled_from([0.0, -0.0, 1.0, -2.5]), st.floats(-1e9, 1e9, width=32)),
)


@settings(deadline=None, max_examples=200)
@given(VECTORS, st.data())
def test_round_trip_is_exact_whatever_follows(vector, data):
    weights = quantize_entropy(vector, data.draw(st.sampled_from([1.0, 1.5, 3e3])))
    writer = BitWriter()
    items = write_entropy(weights, len(vector), writer)
    assert sum(items.values()) == writer.position
    writer.write_bits(np.array(data.draw(st.lists(st.integers(0, 1), max_size=70)), dtype=np.uint8))
    reader = BitReader(writer.bits())
    decoded, read_items = read_entropy(len(vector), reader)
    assert np.array_equal(decoded.symbols, weights.symbols)
    assert decoded.step_index == weights.step_index
    assert decoded.values().tobytes() == weights.values().tobytes()
    assert read_items == items
    assert reader.position == sum(items.values())


def test_every_step_of_the_grid_is_its_own_nearest_and_exact():
    steps = [step_of(index) for index in range(1 << STEP_BITS)]
    assert steps[0] == SMALLEST_STEP
    assert steps[-1] == LARGEST_STEP
    assert [nearest_step_index(step) for step in steps] == list(range(1 << STEP_BITS))
    ratios = [after / before for before, after in itertools.pairwise(steps)]
    assert 1 < min(ratios) <= max(ratios) <= 17 / 16
    # Five significant bits: multiples up to 2^19 are exact in float32.
    assert all(float(np.float32(step * 524_287)) == step * 524_287 for step in steps)


@given(st.floats(1e-9, 1e6))
def test_nearest_step_is_the_nearest(step):
    grid = np.array([step_of(index) for index in range(1 << STEP_BITS)])
    assert abs(step_of(nearest_step_index(step)) - step) == np.abs(grid - step).min()


@settings(max_examples=100)
@given(VECTORS)
def test_rounding_is_to_the_nearest_multiple(vector):
    weights = quantize_entropy(vector, 0.75)
    assert np.abs(vector.astype(np.float64) - 0.75 * weights.symbols).max() <= 0.375


@pytest.mark.parametrize("count", [1, 10, 1000, 5000])
def test_ideal_message_bits_is_what_the_message_takes(count):
    vector = generator(1, "entropy", count).laplace(size=count)
    weights = quantize_entropy(vector, 1.0)
    items = write_entropy(weights, count, BitWriter())
    assert items["codebook"] == STEP_BITS
    assert 0 <= sum(items.values()) - ideal_message_bits(weights) < 2 + 3e-4 * np.sum(np.abs(weights.symbols) + 1)


def test_shorter_than_plain_symbols_for_the_same_integers():
    """What learning saves against transmitted counts, at the demo's budgets."""
    for count in (1000, 2000):
        weights = quantize_entropy(generator(4, "laplace", count).laplace(size=count), 1.0)
        occurring = np.unique(weights.symbols, return_counts=True)[1]
        transmitted = -np.sum(occurring * np.log2(occurring / count)) + len(occurring) * np.ceil(np.log2(count + 1))
        assert ideal_message_bits(weights) < transmitted - 60


@pytest.mark.parametrize(
    ("vector", "step", "complaint"),
    [
        ([1.0, np.nan], 1.0, "1 values that are not finite"),
        ([], 1.0, "non-empty vector"),
        ([1.0], 1e-20, "a step lies between"),
        ([1.0], np.nan, "a step lies between"),
        ([1e6], 1e-6, "choose a larger step"),
    ],
)
def test_vectors_and_steps_that_cannot_be_coded_are_refused(vector, step, complaint):
    with pytest.raises(ValueError, match=complaint):
        quantize_entropy(np.array(vector), step)


def test_misfits_are_refused():
    weights = quantize_entropy(np.ones(4), 1.0)
    with pytest.raises(ValueError, match=r"symbols must have shape \(3,\), got \(4,\)"):
        write_entropy(weights, 3, BitWriter())
    with pytest.raises(ValueError, match="a step's index lies between 0 and 1023, got 1024"):
        EntropyWeights(np.ones(4, dtype=np.int64), 1024)
