"""What the bound would be, estimated on val documents: the measure by which everything in the rate phase is chosen.

Shape legend: D documents, A smoothing values, N windows, T positions, K scored targets.
"""

import dataclasses

import numpy as np
import torch

from sublora import config
from sublora.bounds.selection import Sampling, bound_slope_per_bit, choose_smoothing, estimated_bound, loss_range
from sublora.data.dataset import TokenDataset
from sublora.losses.samplers import DocumentSampler
from sublora.losses.windows import WindowRule
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


class BoundEstimator:
    """Losses of a few windows of each val document, and the `betting_subsampled` bound to be expected from them."""

    def __init__(self, settings: config.Settings, dataset: TokenDataset, device: torch.device) -> None:
        phase = settings.rate_phase
        self._smoothing, self._vocab_size = settings.scoring.smoothing, dataset.vocab_size
        self._sampling = Sampling.of(settings, dataset.n_documents)
        sampler = DocumentSampler(
            dataset.tokens("val"),
            np.cumsum(dataset.document_lengths("val") + 1) - 1,
            WindowRule(settings.model.context_length, settings.scoring.sliding_window),
            eot_id=dataset.eot_id,
            windows_per_step=1,
            seed_parts=(),
        )
        inputs_NT, targets_NT, weights_NT, documents_N = sampler.spread(phase.val_documents, phase.val_windows)
        scored_NT = weights_NT > 0
        self._weights_K1 = weights_NT[scored_NT].astype(np.float64)[:, None]
        documents_K = np.repeat(documents_N, scored_NT.sum(1))
        self._first_of_document_D = np.flatnonzero(np.diff(documents_K, prepend=-1))
        self._batches = []
        for start in range(0, len(documents_N), settings.training.micro_batch_sequences):
            part = slice(start, start + settings.training.micro_batch_sequences)
            arrays = inputs_NT[part], np.flatnonzero(scored_NT[part]), targets_NT[part][scored_NT[part]]
            self._batches.append(tuple(torch.from_numpy(array).to(device) for array in arrays))

    @torch.no_grad()
    def losses(self, model: LanguageModel) -> np.ndarray:
        """Estimated document losses, bits per token, float64 (D x A)."""
        log_p = []
        for inputs_NT, positions_K, targets_K in self._batches:
            hidden_KC = model.hidden(inputs_NT).flatten(0, 1)[positions_K]
            log_p.append(model.target_scores(hidden_KC, targets_K)[0])
        p_K1 = np.exp(np.minimum(torch.cat(log_p).double().cpu().numpy(), 0.0))[:, None]
        smoothing_A = np.array(self._smoothing)
        losses_KA = -np.log2((1.0 - smoothing_A) * p_K1 + smoothing_A / self._vocab_size)
        return np.add.reduceat(self._weights_K1 * losses_KA, self._first_of_document_D)

    def estimate(self, losses_DA: np.ndarray, code_bits: float) -> Estimate:
        """The best smoothing for a message of `code_bits`, and the bound and the exchange rate at it."""
        smoothing, common = self._smoothing, {"code_bits": code_bits, "sampling": self._sampling}
        best = choose_smoothing(losses_DA, smoothing, vocab_size=self._vocab_size, **common)
        lower, upper = loss_range(smoothing[best], self._vocab_size)
        common |= {"lower": lower, "upper": upper}
        # Weights in float32 may carry a loss at the end of its range a hair beyond it.
        losses_D = np.clip(losses_DA[:, best], lower, upper)
        bound = estimated_bound(losses_D, **common)
        shifted = estimated_bound(np.minimum(losses_D + DIFFERENCE_BITS, upper), **common)
        slope = bound_slope_per_bit(losses_D, **common)
        return Estimate(
            best, float(bound), float(slope) * DIFFERENCE_BITS / float(shifted - bound) if shifted > bound else 0.0
        )
