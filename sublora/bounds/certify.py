"""Anyone's per-example losses and message size to every inequality that applies, with the checks people need."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sublora.bounds.checks import (
    RANGE_TOLERANCE,
    check_count,
    check_probability,
    check_split,
    checked_losses,
    complexity_nats,
)
from sublora.bounds.inequalities import hoeffding_subsampled
from sublora.bounds.premises import RATES, Premises, all_bounds
from sublora.bounds.smoothing import LossRange

FORMAT = 1
"""Version of the layout of `Certified.as_json`."""

DRAW_SHARE = 0.9
"""The part of delta that pays for a draw unless the caller says otherwise: a nat is dearer among m than among n."""

TOKENS_SUSPECTED = 1000
"""A larger n / m makes one ask whether n counts tokens."""

REPEATS_EXPECTED = 12.0
"""So many expected repeats make a draw with replacement without any repeat an event of probability below 1e-5."""

ON_TRUST = (
    "the n examples are independent draws from the population that the claim is about",
    "code_bits counts every choice made with the n examples in view; every other was made without them",
    "lower and upper hold for the loss of every example of the population",
    "inequality, delta and delta_sample were fixed before the losses were seen",
)
"""What the bounds assume and no computation on the losses can show."""

ON_TRUST_OF_A_DRAW = (
    "the scored examples were drawn uniformly with replacement, once, after the message was frozen",
    "their losses helped to choose among no more than the stated alternatives",
)

WIDE_SPREAD = 0.12
"""Standard deviation, as a share of the range, above which losses look like those of single tokens."""


@dataclasses.dataclass(frozen=True)
class Certified:
    """Upper bounds on the expected loss of a fresh example, in the unit of the losses."""

    bounds: Mapping[str, float]
    """By inequality; each holds with probability 1 - delta on its own, not all of them at once."""
    quoted: str
    """The inequality to quote, fixed by whether all n examples or a draw of them were scored."""
    mean_loss: float
    """Of the scored examples."""
    code_bits: float
    n: int
    m: int
    """Scored examples: n, or the size of the draw, repeats counted."""
    lower: float
    upper: float
    delta: float
    delta_sample: float | None
    """The part of delta for the draw; None: all n examples were scored."""
    alternatives: int
    """Among so many models the scored examples may have helped to choose; only a draw pays for it."""
    on_trust: tuple[str, ...]
    """What the bounds assume beside the numbers."""
    warnings: tuple[str, ...]
    """What in these inputs is unusual enough to ask about."""

    @property
    def value(self) -> float:
        """The bound to quote."""
        return self.bounds[self.quoted]

    @property
    def why(self) -> str:
        """Why `quoted` and no other."""
        scored = "all n examples were scored" if self.delta_sample is None else "a draw of the n examples was scored"
        return (
            f"{self.quoted} is the inequality fixed beforehand where {scored}; the smallest of several bounds holds "
            "only after a union over them"
        )

    def as_json(self) -> dict[str, Any]:
        """The fields as plain values, with `format`, `value` and `why`."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        plain = {"bounds": dict(self.bounds), "on_trust": list(self.on_trust), "warnings": list(self.warnings)}
        return {"format": FORMAT, "value": self.value, "why": self.why} | fields | plain


def certify(
    losses: ArrayLike,
    *,
    code_bits: float,
    n: int,
    lower: float,
    upper: float,
    delta: float = 0.05,
    subsample: bool = False,
    delta_sample: float | None = None,
    alternatives: int = 1,
    counts: ArrayLike | None = None,
) -> Certified:
    """Bound the expected loss of a fresh example from losses that anyone computed in any way.

    losses: one per scored example, shape (m,), in any unit, each in [lower, upper]. By default of all n examples;
        with `subsample` of m of them, drawn with replacement after the message was frozen.
    code_bits: C, every bit a decoder needs beyond what was fixed independently of the n examples.
    n: the independent examples (documents, images, users) the message was chosen with; never tokens of documents.
    lower, upper: the range that the loss of every possible example has, whatever the network does on it.
    delta: probability with which the quoted bound may fail.
    delta_sample: the part of it for the draw, by default nine tenths. Only with `subsample`.
    alternatives: models (messages, smoothings) among which the losses of the draw may have helped to choose: their
        bits in C pay for the choice among the n examples only, so delta_sample is divided by their number. A choice
        from a prefix-free code that cost k bits counts as 2^k.
    counts: how often each loss was drawn, shape (m,), where losses holds distinct examples only. With `subsample`.

    Bounds and sources: `sublora.bounds.inequalities`. ValueError in one line if a number is out of its range, losses
    are empty, not numbers, not one-dimensional or outside [lower, upper], or their number does not fit n.
    """
    values = _numbers("losses", losses)
    if not (math.isfinite(lower) and math.isfinite(upper) and lower < upper):
        raise ValueError(f"the loss range needs finite lower < upper, found [{lower}, {upper}]")
    loss_range = LossRange(float(lower), float(upper))
    _check_inside(values, loss_range)
    _check_numbers(n, delta, delta_sample, alternatives, subsample=subsample, counted=counts is not None)
    complexity_nats(code_bits, delta)
    drawn = values if counts is None else np.repeat(values, _checked_counts(counts, values.size))
    _check_size(drawn.size, int(n), subsample=subsample, counted=counts is not None)
    share = DRAW_SHARE * delta if delta_sample is None else delta_sample
    premises = Premises(
        n_units=int(n),
        delta=float(delta),
        m_units=drawn.size if subsample else None,
        delta_sample=float(share) if subsample else None,
        sweep_size=int(alternatives),
    )
    drawn = checked_losses(drawn, lower=lower, upper=upper)
    bounds = _bounds(drawn, loss_range, float(code_bits), premises)
    warnings = _warnings(drawn, loss_range, premises) + _precision_warnings(np.asarray(losses))
    if code_bits == 0:
        warnings.append("code_bits is 0: right only for a model that owes nothing to the n examples")
    if bounds[premises.headline] >= upper:
        warnings.append(f"the bound is {upper:g}, the largest loss there is: it says nothing")
    return Certified(
        bounds=bounds,
        quoted=premises.headline,
        mean_loss=float(drawn.mean()),
        code_bits=float(code_bits),
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


def _check_numbers(
    n: int, delta: float, delta_sample: float | None, alternatives: int, *, subsample: bool, counted: bool
) -> None:
    """Sizes and confidence are possible; a draw has a delta_sample and counts, and nothing else has them."""
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
    """Every inequality, so that each holds for all alternatives at once.

    `for_all_alternatives` divides delta_sample, which the paper's form does not have: it splits delta by m and n, so
    there the whole of delta is divided.
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


def _numbers(name: str, given: ArrayLike) -> NDArray[np.float64]:
    """As float64, shape (m,); ValueError for text, objects, truth values, other shapes, nothing at all and NaN."""
    values = np.asarray(given)
    if values.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, one per example, found shape {values.shape}")
    if values.size == 0:
        raise ValueError(f"{name} are empty")
    if values.dtype.kind not in "fiu":
        raise ValueError(f"{name} must be numbers, found {values.dtype} (first: {values[0]!r})")
    values = values.astype(np.float64)
    if not (finite := np.isfinite(values)).all():
        row = int(np.argmin(finite))
        raise ValueError(f"{name}: row {row + 1} is {values[row]}; {np.count_nonzero(~finite)} are not finite")
    return values


def _check_inside(values: NDArray[np.float64], loss_range: LossRange) -> None:
    lower, upper = loss_range
    slack = RANGE_TOLERANCE * (upper - lower)
    outside = (values < lower - slack) | (values > upper + slack)
    if outside.any():
        row = int(np.argmax(outside))
        raise ValueError(
            f"losses: row {row + 1} is {values[row]}, outside [{lower}, {upper}] ({np.count_nonzero(outside)} of "
            f"{values.size} are); the range must hold for every example: smooth the predictor, or widen it"
        )


def _checked_counts(counts: ArrayLike, size: int) -> NDArray[np.int64]:
    values = _numbers("counts", counts)
    if values.size != size:
        raise ValueError(f"{values.size} counts for {size} losses: each distinct loss needs one")
    wrong = (values < 1) | (values != np.floor(values))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(f"counts: row {row + 1} is {values[row]:g}, expected a whole number of at least 1")
    return values.astype(np.int64)


def _check_size(m: int, n: int, *, subsample: bool, counted: bool) -> None:
    """The number of losses fits n, and what was said of them."""
    if subsample and m == n and not counted:
        raise ValueError(
            f"{m} losses for n = {n}: if every example was scored once, it is no subsample; if n were drawn with "
            "replacement, give the distinct losses and their counts"
        )
    if subsample or m == n:
        return
    if m > n:
        raise ValueError(f"{m} losses, but n = {n}: give one loss per example, not per token or caption")
    tokens = " (n counts independent examples, never tokens)" if n > TOKENS_SUSPECTED * m else ""
    raise ValueError(
        f"{m} losses, but n = {n}{tokens}: score all n, or say subsample if these were drawn with replacement after "
        "the message was frozen"
    )


def _warnings(drawn_D: NDArray[np.float64], loss_range: LossRange, premises: Premises) -> list[str]:
    """What is unusual about the sizes, and about how the losses lie in their range."""
    n, m, found = premises.n_units, drawn_D.size, []
    if premises.delta_sample is not None:
        if n > TOKENS_SUSPECTED * m:
            found.append(
                f"n is {n / m:,.0f} times the number of losses: does it count independent examples, or tokens?"
            )
        if m > n:
            found.append(f"the draw of {m} is larger than n = {n}: scoring all n once gives a smaller bound")
        if m * (m - 1) / (2 * n) > REPEATS_EXPECTED and np.unique(drawn_D).size == m:
            repeats = m + n * math.expm1(m * math.log1p(-1 / n))
            found.append(
                f"no loss occurs twice, though a draw of {m} from {n} with replacement repeats about {repeats:.0f}: "
                "was it drawn without replacement, or are its counts missing?"
            )
    if loss_range == RATES:
        return found
    lower, upper = loss_range
    for name, end, seen in (("upper", upper, drawn_D.max()), ("lower", lower, drawn_D.min())):
        if seen == end:
            found.append(f"{name} is a loss that was seen: it must bound the loss of examples never seen as well")
    if (spread := drawn_D.std() / (upper - lower)) > WIDE_SPREAD:
        found.append(
            f"losses spread over the range (standard deviation {spread:.0%} of it) as those of single tokens do: an "
            "example is what was drawn independently, and its loss the mean over its tokens"
        )
    return found


def _precision_warnings(given_D: NDArray) -> list[str]:
    if given_D.dtype.kind != "f" or given_D.dtype.itemsize >= 4:
        return []
    moved = float(np.spacing(np.abs(given_D).max())) / 2
    return [f"losses are stored as {given_D.dtype}, which moved them by up to {moved:.1g}: store them in float32"]
