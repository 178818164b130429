"""The digests that name things: of plain values as canonical JSON, and of named tensors.

Certificates hold these digests, so neither function may ever give another one for the same value.
"""

import hashlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch

SHA256_BYTES = hashlib.sha256().digest_size


def canonical_json(value: object) -> bytes:
    """Return the one spelling of a plain JSON value: keys sorted, no spaces, ASCII.

    Raises:
        ValueError: a number is NaN or infinite.
        TypeError: the value holds something that JSON does not know.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def json_sha256(value: object) -> str:
    """Return the sha256, in hexadecimal, of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def tensors_sha256(
    tensors: "Iterable[tuple[str, np.ndarray | torch.Tensor]]", *, with_type: bool = True, after: str = ""
) -> str:
    """Return the sha256, in hexadecimal, of named tensors in the given order, values little-endian.

    Args:
        tensors: names and values. The values of a lazy iterable are in memory one at a time.
        with_type: hash each tensor's type and shape as well. NumPy's and PyTorch's types are spelled differently
            (`<f4`, `torch.float32`), so an array and an equal tensor have two digests. Without, the names alone must
            imply type and shape, as those of a GPT's weights do.
        after: text that is hashed before the first tensor, such as the digest of what the tensors belong to.
    """
    digest = hashlib.sha256(after.encode())
    for name, tensor in tensors:
        kind, shape, data = _described(tensor)
        label = f"{name} {kind} {shape}" if with_type else name
        digest.update(label.encode() + b"\0")
        digest.update(data)
    return digest.hexdigest()


def _described(tensor: "np.ndarray | torch.Tensor") -> tuple[str, tuple[int, ...], memoryview]:
    """Type, shape and bytes of a tensor."""
    import numpy as np

    if isinstance(tensor, np.ndarray):
        values = np.ascontiguousarray(tensor, dtype=tensor.dtype.newbyteorder("<"))
        return values.dtype.str, values.shape, values.data
    import torch

    # As bytes, since NumPy has no bfloat16.
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return str(tensor.dtype), tuple(tensor.shape), data
