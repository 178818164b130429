"""From the settings of a run to the loss that is bounded. Imports no torch: bounds are computed without it."""

from sublora import config
from sublora.bounds.premises import BoundedLoss, Premises
from sublora.bounds.smoothing import parse_smoothing


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
        sweep_size=len(settings.grid.runs()),
        unit=settings.data.unit,
        n_documents=n_documents,
    )
    return BoundedLoss(
        candidates=tuple(map(parse_smoothing, settings.scoring.smoothing)),
        vocab_size=vocab_size,
        # The closing end-of-text is a target as well.
        min_targets=settings.data.min_tokens + 1,
        premises=premises,
    )
