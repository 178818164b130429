"""Text that is on every machine with Python: lines of the standard library, code and comments.

Lines of a few packages are hardly independent draws from anything: the examples show how a bound is made, no more.
"""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np

PACKAGES = ("asyncio", "concurrent", "email", "http", "importlib", "json", "logging", "multiprocessing", "unittest")
BYTES = 32
"""Length of an example: this many bytes of a line, from its first letter on. Shorter lines are left out."""


def _source_lines() -> Iterator[str]:
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise FileNotFoundError(f"the standard library lacks {package}")
        for path in sorted(Path(spec.origin).parent.rglob("*.py")):
            if "test" not in path.parts:
                yield from path.read_text(encoding="utf-8").splitlines()


def _distinct(lines: Iterator[str]) -> np.ndarray:
    """Bytes (lines x BYTES), int64, every text once, in a random order."""
    cut = dict.fromkeys(text.encode()[:BYTES] for text in lines if len(text.encode()) >= BYTES)
    array = np.frombuffer(b"".join(cut), dtype=np.uint8).reshape(-1, BYTES).astype(np.int64)
    return array[np.random.default_rng(0).permutation(len(array))]


def code() -> np.ndarray:
    """Lines that are no comment."""
    return _distinct(text for line in _source_lines() if (text := line.strip()) and not text.startswith("#"))


def comments() -> np.ndarray:
    """Comments, without their sign."""
    return _distinct(line.strip().lstrip("# ") for line in _source_lines() if line.strip().startswith("#"))
