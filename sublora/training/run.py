"""A run of the grid in memory: everything that training, encoding and scoring work on, in one object."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sublora import config
from sublora.bounds.premises import BoundedLoss
from sublora.data.dataset import TokenDataset
from sublora.losses.bounded import bounded_loss
from sublora.losses.documents import ScoringRule
from sublora.losses.estimate import BoundEstimator
from sublora.losses.windows import WindowRule
from sublora.models.protocol import LanguageModel, Network
from sublora.subspace.subspace import Subspace


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A network and its subspace, the data, and the settings they were built from."""

    settings: config.Settings
    spec: config.RunSpec
    dataset: TokenDataset
    network: Network
    subspace: Subspace
    device: torch.device

    @property
    def windows(self) -> WindowRule:
        """How documents longer than the context are read."""
        return WindowRule(self.settings.model.context_length, self.settings.scoring.sliding_window)

    @property
    def scoring_rule(self) -> ScoringRule:
        """How documents behind a reported number are scored: their losses depend on no other document."""
        batch_tokens = self.settings.compute.scoring_batch_tokens
        return ScoringRule(self.windows, self.dataset.eot_id, batch_tokens, fixed_shapes=True)

    @property
    def loss(self) -> BoundedLoss:
        """The loss that is bounded."""
        dataset = self.dataset
        return bounded_loss(
            self.settings,
            vocab_size=dataset.vocab_size,
            n_units=dataset.n_units,
            n_documents=dataset.n_documents,
        )

    def estimator(self) -> BoundEstimator:
        """The bound to be expected, by the val documents that choices go by."""
        count = min(self.settings.rate_phase.val_documents, len(self.dataset.document_lengths("val")))
        documents_D, units = self.dataset.leading_units("val", count)
        documents = tuple(self.dataset.document("val", int(i)) for i in documents_D)
        # An estimate is reported nowhere, and its batches need no filling.
        rule = dataclasses.replace(self.scoring_rule, fixed_shapes=False)
        return BoundEstimator(documents, units, rule, self.loss, self.device)

    def model_at(self, w_d: Tensor, mask_width: float = 0.0) -> LanguageModel:
        """The model of any w (d) and of the present gates, at a mask width (0: the hard split)."""
        return self.network.at(self.subspace.theta(w_d, self.subspace.masks(mask_width)))

    @torch.no_grad()
    def decoded(self, w_d: np.ndarray, split: Sequence[int]) -> LanguageModel:
        """The model of a message: its w, float32 (d), and the integers of its gates. Nothing is changed.

        Needs nothing of the checkpoint but what its seeds rebuild.
        """
        return self.network.at(self.subspace.decoded(w_d, split))
