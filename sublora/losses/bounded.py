"""The loss that is bounded, from the settings of a run. Imports no torch: bounds are computed without it.

Shape legend: D documents, A candidates of the smoothing.
"""

from typing import TYPE_CHECKING

import numpy as np

from sublora import config
from sublora.bounds.premises import Anchoring, BoundedLoss, Premises
from sublora.bounds.smoothing import parse_smoothing

if TYPE_CHECKING:
    from sublora.losses.documents import TargetScores


def bounded_loss(settings: config.Settings, *, vocab_size: int, n_units: int, n_documents: int) -> BoundedLoss:
    """Return the loss and the premises with which a run with these settings is scored and bounded.

    n_units: independent units of the training split, which hold `n_documents` documents; vocab_size: of the dataset.
    """
    scored = settings.scoring.documents
    all_scored = scored == "all"
    premises = Premises(
        n_units=n_units,
        delta=settings.bound.delta,
        m_units=None if all_scored else int(scored),
        delta_sample=None if all_scored else settings.bound.delta_sample,
        sweep_size=settings.grid.n_runs,
        unit=settings.data.unit,
        n_documents=n_documents,
    )
    return BoundedLoss(
        candidates=tuple(map(parse_smoothing, settings.scoring.smoothing)),
        vocab_size=vocab_size,
        # The closing end-of-text is a target as well.
        min_targets=settings.data.min_tokens + 1,
        premises=premises,
        anchoring=_anchoring(settings),
    )


def judged_losses_DA(loss: BoundedLoss, scores: "TargetScores", base_log_p_D: np.ndarray | None) -> np.ndarray:
    """Return the losses that choices are based on, for every document and candidate; bits per token, float64 (D x A).

    base_log_p_D: ln of the base's probability of each document, nats; None without an anchor.
    """
    if loss.anchoring is None:
        return scores.losses_DA(loss.candidates, loss.vocab_size)
    assert base_log_p_D is not None
    # With an anchor, choices depend on the excess over the base.
    arguments = (scores.document_log_p_D(), base_log_p_D, scores.counts_D, loss.vocab_size)
    return np.stack([mixture.excess_bits(*arguments) for mixture in loss.mixtures], axis=1)


def _anchoring(settings: config.Settings) -> Anchoring | None:
    """Return the anchor that the settings ask for; None where the predictor falls back on guessing alone."""
    if not settings.anchors_on_the_base:
        return None
    scoring, bound = settings.scoring, settings.bound
    assert scoring.anchor_k0 is not None and bound.delta_base is not None
    base_documents, base_sources = (
        None if wanted is None or wanted == "all" else wanted
        for wanted in (scoring.base_documents, scoring.base_sources)
    )
    return Anchoring(
        k0=scoring.anchor_k0,
        base_documents=base_documents,
        base_sources=base_sources,
        delta_base=bound.delta_base,
        delta_base_sample=bound.delta_base_sample,
        delta_excess=bound.delta - bound.delta_base,
        delta_excess_sample=bound.delta_excess_sample,
    )
