"""Anyone's paired losses of two models: which is better on new examples, or what adapting a reference gained.

`sublora.certify(losses, against=reference)` ends here. Shape legend: D examples.
"""

import dataclasses
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sublora.bounds.anchor import FailureShare, betting_with_share
from sublora.bounds.checks import DRAW_SHARE, RANGE_TOLERANCE, check_count, check_probability
from sublora.bounds.paired import compare, paired_differences
from sublora.bounds.smoothing import LossRange

Direction = Literal["lower", "higher"]
"""Which values are better."""

REFERENCE_SHARE = 0.2
"""The part of delta for the reference's own loss; the rest is for the excess, which has a message to pay for."""

DRAWN_ON_TRUST = (
    "the scored examples were drawn uniformly with replacement, once, after the message was frozen, and were not put "
    "into an order that suits the inequality"
)
"""Bets follow the order of the draw (docs/bounds.md, Betting on a draw), so whoever orders the losses for the known
permutation of `betting_subsampled` gets a bound that does not hold."""

ON_TRUST_OF_A_COMPARISON = (
    "the examples are independent draws from the population that the claim is about",
    "neither model was trained, tuned or picked with these examples in view",
    "lower and upper hold for the value of either model on every example of the population",
    "delta and the direction were fixed before the values were seen",
)
"""Assumptions of a held-out comparison that no computation on the values can verify."""

N_EXAMPLES_ON_TRUST = (
    "the n examples are independent draws from the population that the claim is about",
    "code_bits counts every choice made with the n examples in view; every other was made without them",
)
"""Assumptions of every bound that pays for a message."""

ON_TRUST_OF_AN_EXCESS = (
    *N_EXAMPLES_ON_TRUST,
    "the reference was fixed before the n examples were seen",
    "lower and upper hold for the reference's loss on every example, excess_upper for the model's loss above it",
)


@dataclasses.dataclass(frozen=True)
class CertifiedComparison:
    """How the mean value of a model on new examples compares with a reference's, in the unit of the values."""

    mean_difference: float
    """Model minus reference, over the given examples."""
    low: float
    high: float
    """Model minus reference on new examples lies in [low, high] with probability 1 - delta."""
    verdict: Literal["better", "worse", "not decided"]
    examples_to_decide: int | None
    """About how many examples would decide if the differences stay as they are; None if out of reach, or decided."""
    direction: Direction
    n: int
    lower: float
    upper: float
    delta: float
    on_trust: tuple[str, ...] = ON_TRUST_OF_A_COMPARISON

    @property
    def sentence(self) -> str:
        """The result in words."""
        sure = f"With probability {1 - self.delta:g}, on new examples like these,"
        if self.verdict == "not decided":
            needed = "no number of examples up to a thousand million"
            if self.examples_to_decide is not None:
                needed = f"about {self.examples_to_decide:,} examples"
            return (
                f"Not decided: {sure[0].lower()}{sure[1:]} the model's mean value minus the reference's lies between "
                f"{self.low:+.4g} and {self.high:+.4g}, on either side of 0; if the differences stay as they are, "
                f"{needed} would decide."
            )
        by = min(abs(self.low), abs(self.high))
        return (
            f"{sure} the model is {self.verdict} than the reference by at least {by:.4g} "
            f"({self.direction} is better; model minus reference in [{self.low:+.4g}, {self.high:+.4g}])."
        )

    def as_json(self) -> dict[str, Any]:
        """Return the fields as plain values, with `sentence`."""
        return {"kind": "comparison", "sentence": self.sentence} | _plain(self)


@dataclasses.dataclass(frozen=True)
class CertifiedExcess:
    """The anchored bound on anyone's losses: a bound on the reference, and one on the excess of the model over it."""

    mean_excess: float
    """Mean of model minus reference over the scored examples."""
    excess_bound: float
    """Upper bound on the mean excess on new examples, with probability 1 - delta (1 - REFERENCE_SHARE)."""
    reference_bound: float
    """Upper bound on the reference's mean loss on new examples, with probability 1 - delta REFERENCE_SHARE."""
    code_bits: float
    n: int
    m: int
    """The number of scored examples: n, or the size of the draw."""
    lower: float
    upper: float
    excess_upper: float
    delta: float
    subsample: bool
    on_trust: tuple[str, ...] = ON_TRUST_OF_AN_EXCESS

    @property
    def value(self) -> float:
        """The bound on the model's mean loss: the sum of both."""
        return min(self.reference_bound + self.excess_bound, self.upper + self.excess_upper)

    @property
    def gain(self) -> float:
        """What the model gains at least over the reference; negative where no gain is certified."""
        return -self.excess_bound

    @property
    def sentence(self) -> str:
        """The result in words."""
        gained = f"it gains at least {self.gain:.4g} over the reference" if self.gain > 0.0 else "no gain is certified"
        return (
            f"With probability {1 - self.delta:g}, the expected loss of the model on a fresh example is at most "
            f"{self.value:.4g}, where the reference's is at most {self.reference_bound:.4g}; {gained}."
        )

    def as_json(self) -> dict[str, Any]:
        """Return the fields as plain values, with `value`, `gain` and `sentence`."""
        return {"kind": "excess", "value": self.value, "gain": self.gain, "sentence": self.sentence} | _plain(self)


def _plain(result: CertifiedComparison | CertifiedExcess) -> dict[str, Any]:
    return dataclasses.asdict(result) | {"on_trust": list(result.on_trust)}


def certify_comparison(
    values_D: NDArray[np.float64],
    reference_D: NDArray[np.float64],
    value_range: LossRange,
    *,
    direction: Direction,
    delta: float,
) -> CertifiedComparison:
    """Compare two models that were fixed without these examples; `sublora.bounds.paired.compare` with a direction.

    values_D, reference_D: checked values of both models on the same examples, in the same order. ValueError if their
    numbers differ, or a value is outside its range.
    """
    found = compare(paired_differences(values_D, reference_D, (value_range, value_range)), delta)
    is_better = (found.verdict == "smaller") == (direction == "lower")
    decided: Literal["better", "worse"] = "better" if is_better else "worse"
    return CertifiedComparison(
        mean_difference=found.mean,
        low=found.low,
        high=found.high,
        verdict="not decided" if found.verdict == "not decided" else decided,
        examples_to_decide=found.examples_to_decide,
        direction=direction,
        n=found.n,
        lower=value_range.lower,
        upper=value_range.upper,
        delta=delta,
    )


def certify_excess(
    losses_D: NDArray[np.float64],
    reference_D: NDArray[np.float64],
    reference_range: LossRange,
    *,
    excess_upper: float,
    code_bits: float,
    n: int,
    delta: float,
    subsample: bool,
) -> CertifiedExcess:
    """Return the anchored bound (`sublora.bounds.anchor`) for losses of any kind.

    losses_D, reference_D: losses of the model and of the reference on all n examples in the same order, or with
    `subsample` on m of them, drawn with replacement after the message of `code_bits` was frozen. excess_upper: the most
    by which the model's loss can exceed the reference's on any example, by construction. Both bounds are by betting;
    the reference has no message. ValueError if the numbers of losses differ, an excess is above `excess_upper`, or as
    in `sublora.bounds.inequalities`.
    """
    check_count("n", n)
    check_probability("delta", delta)
    if losses_D.size != reference_D.size:
        raise ValueError(f"{losses_D.size} losses of the model, {reference_D.size} of the reference: give pairs")
    lower, upper = reference_range
    excess_range = LossRange(lower - upper, excess_upper)
    if not excess_range.lower < excess_upper:
        raise ValueError(f"excess_upper {excess_upper} is not above {excess_range.lower}, the smallest excess there is")
    excess_D = losses_D - reference_D
    # A mixture reaches its end exactly, and the difference of two losses may then be rounded above it.
    slack = RANGE_TOLERANCE * (excess_upper - excess_range.lower)
    if (largest := float(excess_D.max())) > excess_upper + slack:
        raise ValueError(
            f"row {int(excess_D.argmax()) + 1}: the model loses {largest:g} more than the reference, above "
            f"excess_upper {excess_upper:g}; mix the model with the reference, so that this holds for every example"
        )
    base, excess = (_share(delta * part, subsample) for part in (REFERENCE_SHARE, 1.0 - REFERENCE_SHARE))
    return CertifiedExcess(
        mean_excess=float(excess_D.mean()),
        excess_bound=betting_with_share(excess_D, excess_range, n=n, code_bits=code_bits, share=excess),
        reference_bound=betting_with_share(reference_D, reference_range, n=n, code_bits=0.0, share=base),
        code_bits=float(code_bits),
        n=int(n),
        m=losses_D.size,
        lower=lower,
        upper=upper,
        excess_upper=float(excess_upper),
        delta=delta,
        subsample=subsample,
        on_trust=ON_TRUST_OF_AN_EXCESS
        + ((DRAWN_ON_TRUST, "their losses helped to choose nothing") if subsample else ()),
    )


def _share(delta: float, subsample: bool) -> FailureShare:
    return FailureShare(delta, DRAW_SHARE * delta if subsample else None)
