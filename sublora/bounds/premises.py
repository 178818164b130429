"""Premises of a bound: what was fixed before the n units were seen, how often it may fail, and which loss it bounds.

A unit is what was drawn independently from the population: a document, or a group of documents.
"""

import dataclasses

from sublora.bounds.checks import check_count
from sublora.bounds.inequalities import betting, betting_subsampled, hoeffding, hoeffding_subsampled
from sublora.bounds.smoothing import LossRange, Smoothing


@dataclasses.dataclass(frozen=True)
class Premises:
    """The sample behind a bound and the probability with which the bound may fail.

    ValueError if only one of `m_units` and `delta_sample` is given, or `sweep_size` is no positive whole number.
    """

    n_units: int
    """n: units drawn independently from the population."""
    delta: float
    """Probability with which the bound may fail."""
    m_units: int | None = None
    """m: units drawn from the n, with replacement, and scored; None: all n are scored once."""
    delta_sample: float | None = None
    """The part of delta for that draw; None if and only if `m_units` is."""
    sweep_size: int = 1
    """Runs whose arms the message tells apart."""
    unit: str = "document"
    """What a unit is."""
    n_documents: int | None = None
    """Documents of the n units; None: each unit is one."""

    def __post_init__(self) -> None:
        check_count("sweep_size", self.sweep_size)
        if (self.m_units is None) != (self.delta_sample is None):
            raise ValueError("m_units and delta_sample belong together: give both or neither")

    @property
    def headline(self) -> str:
        """The inequality of bound_value, fixed beforehand: taking the smallest of several would cost a union."""
        return betting.__name__ if self.delta_sample is None else betting_subsampled.__name__

    @property
    def hoeffding(self) -> str:
        """The inequality of the paper that fits: the one for all n units, or the one for a draw."""
        return hoeffding.__name__ if self.delta_sample is None else hoeffding_subsampled.__name__

    def for_all_alternatives(self, extra_bits: float) -> "Premises":
        """Return premises under which the best of |sweep| 2^extra_bits alternatives may be named after seeing all.

        The message's bits pay for this choice as far as the n units are concerned. But each alternative has its
        own draw of units to score, and choosing among them also chooses among draws: delta_sample is divided
        among all. Without a draw nothing changes.
        """
        if self.delta_sample is None:
            return self
        share = self.delta_sample / self.sweep_size * 2.0**-extra_bits
        return dataclasses.replace(self, delta=self.delta - self.delta_sample + share, delta_sample=share)


@dataclasses.dataclass(frozen=True)
class BoundedLoss:
    """The loss that is bounded: how documents' losses may be smoothed, the range they then have, and the premises.

    ValueError if there is no candidate, or two are equal.
    """

    candidates: tuple[Smoothing, ...]
    """Smoothings of which the message names one; the choice is made on val documents."""
    vocab_size: int
    """V, the end-of-text token included."""
    min_targets: int
    """T_min: targets of the shortest document that the population admits, its closing end-of-text included."""
    premises: Premises

    def __post_init__(self) -> None:
        if not self.candidates:
            raise ValueError("a bounded loss needs at least one candidate of its smoothing")
        if len({candidate.name for candidate in self.candidates}) != len(self.candidates):
            raise ValueError("the candidates of the smoothing must differ")

    @property
    def ranges(self) -> tuple[LossRange, ...]:
        """The range of each candidate's losses, bits per token."""
        return tuple(map(self.range_of, self.candidates))

    def range_of(self, smoothing: Smoothing) -> LossRange:
        """Return the range of a document's loss under this smoothing, bits per token."""
        return smoothing.loss_range_bits(self.vocab_size, self.min_targets)
