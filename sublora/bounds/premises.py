"""Premises of a bound: what was fixed before the n units were seen, how often it may fail, and which loss it bounds.

Also every inequality that fits them. A unit is what was drawn independently from the population: a document, or a
group of documents.
"""

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from sublora.bounds.anchor import AnchoredMixture, FailureShare, Population, anchored_candidates
from sublora.bounds.checks import check_count
from sublora.bounds.inequalities import (
    FULL_SAMPLE,
    SUBSAMPLED,
    betting,
    betting_subsampled,
    empirical_bernstein,
    hoeffding,
    hoeffding_subsampled,
)
from sublora.bounds.smoothing import LossRange, Smoothing

RATES = LossRange(0.0, 1.0)
"""The range of error rates, as those of top-k."""


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
class Anchoring:
    """What an anchored bound rests on beside the premises: all of it fixed before the sample."""

    k0: int
    """Prior weight 2^-k0 of guessing inside the anchor."""
    base_documents: int | None
    """Units drawn for the bound on the base's loss; None: all n."""
    base_sources: int | None
    """Sources drawn for the same over sources; None: each of them, or there is no such bound."""
    delta_base: float
    """The part of delta for the base's loss."""
    delta_base_sample: float | None
    delta_excess: float
    """The part of delta for the excess over the base."""
    delta_excess_sample: float | None

    def base_share(self, drawn: int | None) -> FailureShare:
        """Return the part of delta for the base's loss on that many drawn units; None: on all."""
        return FailureShare(self.delta_base, None if drawn is None else self.delta_base_sample)

    def excess_share(self, drawn: int | None) -> FailureShare:
        """Return the part of delta for the excess on that many drawn units; None: on all."""
        return FailureShare(self.delta_excess, None if drawn is None else self.delta_excess_sample)


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
    """The sample of the direct bound, and its delta."""
    anchoring: Anchoring | None = None
    """None: the predictor falls back on guessing alone, and the bound is the direct one."""

    def __post_init__(self) -> None:
        if not self.candidates:
            raise ValueError("a bounded loss needs at least one candidate of its smoothing")
        if len({candidate.name for candidate in self.candidates}) != len(self.candidates):
            raise ValueError("the candidates of the smoothing must differ")

    @property
    def population(self) -> Population:
        """What the ends of a document's loss depend on."""
        return Population(self.vocab_size, self.min_targets)

    @property
    def mixtures(self) -> tuple[AnchoredMixture, ...]:
        """The anchored form of each candidate; empty without an anchor."""
        return () if self.anchoring is None else anchored_candidates(self.candidates, self.anchoring.k0)

    @property
    def direct(self) -> "BoundedLoss":
        """The same loss without an anchor: that of models which are not adapted."""
        return dataclasses.replace(self, anchoring=None)

    @property
    def ranges(self) -> tuple[LossRange, ...]:
        """The range of each candidate's losses, bits per token."""
        return tuple(map(self.range_of, self.candidates))

    def range_of(self, smoothing: Smoothing) -> LossRange:
        """Return the range of a document's loss under this smoothing, anchored or not, bits per token."""
        predictor = smoothing if self.anchoring is None else AnchoredMixture.of(smoothing, self.anchoring.k0)
        return predictor.loss_range_bits(self.vocab_size, self.min_targets)

    @property
    def judged_ranges(self) -> tuple[LossRange, ...]:
        """The ranges of what choices go by: with an anchor the excess over the base, else the loss."""
        if self.anchoring is None:
            return self.ranges
        return tuple(mixture.excess_range_bits(self.vocab_size, self.min_targets) for mixture in self.mixtures)

    @property
    def judged_premises(self) -> Premises:
        """The sample behind what choices go by, and its part of delta."""
        if self.anchoring is None:
            return self.premises
        share = self.anchoring.excess_share(self.premises.m_units)
        return dataclasses.replace(self.premises, delta=share.delta, delta_sample=share.delta_sample)


def all_bounds(losses_D: ArrayLike, loss_range: LossRange, code_bits: float, premises: Premises) -> dict[str, float]:
    """Return the bound by every inequality that fits the premises, each at confidence 1 - delta on its own.

    losses_D: of all n documents, or of m drawn ones where there is a delta_sample. Unit and errors as in
    `sublora.bounds.inequalities`.
    """
    arguments = _arguments(loss_range, code_bits, premises)
    inequalities = FULL_SAMPLE if premises.delta_sample is None else SUBSAMPLED
    if premises.n_units == 1:
        # One loss has no variance; every other inequality holds for it.
        inequalities = tuple(each for each in inequalities if each is not empirical_bernstein)
    return {inequality.__name__: inequality(losses_D, **arguments) for inequality in inequalities}


def headline_bound(losses_D: ArrayLike, loss_range: LossRange, code_bits: float, premises: Premises) -> float:
    """Return the bound by the inequality that `Premises.headline` names; arguments as for `all_bounds`."""
    inequality = betting if premises.delta_sample is None else betting_subsampled
    return inequality(losses_D, **_arguments(loss_range, code_bits, premises))


def held_out_bound(test_losses_D: ArrayLike, loss_range: LossRange, *, delta: float) -> float:
    """Return `betting` from documents that nothing was chosen on: they cost no message, C = 0.

    test_losses_D: of the same network under the same smoothing, bits per token, shape (test documents,). To name the
    best of several networks by this bound, give each its share of delta.
    """
    lower, upper = loss_range
    return betting(test_losses_D, lower=lower, upper=upper, code_bits=0.0, n=np.size(test_losses_D), delta=delta)


def _arguments(loss_range: LossRange, code_bits: float, premises: Premises) -> dict[str, Any]:
    """Arguments of the inequalities, except the losses."""
    arguments = loss_range._asdict() | {"code_bits": code_bits, "n": premises.n_units, "delta": premises.delta}
    return arguments if premises.delta_sample is None else arguments | {"delta_sample": premises.delta_sample}
