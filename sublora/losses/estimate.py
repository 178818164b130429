"""What the bound would be, estimated on val documents: the measure by which everything in the rate phase is chosen.

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
"""Shift of all losses for the estimate's derivative by the mean loss."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The estimated bound at the best smoothing, and what a bit of message is worth there."""

    smoothing_index: int
    bound_bits: float
    exchange_bits: float
    """Loss, in bits per token, that one bit of message may cost without the bound growing."""


@dataclasses.dataclass(frozen=True, eq=False)
class BoundEstimator:
    """The bound to be expected from the losses of some val documents, which are scored whole.

    The document mixture needs whole documents: it is not a mean over windows.
    """

    documents: tuple[np.ndarray, ...]
    """Tokens of the val documents."""
    units: Units
    """How they are grouped."""
    rule: ScoringRule
    loss: BoundedLoss
    device: torch.device
    base_log_p_D: np.ndarray | None = None
    """With an anchor, ln of the base's probability of each document, nats: scored once."""

    def losses(self, model: LanguageModel) -> np.ndarray:
        """Return losses of the units, with an anchor their excess over the base; bits per token, float64 (U x A)."""
        scores = score_documents(model, self.documents, self.rule, self.device)
        return self.units.means(judged_losses_DA(self.loss, scores, self.base_log_p_D))

    def estimate(self, losses_UA: np.ndarray, code_bits: float) -> Estimate:
        """The best smoothing for a message of `code_bits`, and the bound and the exchange rate at it."""
        best = choose_smoothing(losses_UA, self.loss, code_bits=code_bits)
        loss_range, premises = self.loss.judged_ranges[best], self.loss.judged_premises
        losses_U = losses_UA[:, best]
        bound = estimated_bound(losses_U, loss_range, code_bits=code_bits, premises=premises)
        shifted_U = np.minimum(losses_U + DIFFERENCE_BITS, loss_range.upper)
        shifted = estimated_bound(shifted_U, loss_range, code_bits=code_bits, premises=premises)
        slope = bound_slope_per_bit(losses_U, loss_range, code_bits=code_bits, premises=premises)
        exchange_bits = slope * DIFFERENCE_BITS / (shifted - bound) if shifted > bound else 0.0
        return Estimate(best, bound, exchange_bits)
