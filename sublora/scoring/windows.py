"""Sliding windows over one document, so that each of its tokens is scored exactly once.

A document of T - 1 tokens is read as inputs EOT, x_1, ..., x_{T-1} and targets x_1, ..., x_{T-1}, EOT: T scored
targets, the closing end-of-text among them. Nothing crosses documents.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Windows:
    """Windows of many documents; one array entry a window, positions counted in the document's inputs."""

    document: np.ndarray
    start: np.ndarray
    length: np.ndarray
    scored: np.ndarray
    """How many of a window's last targets it scores; the earlier ones are context."""


def sliding_windows(target_counts: np.ndarray, *, context_length: int, stride: int) -> Windows:
    """Windows for documents with the given numbers of targets.

    The first window holds up to `context_length` positions and scores them all. Each later one starts `stride`
    positions further and scores the `stride` new targets; the last one ends with the document and scores what
    is left, with a full context.
    """
    if not 1 <= stride <= context_length:
        raise ValueError(f"stride {stride} must lie between 1 and the context length {context_length}")
    counts = np.asarray(target_counts, dtype=np.int64)
    later = -(-np.maximum(counts - context_length, 0) // stride)
    windows = later + 1
    document = np.repeat(np.arange(len(counts)), windows)
    index = np.arange(len(document)) - np.repeat(np.cumsum(windows) - windows, windows)
    stop = np.minimum(context_length + index * stride, counts[document])
    scored = np.where(index == 0, stop, stop - (context_length + (index - 1) * stride))
    start = np.maximum(stop - context_length, 0)
    return Windows(document=document, start=start, length=stop - start, scored=scored)
