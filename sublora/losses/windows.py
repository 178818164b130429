"""Sliding windows over documents such that each token is scored exactly once, and the batches that training draws.

A document of T - 1 tokens is read as inputs EOT, x_1, ..., x_{T-1} and targets x_1, ..., x_{T-1}, EOT: T scored
targets, the closing end-of-text among them. Nothing crosses documents.

A batch of training is made of windows of documents, weighted as the bound weights them, or of chunks of contiguous
text. It depends only on the seed and the step, so a resumed training sees the same batches. Short windows go through
the network beside others of about their length, not beside padding up to the context.

Shape legend: D documents, N windows or sequences, T positions, S tokens of all documents.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from sublora.data.units import Units
from sublora.system.errors import UserError
from sublora.system.streams import generator


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


def padded_widths(length_N: np.ndarray, context_length: int, narrowest: int) -> np.ndarray:
    """Return the positions that windows take when few widths are allowed, int64 (N).

    These are the context length or the smallest of its repeated halves that holds the window; the halving ends with the
    first width of at most `narrowest` positions.
    """
    widths = [context_length]
    while widths[-1] > narrowest:
        widths.append(-(-widths[-1] // 2))
    widths_W = np.array(widths[::-1])
    return widths_W[np.searchsorted(widths_W, length_N)]


def grouped_by_width(width_N: np.ndarray, positions: int, parts: int = 1) -> Iterator[tuple[np.ndarray, int]]:
    """Yield windows of one width that go through the network together, and the width, widest first.

    A group takes at most `positions`, a single window excepted, and holds at most one of `parts` equal shares of the
    windows of its width.
    """
    for width in np.unique(width_N)[::-1].tolist():
        members_M = np.flatnonzero(width_N == width)
        rows = max(1, min(positions // width, -(-len(members_M) // parts)))
        for start in range(0, len(members_M), rows):
            yield members_M[start : start + rows], width


@dataclasses.dataclass(frozen=True)
class BatchShape:
    """How the windows of a step are divided into micro-batches."""

    windows: int
    """Windows of a step."""
    micro_batch_windows: int
    """Windows of a micro-batch as wide as the context; narrower ones hold more."""
    processes: int = 1
    """Processes that share the micro-batches of a step."""
    one_width: bool = False
    """Whether every window is padded to the context, for a compiled network, which is fastest with one shape."""

    NARROWEST = 32
    """Windows of at most this many positions share a width. Narrower products use a processor badly."""
    WORTHWHILE_SHARE = 0.75
    """Widths differ in a step where its positions fall below this share: each micro-batch has costs of its own."""

    def micro_batches(self, length_N: np.ndarray, context_length: int) -> list[tuple[np.ndarray, int]]:
        """Return which windows each micro-batch holds, and its positions per window; widest first."""
        width_N = padded_widths(length_N, context_length, self.NARROWEST)
        if self.one_width or width_N.sum() >= self.WORTHWHILE_SHARE * context_length * len(width_N):
            width_N = np.full(len(width_N), context_length)
        return list(grouped_by_width(width_N, self.micro_batch_windows * context_length, self.processes))


class DocumentSampler:
    """Draws a unit, then one of its documents, then one of its targets, and takes the window that scores this target.

    The expected weighted loss of a batch is the mean over units of the mean over their documents of the mean loss of
    their targets. Training thus minimizes what the bound is about, in the windows of `sublora.losses.documents`: a
    document's first target follows an end-of-text token, and no window crosses documents.
    """

    def __init__(
        self,
        tokens_S: np.ndarray,
        ends_D: np.ndarray,
        rule: WindowRule,
        *,
        units: Units,
        eot_id: int,
        shape: BatchShape,
        seed_parts: tuple[int | str, ...],
    ) -> None:
        """Sample from the tokens of a split.

        Args:
            tokens_S: all tokens; `eot_id` stands at `ends_D`, the end of each document.
            ends_D: positions of the end-of-text tokens, ascending.
            rule: how documents are cut into windows.
            units: how the documents are grouped.
            eot_id: the end-of-text token.
            shape: the number of windows, and how they are divided.
            seed_parts: name the random stream.
        """
        # As a plain array: indexing a memory map would create another memory map each time.
        self._tokens_S, self._eot_id, self._rule = np.asarray(tokens_S), eot_id, rule
        self._shape, self._seed_parts, self._units = shape, seed_parts, units
        self._first_D = np.concatenate([[0], np.asarray(ends_D[:-1], dtype=np.int64) + 1])
        self._count_D = np.asarray(ends_D, dtype=np.int64) + 1 - self._first_D

    def micro_batches(self, step: int) -> list[tuple[np.ndarray, ...]]:
        """Return inputs, targets, weights (M x T) and lengths (M) of a step's micro-batches, the last two float32.

        The weights of all positions of the step sum to 1, those of each of its N windows to 1 / N; lengths are the
        numbers of targets of the whole documents.
        """
        rng, n_windows = generator(*self._seed_parts, "document batch of step", step), self._shape.windows
        document_N = self._units.documents_of(rng.integers(len(self._units), size=n_windows), rng)
        count_N = self._count_D[document_N]
        target_N = (rng.random(n_windows) * count_N).astype(np.int64)
        windows = windows_of_targets(document_N, target_N, count_N, self._rule)
        pieces = self._shape.micro_batches(windows.length, self._rule.context_length)
        return [self._micro_batch(windows[rows_M], count_N[rows_M], width) for rows_M, width in pieces]

    def _micro_batch(self, windows: Windows, count_M: np.ndarray, width: int) -> tuple[np.ndarray, ...]:
        text = window_tokens(self._tokens_S, self._first_D, windows, eot_id=self._eot_id, width=width)
        weights_MT = np.where(text.scored_NT, 1.0 / (windows.scored[:, None] * self._shape.windows), 0.0)
        return text.inputs_NT, text.targets_NT, weights_MT.astype(np.float32), count_M.astype(np.float32)


class ChunkSampler:
    """Draws random chunks of contiguous tokens, which may cross documents."""

    def __init__(
        self, tokens_S: np.ndarray, context_length: int, sequences_per_step: int, *seed_parts: int | str | bytes
    ) -> None:
        """Sample from integer tokens, for example `TokenDataset.tokens("train")`.

        UserError if they are too few for one chunk.
        """
        _check_long_enough(tokens_S, context_length, "train")
        self._tokens_S, self._context_length = tokens_S, context_length
        self._sequences, self._seed_parts = sequences_per_step, seed_parts

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return inputs and targets of a step, int64 (N x T), of chunks drawn uniformly with replacement.

        Targets are the inputs shifted by one token.
        """
        rng = generator(*self._seed_parts, "batch of step", step)
        starts_N = rng.integers(len(self._tokens_S) - self._context_length, size=self._sequences)
        return _chunks(self._tokens_S, starts_N, self._context_length)


def evaluation_chunks(
    tokens_S: np.ndarray, context_length: int, sequences: int, batch_sequences: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield inputs and targets (N x T) of chunks spread evenly over a split, at most `batch_sequences` at a time.

    The chunks are the same in every call and do not overlap: a split that is too short for `sequences` of them gives as
    many as fit. UserError if not even one fits.
    """
    _check_long_enough(tokens_S, context_length, "evaluation")
    count = min(sequences, (len(tokens_S) - 1) // context_length)
    last = len(tokens_S) - context_length - 1
    starts_N = np.linspace(0, last, count).astype(np.int64) if count > 1 else np.zeros(1, dtype=np.int64)
    for first in range(0, count, batch_sequences):
        yield _chunks(tokens_S, starts_N[first : first + batch_sequences], context_length)


def _check_long_enough(tokens_S: np.ndarray, context_length: int, purpose: str) -> None:
    if len(tokens_S) < context_length + 1:
        raise UserError(
            f"model.context_length {context_length}: {len(tokens_S)} {purpose} tokens, expected at least "
            f"{context_length + 1} (a chunk and its last target); give more text or a shorter context"
        )


def _chunks(tokens_S: np.ndarray, starts_N: np.ndarray, context_length: int) -> tuple[np.ndarray, np.ndarray]:
    chunks = tokens_S[starts_N[:, None] + np.arange(context_length + 1)].astype(np.int64)
    return chunks[:, :-1], chunks[:, 1:]
