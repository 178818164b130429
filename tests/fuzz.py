"""A small fuzzer, the same on every machine: values, bytes and JSON that are nearly right."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from sublora.system.streams import generator

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 255, 10**4, 2**31, 2**53 - 1, 2**53, 2**63, 2**64, 10**30, 10**400,
    0.0, -0.0, 0.5, 1.0, 1e-300, 5e-324, 1e300, 1e308, -1.0, 1.5,
    "", " ", "a", "0", "1", "base", "all", "learned", "fixed-0.5", "fixed-1e-9", "document(64)", "token(1e-30)",
    "0" * 64, "f" * 64, "../x", "\u202e\x1b[2J", "\ud800", "9" * 3000, "x" * 3000, "1x1x1", "cuda",
    [], {}, [[]], [0], [None], ["a", "a"], {"a": 1}, {"kind": "random"}, {"kind": "pretrained"}, [10**6] * 3,
)  # fmt: skip
"""Values of every type, at the ends of ranges and beyond."""


def paths(value: Any, prefix: tuple = ()) -> Iterator[tuple]:
    """Yield the place of every value inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*prefix, key)
        yield from paths(inner, (*prefix, key))


def odd_json(value: Any, seed: int, name: str) -> Any:
    """A JSON value with one to three places changed: another value, a key more, a key less, a key's value elsewhere."""
    random, value = generator("fuzz", name, seed), copy.deepcopy(value)
    for _ in range(random.integers(1, 4)):
        places = list(paths(value))
        *above, key = places[random.integers(len(places))]
        holder = value
        for each in above:
            holder = holder[each]
        action = random.integers(10)
        if action == 0 and isinstance(holder, dict):
            del holder[key]
        elif action == 1 and isinstance(holder, dict):
            holder[f"{key}x"] = copy.deepcopy(holder[key])
        elif action == 2:
            other = places[random.integers(len(places))]
            inner = value
            for each in other:
                inner = inner[each]
            holder[key] = copy.deepcopy(inner)
        elif action == 3 and isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
            holder[key] = holder[key] * [-1, 2, 1000, 10**12][random.integers(4)]
        else:
            holder[key] = copy.deepcopy(ODD[random.integers(len(ODD))])
    return value


def odd_text(value: Any, seed: int, name: str) -> bytes:
    """JSON that is nearly text: a value with places changed, or its text with bytes changed."""
    if seed % 3:
        return json.dumps(odd_json(value, seed, name)).encode()
    return odd_bytes(json.dumps(value).encode(), seed, name)


def odd_bytes(data: bytes, seed: int, name: str) -> bytes:
    """Bytes with a few of them changed, a piece left out, repeated, or moved, or the end cut off."""
    random, changed = generator("fuzz bytes", name, seed), bytearray(data)
    for _ in range(random.integers(1, 6)):
        if not changed:
            break
        start, length = int(random.integers(len(changed))), int(random.integers(1, 40))
        piece = changed[start : start + length]
        match random.integers(6):
            case 0:
                changed[start] ^= 1 << int(random.integers(8))
            case 1:
                changed[start : start + length] = random.bytes(length)
            case 2:
                del changed[start : start + length]
            case 3:
                changed[start:start] = piece * int(random.integers(1, 4))
            case 4:
                changed[start : start + len(piece)] = bytes([0, 255, 1, 127][random.integers(4)] for _ in piece)
            case _:
                del changed[start:]
    return bytes(changed)


def odd_bits(bits: np.ndarray, seed: int) -> np.ndarray:
    """Bits with some flipped, cut off or appended."""
    random, bits = generator("fuzz bits", seed), bits.copy()
    match seed % 3:
        case 0:
            bits[random.integers(len(bits), size=random.integers(1, 5))] ^= 1
        case 1:
            bits = bits[: random.integers(len(bits))]
        case _:
            start = random.integers(len(bits))
            bits[start:] = random.integers(2, size=len(bits) - start)
            bits = np.append(bits, random.integers(2, size=random.integers(200))).astype(np.uint8)
    return bits
