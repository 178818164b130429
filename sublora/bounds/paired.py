"""Two models on the same examples: how much better one is than the other on new examples, from paired losses.

The difference of the losses of two models on an example is bounded like any loss. Where both models were fixed without
these examples, no message is paid for, and `betting` (`sublora.bounds.inequalities`) bounds the mean difference from
above and from below, each with half of delta. Ranges come from the models, never from the losses that were seen.

Differences are model minus reference, in the unit of the losses; negative: the model has the smaller loss. Shape
legend: D examples, H hypotheses.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sublora.bounds.checks import check_probability, checked_losses
from sublora.bounds.full_sample import betting
from sublora.bounds.premises import Premises
from sublora.bounds.selection import estimated_bound
from sublora.bounds.smoothing import LossRange

Verdict = Literal["smaller", "larger", "not decided"]
"""How the model's mean loss compares with the reference's."""
SMALLEST_P = 1e-12
"""p-values below are reported as this one."""
MOST_EXAMPLES = 10**9
"""Numbers of examples above are reported as out of reach."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What paired losses on n examples show about new examples."""

    mean: float
    """Mean difference of the examples."""
    low: float
    high: float
    """Both ends hold together with probability 1 - delta."""
    delta: float
    n: int
    decides_at: Callable[[int], bool] = dataclasses.field(repr=False, compare=False)
    """Whether that many examples would decide if the differences stay as they are."""

    @functools.cached_property
    def examples_to_decide(self) -> int | None:
        """About how many examples would decide if the differences stay as they are; None: out of reach, or decided."""
        return smallest_number(self.decides_at) if self.verdict == "not decided" else None

    @property
    def verdict(self) -> Verdict:
        if self.high < 0.0:
            return "smaller"
        return "larger" if self.low > 0.0 else "not decided"


@dataclasses.dataclass(frozen=True, eq=False)
class Differences:
    """Losses of a model minus those of a reference on the same independent examples, and the range of such values."""

    values_D: NDArray[np.float64]
    range: LossRange

    def reversed(self) -> "Differences":
        """Return the reference's losses minus the model's."""
        return Differences(-self.values_D, LossRange(-self.range.upper, -self.range.lower))

    def at_most(self, upper: float) -> "Differences":
        """Return the differences with a smaller upper end, which the model keeps by construction.

        ValueError if one lies above it.
        """
        return Differences(
            checked_losses(self.values_D, lower=self.range.lower, upper=upper), self.range._replace(upper=upper)
        )

    def upper_bound(self, delta: float) -> float:
        """Return an upper bound on the mean difference on new examples, with probability 1 - delta."""
        lower, upper = self.range
        return betting(self.values_D, lower=lower, upper=upper, code_bits=0.0, n=self.values_D.size, delta=delta)

    def decides_at(self, n: int, delta: float) -> bool:
        """Whether n examples with differences like these would show which sign the mean has, at delta for that side."""
        leaning = self.reversed() if self.values_D.mean() > 0.0 else self
        premises = Premises(n, delta)
        return estimated_bound(leaning.values_D, leaning.range, code_bits=0.0, premises=premises) < 0.0


def paired_differences(losses_D: ArrayLike, reference_D: ArrayLike, ranges: tuple[LossRange, LossRange]) -> Differences:
    """Return the differences of losses on the same examples, in the same order, which neither model was chosen with.

    ranges: of the model's and of the reference's loss, on every possible example. ValueError if the numbers of losses
    differ, or a loss is outside its range.
    """
    model, reference = ranges
    values_D, others_D = (
        checked_losses(losses, lower=each.lower, upper=each.upper)
        for losses, each in zip((losses_D, reference_D), ranges, strict=True)
    )
    if values_D.size != others_D.size:
        raise ValueError(f"{values_D.size} losses of the model, {others_D.size} of the reference: give pairs")
    return Differences(values_D - others_D, LossRange(model.lower - reference.upper, model.upper - reference.lower))


def compare(differences: Differences, delta: float) -> Comparison:
    """Bound the mean difference on new examples from both sides, with probability 1 - delta."""
    check_probability("delta", delta)
    return Comparison(
        mean=float(differences.values_D.mean()),
        low=-differences.reversed().upper_bound(delta / 2),
        high=differences.upper_bound(delta / 2),
        delta=delta,
        n=differences.values_D.size,
        decides_at=functools.partial(differences.decides_at, delta=delta / 2),
    )


def p_value(differences: Differences) -> float:
    """Return a p-value of "the model's mean loss is not smaller": the smallest delta at which it is shown to be.

    The upper bound of `betting` grows as delta falls, so it is found by bisection.
    """

    def is_shown(log_delta: float) -> bool:
        return differences.upper_bound(math.exp(log_delta)) < 0.0

    shown, not_shown = math.log(1.0 - 1e-9), math.log(SMALLEST_P)
    if not is_shown(shown):
        return 1.0
    if is_shown(not_shown):
        return SMALLEST_P
    while shown - not_shown > 1e-6:
        middle = 0.5 * (shown + not_shown)
        shown, not_shown = (middle, not_shown) if is_shown(middle) else (shown, middle)
    return math.exp(shown)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's step-down correction (1979): the family-wise error stays below alpha under any dependence."""
    p_values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p_values)
    corrected = np.empty_like(p_values)
    # Multiply the smallest p by the number of tests, the next by one less, and so on; none falls below the one before.
    corrected[order] = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    return np.minimum(corrected, 1.0)


def smallest_number(holds: Callable[[int], bool], most: int = MOST_EXAMPLES) -> int | None:
    """Return the smallest n from which on a property holds, if it does from some n on; None if not up to `most`."""
    if not holds(most):
        return None
    fails, found = 0, most
    while found - fails > 1:
        middle = (fails + found) // 2
        fails, found = (fails, middle) if holds(middle) else (middle, found)
    return found
