"""The part of a run's record that an anchor adds: the sum of two bounds, and what it certifies over the base.

Losses and bounds in bits per token. Shape legend: D documents (or units), M sources.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sublora.bounds.anchor import (
    AnchoredMixture,
    FailureShare,
    Population,
    base_bound,
    certified_gain_bits,
    excess_bound,
)


@dataclasses.dataclass(frozen=True, eq=False)
class AnchoredSample:
    """Units that one pair of bounds follows from: documents (or groups of them), or sources."""

    base_losses_D: NDArray
    """Loss of the anchor on the units behind u_b: all n, or a draw that no run can reach."""
    excess_D: NDArray
    """Excess of the certified predictor over the anchor on the units behind u_D: all n, or the message's own draw."""
    n: int
    base_share: FailureShare
    excess_share: FailureShare


@dataclasses.dataclass(frozen=True, eq=False)
class AnchoredLosses:
    """What the anchored bound of a run follows from, beside its message."""

    mixture: AnchoredMixture
    documents: AnchoredSample
    test_excess_D: NDArray
    sources: AnchoredSample | None = None


@dataclasses.dataclass(frozen=True)
class Charges:
    """Bits that the anchored bounds pay, and the alternatives whose draws share a part of delta."""

    code_bits: float
    """C."""
    picked_bits: float
    """Bits of choices that were made by hand on these data: the base may be one of them."""
    sweep_size: int

    @classmethod
    def of(cls, items: Mapping[str, float], sweep_size: int) -> "Charges":
        """Return what the items of C charge; "extra" is for choices made by hand."""
        return cls(sum(items.values()), items["extra"], sweep_size)

    @property
    def alternatives_bits(self) -> float:
        """log2 of the runs whose best may be named, hand-made choices included."""
        return math.log2(self.sweep_size) + self.picked_bits


@dataclasses.dataclass(frozen=True)
class AnchoredBound:
    """u_b, u_D and their sum."""

    base_bits: float
    excess_bits: float

    @property
    def bits(self) -> float:
        return self.base_bits + self.excess_bits


def anchored_bound(
    sample: AnchoredSample,
    mixture: AnchoredMixture,
    charges: Charges,
    population: Population,
    *,
    settings_bits: float = 0.0,
    choice_paid: bool = False,
) -> AnchoredBound:
    """Return both parts of the bound on the mean loss over new units, with probability 1 - delta.

    choice_paid: as for the best of all runs, whose draws share delta; settings_bits: what naming the settings costs, in
    the message, in the choice of the base and in both draws. ValueError as in `sublora.bounds.inequalities`.
    """
    base = base_bound(
        sample.base_losses_D,
        mixture.anchor.loss_range_bits(*population),
        n=sample.n,
        share=sample.base_share,
        picked_bits=charges.picked_bits + settings_bits,
    )
    excess = excess_bound(
        sample.excess_D,
        mixture.excess_range_bits(*population),
        n=sample.n,
        code_bits=charges.code_bits + settings_bits,
        share=sample.excess_share,
        alternatives_bits=(charges.alternatives_bits if choice_paid else 0.0) + settings_bits,
    )
    return AnchoredBound(base, excess)


def held_out_excess_bound(
    test_excess_D: NDArray, mixture: AnchoredMixture, delta: float, population: Population
) -> float:
    """Return the bound on the mean excess from test documents, which nothing was chosen on: C = 0."""
    excess_range = mixture.excess_range_bits(*population)
    share = FailureShare(delta, None)
    return excess_bound(test_excess_D, excess_range, n=np.size(test_excess_D), code_bits=0.0, share=share)


def anchored_record(
    anchored: AnchoredLosses,
    charges: Charges,
    population: Population,
    settings_bits: float | None,
) -> dict[str, Any]:
    """Return the keys of bounds.json that the anchor decides, the direct ones aside.

    settings_bits: what the settings cost for `bound_strict`; None where they have no code.
    """
    mixture, sample = anchored.mixture, anchored.documents
    own = anchored_bound(sample, mixture, charges, population)
    chosen = anchored_bound(sample, mixture, charges, population, choice_paid=True)
    strict = None
    if settings_bits is not None:
        strict = anchored_bound(
            sample, mixture, charges, population, settings_bits=settings_bits, choice_paid=True
        ).bits
    # The bound from test documents shares u_b, which all runs have in common. Nothing pays for what was tried by hand.
    delta = sample.excess_share.delta
    held_out, held_out_chosen = (
        own.base_bits + held_out_excess_bound(anchored.test_excess_D, mixture, share, population)
        for share in (delta, delta / charges.sweep_size)
    )

    def gain(excess_bits: float) -> float:
        return certified_gain_bits(excess_bits, mixture.k0, population.min_targets)

    return {
        "bound_value": own.bits,
        "bound_all_runs": chosen.bits,
        "bound_strict": strict,
        "bound_held_out": held_out,
        "bound_held_out_all_runs": held_out_chosen,
        "certified_gain_bits": gain(own.excess_bits),
        "certified_gain_all_runs_bits": gain(chosen.excess_bits),
        "anchor": {
            "k0": mixture.k0,
            "base_loss": float(np.mean(sample.base_losses_D)),
            "base_bound": own.base_bits,
            "excess": float(np.mean(sample.excess_D)),
            "excess_bound": own.excess_bits,
            "excess_bound_all_runs": chosen.excess_bits,
            "excess_sd": float(np.std(sample.excess_D)),
            "excess_upper": mixture.excess_range_bits(*population).upper,
            "base_units": len(sample.base_losses_D),
            "delta_base": sample.base_share.delta,
            "delta_base_sample": sample.base_share.delta_sample or 0.0,
            "delta_excess_sample": sample.excess_share.delta_sample or 0.0,
        },
    }


def anchored_by_source(anchored: AnchoredLosses, charges: Charges, population: Population) -> dict[str, float | int]:
    """Return the anchored bounds over sources: their own u_b and u_D, never the u_b of documents."""
    sources, mixture = anchored.sources, anchored.mixture
    if sources is None:
        return {}
    own = anchored_bound(sources, mixture, charges, population)
    chosen = anchored_bound(sources, mixture, charges, population, choice_paid=True)
    return {
        "bound": own.bits,
        "bound_all_runs": chosen.bits,
        "base_bound": own.base_bits,
        "excess_bound": own.excess_bits,
        "certified_gain_bits": certified_gain_bits(own.excess_bits, mixture.k0, population.min_targets),
    }
