"""Digests name things in certificates: each is pinned to the value it has always had."""

import hashlib

import numpy as np
import pytest
import torch

from sublora.system.digests import canonical_json, json_sha256, tensors_sha256


def test_canonical_json_has_one_spelling() -> None:
    """Order of keys and spaces do not count, and what is no plain JSON is refused."""
    value = {"b": [1, 2.5, None], "a": {"é": True}}
    assert canonical_json(value) == b'{"a":{"\\u00e9":true},"b":[1,2.5,null]}'
    assert canonical_json(dict(reversed(value.items()))) == canonical_json(value)
    assert json_sha256(value) == hashlib.sha256(canonical_json(value)).hexdigest()
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json([float("nan")])
    with pytest.raises(TypeError):
        canonical_json(np.float32(1.0))


def test_digest_of_arrays_is_that_of_their_labels_and_values() -> None:
    """Names alone, or names with types and shapes; little-endian, in C order, in the order given."""
    array = np.arange(6, dtype=">i4").reshape(2, 3).T
    data = np.ascontiguousarray(array).astype("<i4").tobytes()
    typed, named = b"x <i4 (3, 2)\0" + data, b"x\0" + data
    assert tensors_sha256([("x", array)]) == hashlib.sha256(typed).hexdigest()
    assert tensors_sha256([("x", array)], with_type=False) == hashlib.sha256(named).hexdigest()
    assert tensors_sha256([("x", array)], after="of") == hashlib.sha256(b"of" + typed).hexdigest()
    # A number without dimensions is hashed as an array of one.
    scalar, empty = np.float64(0.5), np.zeros((0, 4), dtype=bool)
    expected = b"s <f8 (1,)\0" + scalar.tobytes() + b"e |b1 (0, 4)\0"
    assert tensors_sha256([("s", np.array(scalar)), ("e", empty)]) == hashlib.sha256(expected).hexdigest()


def test_digest_of_tensors_names_the_types_of_torch() -> None:
    """Types that NumPy lacks, views, numbers without dimensions, and parameters."""
    half = torch.arange(4, dtype=torch.bfloat16).view(2, 2).T
    expected = b"h torch.bfloat16 (2, 2)\0" + half.contiguous().view(torch.int16).numpy().tobytes()
    expected += b"p torch.float32 ()\0" + np.float32(2.0).tobytes() + b"e torch.int64 (0,)\0"
    tensors = [("h", half), ("p", torch.nn.Parameter(torch.tensor(2.0))), ("e", torch.zeros(0, dtype=torch.int64))]
    assert tensors_sha256(tensors) == hashlib.sha256(expected).hexdigest()
    assert tensors_sha256([("h", half.float().numpy())]) != tensors_sha256([("h", half.float())])
