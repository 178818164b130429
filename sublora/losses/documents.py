"""Losses of a language model on documents: exact on whole documents, differentiable on one window of each.

Reported numbers come from whole documents (`score_documents`); training for the bound minimizes `document_loss`.

Shape legend: D documents, A candidates of the smoothing, N windows (in `document_loss` one per document), T positions,
K scored targets (in `document_loss` all N T positions in a row), S tokens of all documents, C width.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from sublora.bounds.smoothing import DocumentMixture, Smoothing, document_losses_bits
from sublora.losses import TOP_K
from sublora.losses.causality import Batch, CausalityTest, ScoredText, SecondReading
from sublora.losses.windows import WindowRule, grouped_by_width, padded_widths, sliding_windows, window_tokens
from sublora.models.protocol import LanguageModel
from sublora.system.device import to_device


@dataclasses.dataclass(frozen=True)
class ScoringRule:
    """How documents are cut into windows and windows into batches."""

    windows: WindowRule
    eot_id: int
    batch_tokens: int
    """Positions that go through the network at once; a longer window goes alone."""
    fixed_shapes: bool = False
    """Whether a document's scores must not depend on the documents scored with it: see `_fixed_batches`."""


@dataclasses.dataclass(frozen=True)
class TargetScores:
    """What a model predicts for every target of some documents, laid end to end."""

    log_p_S: np.ndarray
    """float32, natural logarithm of the target's probability."""
    rank_S: np.ndarray
    """int32, the number of other tokens that are at least as likely."""
    offsets: np.ndarray
    """int64 (D + 1): document i has the targets offsets[i] ... offsets[i + 1] - 1."""

    @property
    def counts_D(self) -> np.ndarray:
        """The number of targets of each document, int64 (D): its tokens and the closing end-of-text."""
        return np.diff(self.offsets)

    def document_log_p_D(self) -> np.ndarray:
        """Return ln P of whole documents, nats, float64 (D)."""
        return np.add.reduceat(np.minimum(self.log_p_S.astype(np.float64), 0.0), self.offsets[:-1])

    def losses_DA(self, candidates: Sequence[Smoothing], vocab_size: int) -> np.ndarray:
        """Return the loss of every document under every candidate, bits per token, float64 (D x A)."""
        return document_losses_bits(candidates, self.log_p_S, self.offsets, vocab_size)

    def topk_errors_DK(self) -> np.ndarray:
        """Return the share of each document's targets beyond the k most likely tokens, float64 (D x len(TOP_K))."""
        return np.stack([self._means(self.rank_S >= k) for k in TOP_K], axis=1)

    def _means(self, values_S: np.ndarray) -> np.ndarray:
        """Return the mean over each document's targets, float64 (D)."""
        return np.add.reduceat(values_S.astype(np.float64), self.offsets[:-1]) / self.counts_D


@torch.no_grad()
def score_documents(
    model: LanguageModel,
    documents: Sequence[np.ndarray],
    rule: ScoringRule,
    device: torch.device,
    causality: CausalityTest | None = None,
) -> TargetScores:
    """Score every target of every document (token arrays without end-of-text) exactly once.

    causality: tests that no prediction depends on later tokens, and changes no score; shapes must be fixed.
    No step waits for the GPU before the last batch is queued, so eight bytes per target stay on the device until then.
    """
    # Lay the documents end to end, each closed by end-of-text, and cut them into windows.
    counts_D = np.array([len(document) + 1 for document in documents], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(counts_D)])
    end = np.array([rule.eot_id])
    tokens_S = np.concatenate([part for document in documents for part in (document, end)]).astype(np.int64, copy=False)
    windows = sliding_windows(counts_D, rule.windows)
    batches: Sequence[Batch] = list((_fixed_batches if rule.fixed_shapes else _batches)(windows.length, rule))
    again = None
    if causality is not None:
        text = ScoredText(tokens_S, offsets[:-1], windows, rule.eot_id, model.vocab_size)
        again = SecondReading(causality, text, batches)
        batches = again.batches
    # Score batch by batch; on the host only the places of the scored targets are kept.
    scores, places = [], []
    for number, (rows_N, shape) in enumerate(batches):
        batch = window_tokens(tokens_S, offsets[:-1], windows[rows_N], eot_id=rule.eot_id, width=shape[1])
        filled_NT = np.full(shape, rule.eot_id)
        filled_NT[: len(rows_N)] = batch.inputs_NT
        if again is not None:
            again.fill(number, filled_NT)
        arrays = filled_NT, np.flatnonzero(batch.scored_NT), batch.targets_NT[batch.scored_NT]
        inputs_NT, positions_K, targets_K = (to_device(part, device) for part in arrays)
        hidden_NTC = model.hidden(inputs_NT)
        if again is not None:
            again.compare(number, hidden_NTC)
        if not len(rows_N):
            continue  # tests alone
        scores.append(model.target_scores(hidden_NTC.flatten(0, 1)[positions_K], targets_K))
        places.append(batch.place_NT[batch.scored_NT])
    # Copy the scores to the host and put them in the order of the targets.
    log_p_S, rank_S = np.empty(offsets[-1], dtype=np.float32), np.empty(offsets[-1], dtype=np.int32)
    places_S = np.concatenate(places)
    for values, parts in zip((log_p_S, rank_S), zip(*scores, strict=True), strict=True):
        values[places_S] = torch.cat(parts).cpu().numpy()
    if again is not None:
        again.finish(model, log_p_S)
    return TargetScores(log_p_S, rank_S, offsets)


BLOCK_TOKENS = 1 << 22
"""Tokens whose scores are in memory at once when many documents are scored; about 84 bytes each."""


def blocks_of_documents(lengths_D: np.ndarray, block_tokens: int = BLOCK_TOKENS) -> list[slice]:
    """Return slices of consecutive documents with about `block_tokens` tokens each; a longer document is alone."""
    block_D = (np.cumsum(lengths_D + 1) - 1) // block_tokens
    starts = np.flatnonzero(np.diff(block_D, prepend=-1))
    return [slice(int(a), int(b)) for a, b in zip(starts, [*starts[1:], len(lengths_D)], strict=True)]


def _batches(length_N: np.ndarray, rule: ScoringRule) -> Iterator[Batch]:
    """Yield windows of similar length, at most `batch_tokens` positions per batch."""
    order = np.argsort(length_N, kind="stable")
    lengths = length_N[order].tolist()
    start = 0
    for stop in range(1, len(lengths) + 1):
        if stop == len(lengths) or lengths[stop] * (stop + 1 - start) > rule.batch_tokens:
            yield order[start:stop], (stop - start, lengths[stop - 1])
            start = stop


NARROWEST = 16
"""Windows of at most this many positions all have one shape when shapes are fixed."""


def _fixed_batches(length_N: np.ndarray, rule: ScoringRule) -> Iterator[Batch]:
    """Yield windows padded to a shape (N, T) that depends only on the window's own length and the rule, widest first.

    T is given by `padded_widths`, N = batch_tokens / T; rows without a window are filled with end-of-text. A matrix
    product or an attention kernel may sum in another order if its shape differs; with one shape, its result for a row
    does not depend on the other rows.
    """
    width_N = padded_widths(length_N, rule.windows.context_length, NARROWEST)
    for members, width in grouped_by_width(width_N, rule.batch_tokens):
        yield members, (max(1, rule.batch_tokens // width), width)


@dataclasses.dataclass(frozen=True, eq=False)
class DocumentWeights:
    """How much each position counts."""

    weights_NT: Tensor
    """Equal over the targets that a window scores, 0 elsewhere; each window's sum is its document's share."""
    targets_N: Tensor
    """The number of targets of the whole document, float."""


def document_loss(
    model: LanguageModel,
    hidden_KC: Tensor,
    targets_NT: Tensor,
    documents: DocumentWeights,
    smoothing: Smoothing | None,
) -> tuple[Tensor, Tensor]:
    """Return a loss whose gradient is that of the smoothed loss, and the smoothed loss's value without graph.

    Both are scalars in nats per token. Token smoothing is a mean over targets. The document mixture is not: the
    gradient of -ln q / T is r times that of -ln P / T, with r the responsibility of the network for the document
    (`DocumentMixture.responsibility`). It is computed from the whole document if that fits into the window, else from
    the window's mean loss times T. `smoothing` None means the plain cross-entropy.
    """
    weights_K, targets_K = documents.weights_NT.flatten(), targets_NT.flatten()
    # Token smoothing and the plain loss are ordinary cross-entropies.
    if not isinstance(smoothing, DocumentMixture):
        a = 0.0 if smoothing is None else smoothing.a
        loss = model.cross_entropy(hidden_KC, targets_K, position_weights_K=weights_K, smoothing=a, training=True)
        return loss, loss.detach()
    # The mixture: ln P of each document, extrapolated from its window, gives the responsibility and the value.
    with torch.no_grad():
        log_p_NT = model.target_scores(hidden_KC.detach(), targets_K)[0].view_as(documents.weights_NT)
        share_N = documents.weights_NT.sum(1)
        log_p_N = (log_p_NT * documents.weights_NT).sum(1) / share_N * documents.targets_N
        log_odds_N = log_p_N + smoothing.log_prior_odds(documents.targets_N, model.vocab_size)
        responsibility_N1 = torch.sigmoid(log_odds_N)[:, None]
        # -ln q = -ln P - ln(1 - e) + ln r.
        log_q_N = log_p_N + smoothing.log_prior - torch.nn.functional.logsigmoid(log_odds_N)
        value = -(share_N * log_q_N / documents.targets_N).sum()
    # The responsibility of a document scales the gradient of its cross-entropy.
    weights_K = (documents.weights_NT * responsibility_N1).flatten()
    return model.cross_entropy(hidden_KC, targets_K, position_weights_K=weights_K, training=True), value
