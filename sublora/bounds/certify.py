"""Every applicable inequality for anyone's per-example losses and message size, with checks for common mistakes."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sublora.bounds.certify_inputs import (
    check_inside,
    check_size,
    draw_counts,
    example_values,
    precision_warnings,
    unusual_losses,
)
from sublora.bounds.certify_pairs import (
    DRAWN_ON_TRUST,
    N_EXAMPLES_ON_TRUST,
    CertifiedComparison,
    CertifiedExcess,
    Direction,
    certify_comparison,
    certify_excess,
)
from sublora.bounds.checks import (
    DRAW_SHARE,
    check_count,
    check_probability,
    check_split,
    checked_losses,
    complexity_nats,
    real_number,
)
from sublora.bounds.inequalities import hoeffding_subsampled
from sublora.bounds.premises import Premises, all_bounds
from sublora.bounds.smoothing import LossRange

FORMAT = 1
"""Version of the layout of `Certified.as_json`."""

ON_TRUST = (
    *N_EXAMPLES_ON_TRUST,
    "lower and upper hold for the loss of every example of the population",
    "inequality, delta and delta_sample were fixed before the losses were seen",
)
"""Assumptions of the bounds that no computation on the losses can verify."""

ON_TRUST_OF_A_DRAW = (
    DRAWN_ON_TRUST,
    "their losses helped to choose among no more than the stated alternatives",
)

LARGEST_LOSS = 1e100
"""The largest end of a loss range; products of larger ones would leave the range of floating-point numbers."""


@dataclasses.dataclass(frozen=True)
class Certified:
    """Upper bounds on the expected loss of a fresh example, in the unit of the losses."""

    bounds: Mapping[str, float]
    """The bounds by inequality; each holds with probability 1 - delta on its own, but not all at once."""
    quoted: str
    """The inequality to quote, which depends only on whether all n examples or a draw of them were scored."""
    mean_loss: float
    """The mean loss of the scored examples."""
    code_bits: float
    n: int
    m: int
    """The number of scored examples: n, or the size of the draw, with repeats."""
    lower: float
    upper: float
    delta: float
    delta_sample: float | None
    """The part of delta for the draw; None if all n examples were scored."""
    alternatives: int
    """The number of models that the scored examples may have helped to choose among; charged only with a draw."""
    on_trust: tuple[str, ...]
    """Assumptions of the bounds beside the numbers."""
    warnings: tuple[str, ...]
    """Unusual properties of these inputs that the caller should look at."""

    @property
    def value(self) -> float:
        """The bound to quote."""
        return self.bounds[self.quoted]

    @property
    def why(self) -> str:
        """Why `quoted` is the inequality to quote, in words."""
        scored = "all n examples were scored" if self.delta_sample is None else "a draw of the n examples was scored"
        return (
            f"{self.quoted} is the inequality fixed beforehand where {scored}; the smallest of several bounds holds "
            "only after a union over them"
        )

    def as_json(self) -> dict[str, Any]:
        """Return the fields as plain values, with `format`, `value` and `why`."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        plain = {"bounds": dict(self.bounds), "on_trust": list(self.on_trust), "warnings": list(self.warnings)}
        return {"format": FORMAT, "value": self.value, "why": self.why} | fields | plain


@overload
def certify(
    losses: ArrayLike,
    *,
    code_bits: float,
    n: int,
    lower: float,
    upper: float,
    delta: float = ...,
    subsample: bool = ...,
    delta_sample: float | None = ...,
    alternatives: int = ...,
    counts: ArrayLike | None = ...,
    against: None = ...,
) -> Certified: ...


@overload
def certify(
    losses: ArrayLike,
    *,
    against: ArrayLike,
    direction: Direction,
    lower: float,
    upper: float,
    delta: float = ...,
    code_bits: float = ...,
    n: int | None = ...,
) -> CertifiedComparison: ...


@overload
def certify(
    losses: ArrayLike,
    *,
    against: ArrayLike,
    excess_upper: float,
    code_bits: float,
    n: int,
    lower: float,
    upper: float,
    delta: float = ...,
    subsample: bool = ...,
) -> CertifiedExcess: ...


def certify(
    losses: ArrayLike,
    *,
    lower: float,
    upper: float,
    code_bits: float | None = None,
    n: int | None = None,
    delta: float = 0.05,
    subsample: bool = False,
    delta_sample: float | None = None,
    alternatives: int = 1,
    counts: ArrayLike | None = None,
    against: ArrayLike | None = None,
    direction: Direction | None = None,
    excess_upper: float | None = None,
) -> Certified | CertifiedComparison | CertifiedExcess:
    """Bound the expected loss of a fresh example, given losses from any model and any code, or compare two models.

    Args:
        losses: one per scored example, shape (m,), in any unit, each in [lower, upper]. They belong to all n examples,
            or with `subsample` to m of them, drawn with replacement after the message was frozen.
        code_bits: C, every bit a decoder needs beyond what was fixed independently of the n examples.
        n: the number of independent examples (documents, images, users) with which the message was chosen; never tokens
            of documents.
        lower, upper: a range for the loss of every possible example, whatever the network does on it.
        delta: the probability with which the quoted bound may fail.
        subsample: whether the losses belong to a draw of the n examples.
        delta_sample: the part of delta for the draw, by default nine tenths. Only with `subsample`.
        alternatives: the number of models (messages, smoothings) that the losses of the draw may have helped to choose
            among. Their bits in C pay for the choice among the n examples only, so delta_sample is divided by their
            number. A choice from a prefix-free code that cost k bits counts as 2^k.
        counts: how often each loss was drawn, shape (m,), if `losses` holds distinct examples only. Only with
            `subsample`.
        against: values of a reference model on the same examples, in the same order. Without a message (code_bits 0)
            the two are compared on held-out examples, and losses may be any values, such as accuracies. With
            `excess_upper` the reference anchors the bound.
        direction: with `against`, which values are better: "lower" or "higher". Required for a held-out comparison.
        excess_upper: how much more than the reference the model can lose on any example, by construction. lower and
            upper are then the range of the reference's loss.

    Bounds and sources: `sublora.bounds.inequalities`, with `against` `sublora.bounds.certify_pairs`.

    Raises:
        ValueError: in one line, if a number is out of its range, losses are empty, not numbers, not one-dimensional or
            outside [lower, upper], or their number does not fit n.
    """
    # Check every input; distinct losses with counts become the whole draw.
    values = example_values("losses", losses)
    lower, upper = real_number("lower", lower), real_number("upper", upper)
    delta = real_number("delta", delta)
    code_bits = None if code_bits is None else real_number("code_bits", code_bits)
    excess_upper = None if excess_upper is None else real_number("excess_upper", excess_upper)
    delta_sample = None if delta_sample is None else real_number("delta_sample", delta_sample)
    if not (math.isfinite(lower) and math.isfinite(upper) and lower < upper):
        raise ValueError(f"the loss range needs finite lower < upper, found [{lower}, {upper}]")
    if not (max(abs(lower), abs(upper)) <= LARGEST_LOSS and upper - lower >= 1 / LARGEST_LOSS):
        raise ValueError(
            f"the loss range [{lower}, {upper}] cannot be computed with; give losses in another unit: ends of at most "
            f"{LARGEST_LOSS:g}, and at least {1 / LARGEST_LOSS:g} apart"
        )
    loss_range = LossRange(lower, upper)
    if against is not None:
        if counts is not None or delta_sample is not None or alternatives != 1:
            raise ValueError("counts, delta_sample and alternatives have no meaning with against")
        reference = example_values("against", against)
        check_inside(reference, loss_range)
        if excess_upper is not None:
            if n is None or code_bits is None or direction == "higher":
                raise ValueError("excess_upper needs n, code_bits, and losses, of which lower ones are better")
            return certify_excess(
                values,
                reference,
                loss_range,
                excess_upper=excess_upper,
                code_bits=code_bits,
                n=n,
                delta=delta,
                subsample=subsample,
            )
        _check_held_out(values.size, n, code_bits, direction, subsample=subsample)
        check_inside(values, loss_range)
        return certify_comparison(values, reference, loss_range, direction=direction or "lower", delta=delta)
    if n is None or code_bits is None or direction is not None or excess_upper is not None:
        raise ValueError("n and code_bits are needed, direction and excess_upper only with against")
    check_inside(values, loss_range)
    _check_numbers(n, delta, delta_sample, alternatives, subsample=subsample, counted=counts is not None)
    complexity_nats(code_bits, delta)
    drawn = values if counts is None else np.repeat(values, draw_counts(counts, values.size))
    check_size(drawn.size, int(n), subsample=subsample, counted=counts is not None)
    # Bound, and warn about what is unusual.
    share = DRAW_SHARE * delta if delta_sample is None else delta_sample
    premises = Premises(
        n_units=int(n),
        delta=delta,
        m_units=drawn.size if subsample else None,
        delta_sample=share if subsample else None,
        sweep_size=int(alternatives),
    )
    drawn = checked_losses(drawn, lower=lower, upper=upper)
    bounds = _bounds(drawn, loss_range, code_bits, premises)
    warnings = unusual_losses(drawn, loss_range, premises) + precision_warnings(np.asarray(losses))
    if code_bits == 0:
        warnings.append("code_bits is 0: right only for a model that does not depend on the n examples")
    if bounds[premises.headline] >= upper:
        warnings.append(f"the bound is {upper:g}, the largest possible loss: it says nothing")
    return Certified(
        bounds=bounds,
        quoted=premises.headline,
        mean_loss=float(drawn.mean()),
        code_bits=code_bits,
        n=premises.n_units,
        m=drawn.size,
        lower=loss_range.lower,
        upper=loss_range.upper,
        delta=premises.delta,
        delta_sample=premises.delta_sample,
        alternatives=premises.sweep_size,
        on_trust=ON_TRUST if premises.delta_sample is None else ON_TRUST + ON_TRUST_OF_A_DRAW,
        warnings=tuple(warnings),
    )


def _check_held_out(m: int, n: int | None, code_bits: float | None, direction: str | None, *, subsample: bool) -> None:
    """Check that a comparison is of held-out examples and says which values are better."""
    if direction not in ("lower", "higher"):
        raise ValueError(f"direction says which values are better, 'lower' or 'higher', found {direction!r}")
    if code_bits or subsample:
        raise ValueError(
            "a model that was chosen with these examples is compared by its excess: give excess_upper; without it, "
            "code_bits is 0 and the examples are held out"
        )
    if n not in (None, m):
        raise ValueError(f"{m} values, but n = {n}: a comparison uses all held-out examples, so leave n out")


def _check_numbers(
    n: int, delta: float, delta_sample: float | None, alternatives: int, *, subsample: bool, counted: bool
) -> None:
    """Check that sizes and confidence are possible, and that delta_sample and counts come only with a draw."""
    check_count("n", n)
    check_count("alternatives", alternatives)
    check_probability("delta", delta)
    if subsample:
        check_split(delta, DRAW_SHARE * delta if delta_sample is None else delta_sample)
    elif delta_sample is not None or counted:
        given = "counts" if counted else "delta_sample"
        raise ValueError(f"{given} belongs to a draw of the n examples: say that it is one with subsample")


def _bounds(
    drawn_D: NDArray[np.float64], loss_range: LossRange, code_bits: float, premises: Premises
) -> dict[str, float]:
    """Return every inequality's bound; each holds for all alternatives at once.

    `for_all_alternatives` divides delta_sample. The paper's form has no delta_sample, since it splits delta by m and n,
    so for it all of delta is divided.
    """
    bounds = all_bounds(drawn_D, loss_range, code_bits, premises.for_all_alternatives(extra_bits=0.0))
    if premises.delta_sample is not None:
        bounds[premises.hoeffding] = hoeffding_subsampled(
            drawn_D,
            lower=loss_range.lower,
            upper=loss_range.upper,
            code_bits=code_bits,
            n=premises.n_units,
            delta=premises.delta / premises.sweep_size,
        )
    return bounds
