"""The expected bound, estimated on val documents: the criterion by which the rate phase makes all its choices.

Shape legend: U units, A candidates of the smoothing.
"""

import dataclasses

import numpy as np
import torch

from sublora.bounds.premises import BoundedLoss
from sublora.bounds.selection import bound_slope_per_bit, choose_smoothing, estimated_bound
from sublora.data.units import Units
from sublora.losses.bounded import judged_losses_DA
from sublora.losses.documents import ScoringRule, score_documents
from sublora.models.protocol import LanguageModel

DIFFERENCE_BITS = 1e-4
"""Shift of all losses with which the derivative of the bound by the mean loss is estimated, bits per token."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The estimated bound at the best smoothing, and the value of one bit of message there."""

    smoothing_index: int
    bound_bits: float
    exchange_bits: float
    """The rise of the mean loss, in bits per token, that raises the bound as much as one bit of message."""


@dataclasses.dataclass(frozen=True, eq=False)
class BoundEstimator:
    """Estimates the bound from the losses of some val documents, which are scored whole.

    Whole documents are needed because the document mixture is not a mean over windows.
    """

    documents: tuple[np.ndarray, ...]
    """Tokens of the val documents."""
    units: Units
    """The units into which the documents are grouped."""
    rule: ScoringRule
    loss: BoundedLoss
    device: torch.device
    base_log_p_D: np.ndarray | None = None
    """With an anchor, ln of the base's probability of each document, nats, scored once."""

    def losses(self, model: LanguageModel) -> np.ndarray:
        """Return the losses of the units, with an anchor their excess over the base.

        They are in bits per token, float64 (U x A).
        """
        scores = score_documents(model, self.documents, self.rule, self.device)
        return self.units.means(judged_losses_DA(self.loss, scores, self.base_log_p_D))

    def estimate(self, losses_UA: np.ndarray, code_bits: float) -> Estimate:
        """Choose the smoothing for a message of `code_bits`, and estimate the bound and the exchange rate at it.

        losses_UA: what `losses` returned.
        """
        best = choose_smoothing(losses_UA, self.loss, code_bits=code_bits)
        loss_range, premises = self.loss.judged_ranges[best], self.loss.judged_premises
        losses_U = losses_UA[:, best]
        bound = estimated_bound(losses_U, loss_range, code_bits=code_bits, premises=premises)
        # The exchange rate is the slope by message bits over the slope by the mean loss (a difference quotient).
        shifted_U = np.minimum(losses_U + DIFFERENCE_BITS, loss_range.upper)
        shifted = estimated_bound(shifted_U, loss_range, code_bits=code_bits, premises=premises)
        slope = bound_slope_per_bit(losses_U, loss_range, code_bits=code_bits, premises=premises)
        exchange_bits = slope * DIFFERENCE_BITS / (shifted - bound) if shifted > bound else 0.0
        return Estimate(best, bound, exchange_bits)
