"""Losses of a language model on documents.

Shape legend: D documents, A smoothing values, K scored targets, N windows, T positions.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sublora.nn.gpt import FrozenGPT
from sublora.nn.lora import Adapters
from sublora.scoring.windows import Windows, sliding_windows

TOP_K = (1, 10, 100)
LOGITS_ELEMENTS = 1 << 24
"""Logits held at once on the device."""


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
    """Score every target of every document (token arrays without end-of-text) exactly once."""
    counts = np.array([len(document) + 1 for document in documents], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    log_p = np.empty(offsets[-1], dtype=np.float32)
    ranks = np.empty(offsets[-1], dtype=np.int32)
    windows = sliding_windows(counts, context_length=base.shape.context_length, stride=stride)
    for batch in _batches(windows, batch_tokens):
        tokens_NT, targets_NT, scored_NT, where_K = _assemble(documents, windows, batch, offsets, eot_id)
        device = base.weight("wte.weight").device
        log_p[where_K], ranks[where_K] = _targets_in_batch(
            base, adapters, *(torch.from_numpy(part).to(device) for part in (tokens_NT, targets_NT, scored_NT))
        )
    return DocumentLosses(
        losses_DA=_document_losses(log_p, offsets, smoothing, base.vocab_size),
        topk_errors_DK=np.stack([_document_means(ranks >= k, offsets) for k in TOP_K], axis=1),
        target_counts=counts,
    )


def _batches(windows: Windows, batch_tokens: int) -> list[np.ndarray]:
    """Indices of windows that go through the model together: of like length, about `batch_tokens` positions."""
    order = np.argsort(windows.length, kind="stable")
    batches, start = [], 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and windows.length[order[stop]] * (stop + 1 - start) <= batch_tokens:
            stop += 1
        batches.append(order[start:stop])
        start = stop
    return batches


def _assemble(
    documents: Sequence[np.ndarray], windows: Windows, batch: np.ndarray, offsets: np.ndarray, eot_id: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Inputs, targets and scored mask (N x T), and where each scored target belongs in the flat result (K).

    Shorter windows are padded on the right, which a causal model never sees.
    """
    longest = int(windows.length[batch].max())
    tokens_NT = np.full((len(batch), longest), eot_id, dtype=np.int64)
    targets_NT = np.full((len(batch), longest), eot_id, dtype=np.int64)
    scored_NT = np.zeros((len(batch), longest), dtype=bool)
    where = []
    for row, window in enumerate(batch):
        document = documents[windows.document[window]]
        start, length, scored = (int(v[window]) for v in (windows.start, windows.length, windows.scored))
        # Input position p holds token p - 1 (position 0 the EOT), target position p holds token p.
        first = 1 if start == 0 else 0
        tokens_NT[row, first:length] = document[start + first - 1 : start + length - 1]
        targets = document[start : start + length]
        targets_NT[row, : len(targets)] = targets
        scored_NT[row, length - scored : length] = True
        base = offsets[windows.document[window]] + start
        where.append(np.arange(base + length - scored, base + length))
    return tokens_NT, targets_NT, scored_NT, np.concatenate(where)


def _targets_in_batch(
    base: FrozenGPT, adapters: Adapters, tokens_NT: Tensor, targets_NT: Tensor, scored_NT: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """log p (nats) of each scored target, and its rank: the number of other tokens with at least its logit.

    Ties count against the model: a constant predictor is not always right.
    """
    hidden_KC = base.hidden(tokens_NT, adapters)[scored_NT]
    targets_K = targets_NT[scored_NT]
    log_p, ranks = [], []
    rows = max(1, LOGITS_ELEMENTS // base.vocab_size)
    for start in range(0, len(targets_K), rows):
        logits = base.logits(hidden_KC[start : start + rows], adapters).float()
        target_logits = logits.gather(1, targets_K[start : start + rows, None])
        log_p.append((target_logits - logits.logsumexp(1, keepdim=True))[:, 0])
        ranks.append((logits >= target_logits).sum(1, dtype=torch.int32) - 1)
    return torch.cat(log_p).cpu().numpy(), torch.cat(ranks).cpu().numpy()


def _document_losses(log_p: np.ndarray, offsets: np.ndarray, smoothing: Sequence[float], vocab_size: int) -> np.ndarray:
    probabilities = np.exp(np.minimum(log_p.astype(np.float64), 0.0))
    columns = [_document_means(-np.log2((1.0 - a) * probabilities + a / vocab_size), offsets) for a in smoothing]
    return np.stack(columns, axis=1)


def _document_means(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    return np.add.reduceat(values.astype(np.float64), offsets[:-1]) / np.diff(offsets)
