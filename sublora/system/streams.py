"""Named random streams: every draw comes from an explicit seed and the name of its purpose."""

import hashlib

import numpy as np


def stream_key(*parts: int | str | bytes) -> int:
    """Return the 128-bit key of the stream that `parts` name; different parts give independent streams."""
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return int.from_bytes(digest.digest()[:16], "little")


def generator(*parts: int | str | bytes) -> np.random.Generator:
    """Return the counter-based generator (Philox) of the stream that `parts` name, the same on every machine."""
    return np.random.Generator(np.random.Philox(key=stream_key(*parts)))
