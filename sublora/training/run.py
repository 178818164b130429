"""A run of the grid in memory: everything that training, encoding and scoring work on, in one object."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sublora import config
from sublora.bounds.premises import BoundedLoss
from sublora.data.dataset import TokenDataset
from sublora.data.units import Units
from sublora.losses.bounded import bounded_loss
from sublora.losses.documents import ScoringRule, score_documents
from sublora.losses.estimate import BoundEstimator
from sublora.losses.windows import WindowRule
from sublora.models.protocol import LanguageModel, Network
from sublora.subspace.scales import Points
from sublora.subspace.subspace import Subspace


@dataclasses.dataclass(frozen=True, eq=False)
class ValUnits:
    """Documents of val, how they are grouped, and what the base says of them."""

    documents: tuple[np.ndarray, ...]
    units: Units
    base_log_p_D: np.ndarray | None
    """Nats; None without an anchor."""


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A network and its subspace, the data, and the settings they were built from."""

    settings: config.Settings
    spec: config.RunSpec
    dataset: TokenDataset
    network: Network
    subspace: Subspace
    device: torch.device
    seen_base_sha256: str
    """Names the base as far as the documents see it: without position embeddings beyond the longest of them."""
    val_base_log_p_D: np.ndarray | None = None
    """What the base says of the val documents that choose the smoothing, nats, where it was scored for all runs."""
    scale_points: Points | None = None
    """What the scales of the subspace follow from; None where it has none."""

    @property
    def windows(self) -> WindowRule:
        """The rule by which documents longer than the context are read."""
        return WindowRule(self.settings.model.context_length, self.settings.scoring.sliding_window)

    @property
    def scoring_rule(self) -> ScoringRule:
        """The rule by which documents behind a reported number are scored: no loss depends on another document."""
        batch_tokens = self.settings.compute.scoring_batch_tokens
        return ScoringRule(self.windows, self.dataset.eot_id, batch_tokens, fixed_shapes=True)

    @functools.cached_property
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
        """Return the estimator of the bound on the val documents by which the rate phase decides."""
        count = min(self.settings.rate_phase.val_documents, len(self.dataset.document_lengths("val")))
        documents_D, units = self.dataset.leading_units("val", count)
        documents = tuple(self.dataset.document("val", int(i)) for i in documents_D)
        # No estimate is reported, so its batches need not be filled up to a fixed shape.
        rule = dataclasses.replace(self.scoring_rule, fixed_shapes=False)
        return BoundEstimator(documents, units, rule, self.loss, self.device, self._base_log_p_D(documents, rule))

    @functools.cached_property
    def val_units(self) -> "ValUnits":
        """The val units on which the smoothing is chosen, scored by the base once."""
        documents_D, units = self.dataset.leading_units("val", self.settings.scoring.val_documents)
        documents = tuple(self.dataset.document("val", int(i)) for i in documents_D)
        return ValUnits(documents, units, self._base_log_p_D(documents, self.scoring_rule))

    def _base_log_p_D(self, documents: Sequence[np.ndarray], rule: ScoringRule) -> np.ndarray | None:
        """Return ln of the base's probability of the first val documents, nats; None without an anchor."""
        if self.loss.anchoring is None:
            return None
        known = self.val_base_log_p_D
        if known is not None and len(known) >= len(documents):
            return known[: len(documents)]
        return score_documents(self.base(), documents, rule, self.device).document_log_p_D()

    @torch.no_grad()
    def base(self) -> LanguageModel:
        """Return the frozen base: the network at w = 0, where what is trained changes nothing."""
        return self.network.at(self.subspace.origin_D)

    def model_at(self, w_d: Tensor, mask_width: float = 0.0) -> LanguageModel:
        """Return the model of any w (d) and of the present gates, at a mask width (0: the hard split)."""
        return self.network.at(self.subspace.theta(w_d, self.subspace.masks(mask_width)))

    @torch.no_grad()
    def decoded(self, w_d: np.ndarray, split: Sequence[int]) -> LanguageModel:
        """Return the model of a message: its w, float32 (d), and the integers of its gates.

        Uses only what the seeds rebuild, and changes nothing: neither w nor the gates of the run.
        """
        return self.network.at(self.subspace.decoded(w_d, split))
