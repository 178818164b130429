"""What the bound would be, estimated on val documents: the measure by which everything in the code phase is chosen.

Shape legend: D documents, A smoothing values, N windows, T positions.
"""

import dataclasses

import numpy as np
import torch

from sublora import config
from sublora.bounds.selection import bound_slope_per_bit, choose_smoothing, estimated_bound, loss_range
from sublora.data.dataset import TokenDataset
from sublora.nn.gpt import FrozenGPT
from sublora.nn.lora import Adapters
from sublora.training.document_batches import DocumentSampler

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
        phase, scoring = settings.code_phase, settings.scoring
        self._scoring, self._bound = scoring, settings.bound
        self._vocab_size, self._n = dataset.vocab_size, dataset.n_documents
        self._rows = settings.training.micro_batch_sequences
        sampler = DocumentSampler(
            dataset.tokens("val"),
            np.cumsum(dataset.document_lengths("val") + 1) - 1,
            eot_id=dataset.eot_id,
            context_length=settings.model.context_length,
            stride=scoring.sliding_window,
            windows_per_step=1,
            seed_parts=(),
        )
        *windows, self._documents = sampler.spread(phase.val_documents, phase.val_windows)
        self._inputs_NT, self._targets_NT, self._weights_NT = (torch.from_numpy(part).to(device) for part in windows)

    @torch.no_grad()
    def losses(self, base: FrozenGPT, adapters: Adapters) -> np.ndarray:
        """Estimated document losses, bits per token, float64 (D x A)."""
        smoothing = torch.tensor(self._scoring.smoothing, dtype=torch.float64)
        losses_DA = np.zeros((int(self._documents[-1]) + 1, len(smoothing)))
        for start in range(0, len(self._documents), self._rows):
            part = slice(start, start + self._rows)
            logits = base.logits(base.hidden(self._inputs_NT[part], adapters), adapters).float()
            log_p = logits.gather(2, self._targets_NT[part, :, None])[:, :, 0] - logits.logsumexp(2)
            p_NT1 = log_p.double().cpu().exp()[:, :, None]
            losses_NTA = -torch.log2((1.0 - smoothing) * p_NT1 + smoothing / self._vocab_size)
            weighted_NA = (losses_NTA * self._weights_NT[part].double().cpu()[:, :, None]).sum(1)
            np.add.at(losses_DA, self._documents[part], weighted_NA.numpy())
        return losses_DA

    def estimate(self, losses_DA: np.ndarray, code_bits: float) -> Estimate:
        """The best smoothing for a message of `code_bits`, and the bound and the exchange rate at it."""
        common = {
            "n": self._n,
            "delta": self._bound.delta,
            "m": self._scoring.documents,
            "delta_sample": self._bound.delta_sample,
            "code_bits": code_bits,
        }
        smoothing = self._scoring.smoothing
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
