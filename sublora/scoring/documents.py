"""Losses of a language model on documents.

Shape legend: D documents, A smoothing values, K scored targets, N windows, T positions, S tokens of all documents.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from sublora.device import to_device
from sublora.nn.gpt import FrozenGPT
from sublora.nn.lora import Adapters
from sublora.scoring import TOP_K
from sublora.scoring.windows import Windows, sliding_windows


@dataclasses.dataclass(frozen=True)
class DocumentLosses:
    """What a model does on documents, one row a document."""

    losses_DA: np.ndarray
    """float64, bits per token: mean over the document's targets of -log2((1 - a) p + a / V)."""
    topk_errors_DK: np.ndarray
    """float64 in [0, 1]: share of targets that are not among the k likeliest tokens, for k in TOP_K."""
    target_counts: np.ndarray
    """Targets of each document: its tokens and the closing end-of-text."""


@torch.no_grad()
def score_documents(
    base: FrozenGPT,
    adapters: Adapters,
    documents: Sequence[np.ndarray],
    *,
    eot_id: int,
    stride: int,
    smoothing: Sequence[float],
    batch_tokens: int,
) -> DocumentLosses:
    """Score every target of every document (token arrays without end-of-text) exactly once.

    A GPU is never waited for until the last batch is queued. Eight bytes a target stay on the device until then.
    """
    counts = np.array([len(document) + 1 for document in documents], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    stream_S = _stream(documents, eot_id)
    windows = sliding_windows(counts, context_length=base.shape.context_length, stride=stride)
    device = base.weight("wte.weight").device
    scores, places = [], []
    for rows_N in _batches(windows.length, batch_tokens):
        tokens_NT, positions_K, targets_K, places_K = _assemble(stream_S, windows, rows_N, offsets)
        tokens_NT, positions_K, targets_K = (to_device(part, device) for part in (tokens_NT, positions_K, targets_K))
        hidden_KC = base.hidden(tokens_NT, adapters).flatten(0, 1)[positions_K]
        scores.append(base.target_scores(hidden_KC, targets_K, adapters))
        places.append(places_K)
    log_p, ranks = np.empty(offsets[-1], dtype=np.float32), np.empty(offsets[-1], dtype=np.int32)
    places_S = np.concatenate(places)
    for values, parts in zip((log_p, ranks), zip(*scores, strict=True), strict=True):
        values[places_S] = torch.cat(parts).cpu().numpy()
    return DocumentLosses(
        losses_DA=_document_losses(log_p, offsets, smoothing, base.vocab_size),
        topk_errors_DK=np.stack([_document_means(ranks >= k, offsets) for k in TOP_K], axis=1),
        target_counts=counts,
    )


def _stream(documents: Sequence[np.ndarray], eot_id: int) -> np.ndarray:
    """int64 (S): an end-of-text token, then every document with its own.

    Target t of the document at offset o is token o + t + 1, and the token before it is what the network reads: for
    the first target the end-of-text that ends the document before.
    """
    end = np.array([eot_id])
    return np.concatenate([end, *(part for document in documents for part in (document, end))]).astype(np.int64)


def _batches(length_N: np.ndarray, batch_tokens: int) -> Iterator[np.ndarray]:
    """Indices of windows that go through the model together: of like length, at most `batch_tokens` positions.

    A window longer than that goes alone.
    """
    order = np.argsort(length_N, kind="stable")
    lengths = length_N[order].tolist()
    start = 0
    for stop in range(1, len(lengths) + 1):
        if stop == len(lengths) or lengths[stop] * (stop + 1 - start) > batch_tokens:
            yield order[start:stop]
            start = stop


def _assemble(
    stream_S: np.ndarray, windows: Windows, rows_N: np.ndarray, offsets: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(inputs N x T, scored positions K of the flattened N x T, their targets K, and where they belong among all).

    Shorter windows are padded on the right with whatever follows, which a causal model never sees.
    """
    length_N1 = windows.length[rows_N][:, None]
    position_T = np.arange(int(length_N1.max()))
    place_NT = (offsets[windows.document[rows_N]] + windows.start[rows_N])[:, None] + position_T
    first_scored_N1 = length_N1 - windows.scored[rows_N][:, None]
    scored_NT = (first_scored_N1 <= position_T) & (position_T < length_N1)
    places_K = place_NT[scored_NT]
    tokens_NT = stream_S[np.minimum(place_NT, len(stream_S) - 1)]
    return tokens_NT, np.flatnonzero(scored_NT), stream_S[places_K + 1], places_K


def _document_losses(log_p: np.ndarray, offsets: np.ndarray, smoothing: Sequence[float], vocab_size: int) -> np.ndarray:
    probabilities = np.exp(np.minimum(log_p.astype(np.float64), 0.0))
    columns = [_document_means(-np.log2((1.0 - a) * probabilities + a / vocab_size), offsets) for a in smoothing]
    return np.stack(columns, axis=1)


def _document_means(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    return np.add.reduceat(values.astype(np.float64), offsets[:-1]) / np.diff(offsets)
