"""The loss that is bounded: the candidates of its smoothing, their ranges, and the documents behind the bound.

Does not import torch. Shape legend: U units, A candidates.
"""

import dataclasses

import numpy as np

from sublora import config
from sublora.bounds.record import Premises
from sublora.bounds.selection import Sampling, choose_smoothing
from sublora.bounds.smoothing import LossRange, Smoothing, parse_smoothing


@dataclasses.dataclass(frozen=True)
class BoundedLoss:
    """How documents' losses are smoothed, and how a bound follows from them."""

    candidates: tuple[Smoothing, ...]
    premises: Premises
    m_units: int | None
    """Training units that are drawn and scored; None: all n are scored once."""

    @classmethod
    def of(cls, settings: config.Settings, *, vocab_size: int, n_units: int, n_documents: int) -> "BoundedLoss":
        """As a run with these settings is scored and bounded."""
        drawn = settings.scoring.documents
        m_units = None if drawn == "all" else int(drawn)
        premises = Premises(
            vocab_size=vocab_size,
            min_targets=settings.data.min_tokens + 1,
            n_units=n_units,
            delta=settings.bound.delta,
            delta_sample=None if m_units is None else settings.bound.delta_sample,
            sweep_size=len(settings.grid.runs()),
            unit=settings.data.unit,
            n_documents=n_documents,
        )
        return cls(tuple(map(parse_smoothing, settings.scoring.smoothing)), premises, m_units)

    @property
    def vocab_size(self) -> int:
        return self.premises.vocab_size

    @property
    def ranges(self) -> tuple[LossRange, ...]:
        """The range of each candidate's losses, bits per token."""
        premises = self.premises
        return tuple(c.loss_range_bits(premises.vocab_size, premises.min_targets) for c in self.candidates)

    @property
    def sampling(self) -> Sampling:
        premises = self.premises
        return Sampling(premises.n_units, premises.delta, self.m_units, premises.delta_sample)

    def choose(self, val_losses_UA: np.ndarray, code_bits: float) -> int:
        """Index of the candidate that makes the bound of a message of `code_bits` smallest, judged on val units."""
        return choose_smoothing(val_losses_UA, self.ranges, code_bits=code_bits, sampling=self.sampling)
