"""Sliding windows over documents such that each token is scored exactly once.

A document of T - 1 tokens is read as inputs EOT, x_1, ..., x_{T-1} and targets x_1, ..., x_{T-1}, EOT: T scored
targets, the closing end-of-text among them. Nothing crosses documents.

Shape legend: D documents, N windows, T positions, S tokens of all documents.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class WindowRule:
    """How windows move over a document longer than the context."""

    context_length: int
    stride: int
    """Targets that each window after the first one scores."""

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.context_length:
            raise ValueError(f"stride {self.stride} must lie between 1 and the context length {self.context_length}")


@dataclasses.dataclass(frozen=True)
class Windows:
    """Windows of many documents; one array entry per window, positions counted in the document's inputs."""

    document: np.ndarray
    start: np.ndarray
    length: np.ndarray
    scored: np.ndarray
    """The number of a window's last targets that it scores; the earlier ones are context."""

    def __getitem__(self, rows: np.ndarray | slice) -> "Windows":
        """Return the windows in these rows."""
        return Windows(self.document[rows], self.start[rows], self.length[rows], self.scored[rows])


def sliding_windows(counts_D: np.ndarray, rule: WindowRule) -> Windows:
    """Return all windows of documents with the given numbers of targets.

    The first window holds up to `context_length` positions and scores them all. Each later one starts `stride`
    positions further on and scores the `stride` new targets; the last one ends with the document and scores what is
    left. The start of a window does not depend on the document's length, so a target is predicted from nothing but the
    tokens before it.
    """
    counts_D = np.asarray(counts_D, dtype=np.int64)
    windows_D = -(-np.maximum(counts_D - rule.context_length, 0) // rule.stride) + 1
    document_N = np.repeat(np.arange(len(counts_D)), windows_D)
    index_N = np.arange(len(document_N)) - np.repeat(np.cumsum(windows_D) - windows_D, windows_D)
    return _windows_at(document_N, index_N, counts_D[document_N], rule)


def windows_of_targets(document_N: np.ndarray, target_N: np.ndarray, count_N: np.ndarray, rule: WindowRule) -> Windows:
    """Return, for each document with `count` targets, the window that scores the given target (counted from 0)."""
    index_N = np.maximum(0, -(-(target_N + 1 - rule.context_length) // rule.stride))
    return _windows_at(document_N, index_N, count_N, rule)


def _windows_at(document_N: np.ndarray, index_N: np.ndarray, count_N: np.ndarray, rule: WindowRule) -> Windows:
    """Return the window with this index (0 is the first) of each document."""
    stop_N = np.minimum(rule.context_length + index_N * rule.stride, count_N)
    scored_N = np.where(index_N == 0, stop_N, stop_N - (rule.context_length + (index_N - 1) * rule.stride))
    start_N = index_N * rule.stride
    return Windows(document=document_N, start=start_N, length=stop_N - start_N, scored=scored_N)


@dataclasses.dataclass(frozen=True)
class WindowTokens:
    """What the network reads in windows, and the targets it predicts; shorter windows are padded on the right."""

    inputs_NT: np.ndarray
    targets_NT: np.ndarray
    scored_NT: np.ndarray
    """Whether the position's target is scored by its window."""
    place_NT: np.ndarray
    """Position of the target among all tokens; meaningless where nothing is scored."""


def window_tokens(
    tokens_S: np.ndarray, first_D: np.ndarray, windows: Windows, *, eot_id: int, width: int | None = None
) -> WindowTokens:
    """Return inputs and targets, int64, of windows over documents that lie end to end, each closed by `eot_id`.

    first_D: the position of each document's first token; `width`: positions per row, by default those of the longest
    window. A causal model never sees the padding. The input before a document's first target is the end-of-text of the
    document before it, and for the first document that of the last one.
    """
    length_N1 = windows.length[:, None]
    position_T = np.arange(int(length_N1.max()) if width is None else width)
    inside_NT = position_T < length_N1
    first_N = first_D[windows.document] + windows.start
    place_NT = np.where(inside_NT, first_N[:, None] + position_T, first_N[:, None])
    return WindowTokens(
        inputs_NT=np.where(inside_NT, tokens_S[place_NT - 1], eot_id).astype(np.int64),
        targets_NT=np.where(inside_NT, tokens_S[place_NT], eot_id).astype(np.int64),
        scored_NT=inside_NT & (position_T >= length_N1 - windows.scored[:, None]),
        place_NT=place_NT,
    )
