"""The loss of documents seen through one window each, differentiable: what training for the bound minimizes.

Shape legend: N windows (one per document), T positions, K = N T positions in a row, C width.
"""

import dataclasses

import torch
from torch import Tensor

from sublora.bounds.smoothing import DocumentMixture, Smoothing
from sublora.models.protocol import LanguageModel


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
