"""The hashes that name a subspace: theta at w = 0, and the map from w to theta.

A certificate holds both, so that a reader whose version draws other arrays from the same seeds is refused. Does not
import torch.
"""

import hashlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sublora.subspace.subspace import Subspace


def lora_init_sha256(subspace: "Subspace") -> str:
    """Return the hexadecimal hash that names theta at w = 0."""
    return _arrays_sha256([("theta", subspace.origin_D.cpu().numpy())])


def projection_sha256(subspace: "Subspace") -> str:
    """Return the hexadecimal hash that names the map from w to theta.

    It covers which coordinates feed which entries, behind which gates, and by which arrays.
    """
    digest = hashlib.sha256()
    buffers = dict(subspace.named_buffers())
    for part in subspace.parts:
        rows, coordinates = part.rows, part.coordinates
        layout = [part.name, rows.start, rows.stop, coordinates.start, coordinates.stop, part.gate, part.takes_first]
        layout_sha256 = hashlib.sha256(json.dumps(layout, separators=(",", ":")).encode()).hexdigest()
        prefix = f"{part.name}__"
        arrays = [(name, buffers[name].cpu().numpy()) for name in sorted(buffers) if name.startswith(prefix)]
        digest.update(layout_sha256.encode() + _arrays_sha256(arrays).encode())
    return digest.hexdigest()


def _arrays_sha256(arrays: Iterable[tuple[str, NDArray]]) -> str:
    """Return the hash of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, array in arrays:
        values = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        digest.update(f"{name} {values.dtype.str} {values.shape}\0".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()
