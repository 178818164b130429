"""The payload: round trips, what follows it, Kraft's inequality, the bits charged."""

import hashlib
import itertools
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sublora.coding.bits import bytes_to_bits
from sublora.coding.payload import (
    ITEMS,
    MessageContents,
    PayloadContext,
    read_payload,
    total_code_bits,
    write_payload,
)
from sublora.coding.quantizer import EntropyWeights, PlainWeights, quantize_entropy, quantize_plain
from sublora.system.streams import generator


def context_of(quantizer, budget, *, levels=11, gates=0, smoothing=8):
    return PayloadContext(
        budget=budget,
        quantizer=quantizer,
        levels=levels,
        gate_sizes=(budget,) * gates if isinstance(gates, int) else gates,
        smoothing_count=smoothing,
    )


def contents_of(context, vector, seed=0):
    random = generator(seed, "contents")
    if context.quantizer == "plain":
        weights = quantize_plain(vector, context.levels)
    else:
        weights = quantize_entropy(vector, 0.5 + float(np.std(vector)))
    gates = tuple(random.integers(0, np.array(context.gate_sizes, dtype=int) + 1).tolist())
    return MessageContents(weights, gates, int(random.integers(context.smoothing_count)))


def assert_same(left: MessageContents, right: MessageContents):
    assert type(left.weights) is type(right.weights)
    assert left.weights.values().tobytes() == right.weights.values().tobytes()
    assert np.array_equal(left.weights.symbols, right.weights.symbols)
    assert (left.gates, left.smoothing_index) == (right.gates, right.smoothing_index)


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(["plain", "entropy"]),
    st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=40),
    st.integers(0, 6),
    st.integers(1, 9),
    st.binary(max_size=9),
)
@example("plain", [-0.0], 0, 1, b"")
@example("entropy", [-0.0], 0, 1, b"\xff" * 9)
def test_round_trip_whatever_follows(quantizer, values, gates, smoothing, garbage):
    context = context_of(quantizer, len(values), gates=gates, smoothing=smoothing)
    contents = contents_of(context, np.array(values))
    payload = write_payload(contents, context)
    assert set(payload.items) == set(ITEMS)
    assert sum(payload.items.values()) == payload.bits
    assert len(payload.data) == math.ceil(payload.bits / 8)
    assert not bytes_to_bits(payload.data)[payload.bits :].any()
    decoded, read = read_payload(payload.data + garbage, context)
    assert_same(decoded, contents)
    assert read == payload
    # Garbage from the very next bit on, not only from the next byte.
    flipped = bytearray(payload.data)
    if payload.bits % 8:
        flipped[-1] |= 0xFF >> payload.bits % 8
    assert read_payload(bytes(flipped) + garbage, context)[1] == payload


def test_items_are_the_published_accounting():
    context = context_of("plain", 1000, gates=5)
    payload = write_payload(contents_of(context, generator(1, "w").normal(size=1000)), context)
    rest = payload.bits - payload.items["length"]
    assert payload.items["codebook"] == 176
    assert payload.items["counts"] == 110
    assert payload.items["gates"] == 5 * 10
    assert payload.items["smoothing"] == 3
    # K + 2 log2 K + 1, in whole bits.
    assert payload.items["length"] == 2 * math.floor(math.log2(rest)) + 1
    fixed = payload.bits - payload.items["symbols"] - payload.items["gates"] - payload.items["smoothing"]
    assert 300 < fixed < 315

    context = context_of("entropy", 1000, gates=5)
    payload = write_payload(contents_of(context, generator(1, "w").normal(size=1000)), context)
    assert (payload.items["codebook"], payload.items["counts"], payload.items["length"]) == (10, 0, 0)
    assert (payload.items["gates"], payload.items["smoothing"]) == (50, 3)


def prefix_free(payloads):
    strings = sorted("".join(map(str, bytes_to_bits(payload.data)[: payload.bits])) for payload in payloads)
    return all(not after.startswith(before) for before, after in itertools.pairwise(strings))


def test_kraft_over_whole_plain_payloads():
    """All symbols, gates and smoothing indices for two codebooks; the length does not depend on the codebook."""
    context = context_of("plain", 3, levels=2, gates=2, smoothing=3)
    sums, payloads = [], []
    for codebook in ([0.0, 1.0], [-2.0, 0.5]):
        here = [
            write_payload(
                MessageContents(PlainWeights(np.array(codebook, dtype=np.float16), np.array(symbols)), gates, index),
                context,
            )
            for symbols in itertools.product(range(2), repeat=3)
            for gates in itertools.product(range(4), repeat=2)
            for index in range(3)
        ]
        sums.append(math.fsum(2.0**-payload.bits for payload in here))
        payloads += here
    assert prefix_free(payloads)
    assert sums[0] == sums[1]
    assert sums[0] * 2 ** (2 * 16) <= 1


def test_kraft_over_whole_entropy_payloads():
    context = context_of("entropy", 3, gates=1, smoothing=2)
    payloads = [
        write_payload(MessageContents(EntropyWeights(np.array(symbols), step_index), (gate,), index), context)
        for step_index in (5, 9)
        for symbols in itertools.product(range(-2, 3), repeat=3)
        for gate in range(4)
        for index in range(2)
    ]
    assert prefix_free(payloads)
    assert math.fsum(2.0**-payload.bits for payload in payloads) <= 1


def test_every_choice_changes_the_payload():
    context = context_of("entropy", 100, gates=3)
    vector = generator(2, "w").laplace(size=100)
    contents = contents_of(context, vector)
    base = write_payload(contents, context).data
    nudged = contents.weights.symbols.copy()
    nudged[17] += 1
    symbols, step_index = contents.weights.symbols, contents.weights.step_index
    changes = [
        MessageContents(EntropyWeights(nudged, step_index), contents.gates, contents.smoothing_index),
        MessageContents(EntropyWeights(symbols, step_index + 1), contents.gates, contents.smoothing_index),
        MessageContents(contents.weights, (*contents.gates[:2], contents.gates[2] ^ 1), contents.smoothing_index),
        MessageContents(contents.weights, contents.gates, contents.smoothing_index ^ 1),
    ]
    assert len({base, *(write_payload(change, context).data for change in changes)}) == 5


def test_the_same_message_has_the_same_bytes_everywhere():
    """Golden bytes: they change only with the format, and then CERTIFICATE_FORMAT must change."""
    index = np.arange(2000, dtype=np.int64)
    noise = (index * 2654435761 % 4294967296) // 65536 % 17 + (index * 40503 % 65536) // 256 % 17 - 16
    plain = PlainWeights(np.linspace(-1, 1, 11).astype(np.float16), np.abs(noise) % 11)
    found = []
    for weights, gates in (
        (plain, (7, 1999)),
        (EntropyWeights(noise // 6, 600), (7, 1999)),
        (EntropyWeights(noise[:40] * 40, 600), (7, 40)),  # magnitudes that escape to Elias delta
    ):
        quantizer = "plain" if isinstance(weights, PlainWeights) else "entropy"
        context = context_of(quantizer, len(weights.symbols), gates=2)
        payload = write_payload(MessageContents(weights, gates, 5), context)
        found.append((payload.bits, hashlib.sha256(payload.data).hexdigest()[:16]))
    assert found == [(7100, "2db00920b6af2ea3"), (4824, "5ae7777498cb340d"), (570, "bf392e282844ebff")]
    tiny = MessageContents(EntropyWeights(np.array([0, -1, 2, 0, 0, 1, 100, 0]), 517), (3,), 5)
    assert write_payload(tiny, context_of("entropy", 8, gates=1)).data.hex() == "815c9f728314e8"


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(["plain", "entropy"]), st.binary(max_size=60), st.integers(1, 12))
def test_arbitrary_bytes_are_decoded_or_refused(quantizer, data, budget):
    """A payload that decodes is the one the writer would have written: no two bit strings mean the same."""
    context = context_of(quantizer, budget, levels=2, gates=1)
    try:
        contents, payload = read_payload(data, context)
    except ValueError:
        return
    again = write_payload(contents, context)
    assert payload.data == bytes(np.packbits(bytes_to_bits(data)[: payload.bits]))
    assert again == payload


def test_total_is_the_sum_of_its_items():
    items = {"codebook": 10, "counts": 0, "symbols": 1999, "gates": 50, "smoothing": 3, "length": 0}
    total, charged = total_code_bits(items, sweep_size=30, extra_bits=2.5)
    assert charged == items | {"arm": 5, "extra": 2.5}
    assert total == sum(charged.values()) == 2069.5
    assert [total_code_bits({}, sweep_size=size)[0] for size in (1, 2, 3, 32, 33)] == [0, 1, 2, 5, 6]
    for arguments in (
        {"sweep_size": 0},
        {"sweep_size": 1, "extra_bits": -1.0},
        {"sweep_size": 1, "extra_bits": np.nan},
    ):
        with pytest.raises(ValueError, match="at least one alternative|not negative"):
            total_code_bits(items, **arguments)
    with pytest.raises(ValueError, match="items must be finite"):
        total_code_bits({"symbols": -1}, sweep_size=1)


def test_contents_that_do_not_fit_the_context_are_refused():
    context = context_of("plain", 4, gates=1)
    weights = quantize_plain(np.array([0.0, 1.0, 2.0, 3.0]), 11)
    other = quantize_entropy(np.array([0.0, 1.0, 2.0, 3.0]), 1.0)
    for contents, complaint in (
        (MessageContents(other, (0,), 0), "quantizer plain needs PlainWeights"),
        (MessageContents(weights, (), 0), "1 gates expected, got 0"),
        (MessageContents(weights, (5,), 0), r"gates must lie between 0 and \(4,\)"),
        (MessageContents(weights, (0,), 8), "smoothing index 8 is outside a grid of 8"),
    ):
        with pytest.raises(ValueError, match=complaint):
            write_payload(contents, context)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"quantizer": "vector"}, "quantizer 'vector' is not one of plain, entropy"),
        ({"budget": 0}, "impossible sizes"),
        ({"smoothing_count": 0}, "impossible sizes"),
        ({"gate_sizes": (4, 5)}, "gates must split between 1 and 4"),
        ({"gate_sizes": (0,)}, "gates must split between 1 and 4"),
    ],
)
def test_impossible_contexts_are_refused(changes, complaint):
    fields = {"budget": 4, "quantizer": "plain", "levels": 11, "gate_sizes": (), "smoothing_count": 8}
    with pytest.raises(ValueError, match=complaint):
        PayloadContext(**fields | changes)


def test_a_damaged_payload_is_refused():
    context = context_of("plain", 50, gates=1, smoothing=5)
    payload = write_payload(contents_of(context, generator(3, "w").normal(size=50)), context)
    with pytest.raises(ValueError, match="ends early|end early"):
        read_payload(payload.data[:-2], context)
    shorter = context_of("plain", 50, gates=0, smoothing=5)
    with pytest.raises(ValueError, match="bits follow its length"):
        read_payload(payload.data, shorter)
    for gate, index, complaint in (
        (51, 0, r"gates above their sizes \(50,\)"),
        (0, 5, "smoothing index 5 of a grid of 5"),
    ):
        # A wider context writes what the narrower one must refuse; its fields have the same widths.
        wide = write_payload(
            MessageContents(quantize_plain(np.ones(63), 11), (gate,), index), context_of("plain", 63, gates=1)
        )
        bits = bytes_to_bits(wide.data)[: wide.bits].copy()
        position = wide.items["length"] + wide.items["codebook"]
        counts = bits[position : position + 6]
        assert int("".join(map(str, counts)), 2) == 63
        bits[position : position + 6] = [int(digit) for digit in f"{50:06b}"]
        with pytest.raises(ValueError, match=complaint):
            read_payload(np.packbits(bits).tobytes(), context)
