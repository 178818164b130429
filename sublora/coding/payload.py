"""The payload: the part of the message whose every bit is charged, and the count C of all bits charged.

Layout, in this order, without padding between fields:

| item | plain | entropy |
|---|---|---|
| length | Elias gamma code of K, the bits that follow | none |
| codebook | 16 bits per level | 10 bits, the step |
| counts | ceil(log2(d + 1)) bits per level | none |
| symbols | range-coded | range-coded flags, signs, excesses |
| gates | ceil(log2(size + 1)) bits each, size the coordinates that the gate splits | the same |
| smoothing | ceil(log2 of the grid's size) bits | the same |

Every field is self-delimiting given the PayloadContext, so neither scheme needs a length. The plain scheme carries one
all the same: the published accounting turns K bits into K + 2 log2 K + 1, and the gamma code, 2 floor(log2 K) + 1 bits,
is the prefix-free code behind that term. It is part of the payload, so the bits charged are the bits in the file.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sublora.coding.bits import BitReader, BitWriter, bits_to_bytes, bytes_to_bits, index_bits
from sublora.coding.quantizer import (
    ENTROPY,
    PLAIN,
    EntropyWeights,
    PlainWeights,
    read_entropy,
    read_plain,
    write_entropy,
    write_plain,
)

ITEMS = ("codebook", "counts", "symbols", "gates", "smoothing", "length")
"""What the payload's bits are spent on; a scheme without an item spends 0 on it."""


@dataclass(frozen=True)
class PayloadContext:
    """What writer and reader know independently of the training data."""

    budget: int
    """d, the number of coefficients."""
    quantizer: str
    """plain or entropy."""
    levels: int
    """Levels of the plain scheme."""
    gate_sizes: tuple[int, ...]
    """Coefficients that each gate splits, at most d; empty if nothing is learned."""
    smoothing_count: int
    """Candidates of the smoothing."""

    def __post_init__(self) -> None:
        if self.quantizer not in (PLAIN, ENTROPY):
            raise ValueError(f"quantizer '{self.quantizer}' is not one of {PLAIN}, {ENTROPY}")
        if self.budget < 1 or self.levels < 1 or self.smoothing_count < 1:
            raise ValueError(f"impossible sizes in {self}")
        if not all(1 <= size <= self.budget for size in self.gate_sizes):
            raise ValueError(f"gates must split between 1 and {self.budget} coefficients, got {self.gate_sizes}")


@dataclass(frozen=True)
class MessageContents:
    """Everything the training data chose, as far as the payload carries it."""

    weights: PlainWeights | EntropyWeights
    gates: tuple[int, ...]
    """Hard gates k, from 0 to the gate's size, in an order fixed beforehand: layers 0, 1, ..., then the head."""
    smoothing_index: int


@dataclass(frozen=True)
class Payload:
    """Frozen bits: `data` holds `bits` of them, most significant first, padded with zeros to whole bytes."""

    data: bytes
    bits: int
    items: dict[str, int]
    """Bits of each of ITEMS; they sum to `bits`."""


def write_payload(contents: MessageContents, context: PayloadContext) -> Payload:
    """Encode the contents of a message. ValueError if they do not fit the context."""
    # Check the contents against the context.
    wanted = PlainWeights if context.quantizer == PLAIN else EntropyWeights
    if not isinstance(contents.weights, wanted):
        raise ValueError(f"quantizer {context.quantizer} needs {wanted.__name__}")
    if len(contents.gates) != len(context.gate_sizes):
        raise ValueError(f"{len(context.gate_sizes)} gates expected, got {len(contents.gates)}")
    if not all(0 <= gate <= size for gate, size in zip(contents.gates, context.gate_sizes, strict=True)):
        raise ValueError(f"gates must lie between 0 and {context.gate_sizes}, got {contents.gates}")
    if not 0 <= contents.smoothing_index < context.smoothing_count:
        raise ValueError(f"smoothing index {contents.smoothing_index} is outside a grid of {context.smoothing_count}")

    # Write the body and count the bits of each item: weights, gates, smoothing.
    body = BitWriter()
    items = dict.fromkeys(ITEMS, 0)
    if isinstance(contents.weights, PlainWeights):
        items |= write_plain(contents.weights, context.budget, context.levels, body)
    else:
        items |= write_entropy(contents.weights, context.budget, body)
    after_weights = body.position
    for gate, size in zip(contents.gates, context.gate_sizes, strict=True):
        body.write_uint(gate, index_bits(size + 1))
    items["gates"] = body.position - after_weights
    body.write_uint(contents.smoothing_index, index_bits(context.smoothing_count))
    items["smoothing"] = body.position - after_weights - items["gates"]

    # The plain scheme puts the length of the body before it.
    writer = BitWriter()
    if context.quantizer == PLAIN:
        writer.write_elias_gamma(body.position)
    items["length"] = writer.position
    writer.write_bits(body.bits())
    return Payload(bits_to_bytes(writer.bits()), writer.position, items)


def read_payload(data: bytes, context: PayloadContext) -> tuple[MessageContents, Payload]:
    """Decode the payload at the front of `data` and ignore what follows it.

    Returns:
        The contents, and the payload as read: its own bits (without what follows) and their items.

    Raises:
        ValueError: the bits are not a payload of this context.
    """
    # Read the items in the order of the layout, and count the bits of each.
    bits = bytes_to_bits(data)
    reader = BitReader(bits)
    items = dict.fromkeys(ITEMS, 0)
    body_bits = reader.read_elias_gamma() if context.quantizer == PLAIN else None
    items["length"] = reader.position
    weights: PlainWeights | EntropyWeights
    if context.quantizer == PLAIN:
        weights, weight_items = read_plain(context.budget, context.levels, reader)
    else:
        weights, weight_items = read_entropy(context.budget, reader)
    items |= weight_items
    after_weights = reader.position
    gates = tuple(reader.read_uint(index_bits(size + 1)) for size in context.gate_sizes)
    items["gates"] = reader.position - after_weights
    smoothing_index = reader.read_uint(index_bits(context.smoothing_count))
    items["smoothing"] = reader.position - after_weights - items["gates"]

    # Refuse what no writer produces.
    if body_bits not in (None, reader.position - items["length"]):
        raise ValueError(f"the payload says {body_bits} bits follow its length, {reader.position - items['length']} do")
    if any(gate > size for gate, size in zip(gates, context.gate_sizes, strict=True)):
        raise ValueError(f"the payload holds gates above their sizes {context.gate_sizes}: {gates}")
    if smoothing_index >= context.smoothing_count:
        raise ValueError(f"the payload holds smoothing index {smoothing_index} of a grid of {context.smoothing_count}")
    payload = Payload(bits_to_bytes(bits[: reader.position]), reader.position, items)
    return MessageContents(weights, gates, smoothing_index), payload


def total_code_bits(
    items: Mapping[str, float], *, sweep_size: int, extra_bits: float = 0.0
) -> tuple[float, dict[str, float]]:
    """Return C, the number of bits that are charged, and its items.

    Args:
        items: bits of the payload's items.
        sweep_size: runs of the sweep. Naming one costs ceil(log2 sweep_size) bits, always charged, so that a bound over
            the n documents holds for all runs at once. The draws of m need a union bound of their own
            (bound_all_runs).
        extra_bits: for choices made by hand on this data, log2 of the number of alternatives tried.

    Returns:
        (C, items with "arm" and "extra" added); the items sum to C.

    Raises:
        ValueError: bits that are not finite or negative.
    """
    if not (math.isfinite(extra_bits) and extra_bits >= 0):
        raise ValueError(f"extra_bits must be finite and not negative, got {extra_bits}")
    if not all(math.isfinite(bits) and bits >= 0 for bits in items.values()):
        raise ValueError(f"items must be finite and not negative, got {dict(items)}")
    # Which run of the sweep it is, and what was chosen by hand, is charged beside the payload.
    charged = {**items, "arm": index_bits(sweep_size), "extra": extra_bits}
    return sum(charged.values()), charged
