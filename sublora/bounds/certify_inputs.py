"""What is given to `sublora.certify`: values, counts and sizes that are checked, and what is unusual about them.

Shape legend: D examples.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sublora.bounds.checks import RANGE_TOLERANCE, shown
from sublora.bounds.premises import RATES, Premises
from sublora.bounds.smoothing import LossRange

TOKENS_SUSPECTED = 1000
"""A ratio n / m above which the caller is asked whether n counts tokens."""

REPEATS_EXPECTED = 12.0
"""With this many expected repeats, a draw with replacement has no repeat with probability below 1e-5."""

LARGEST_DRAW = 1 << 20
"""The largest draw that is given by counts."""

WIDE_SPREAD = 0.12
"""Standard deviation, as a share of the range, above which losses look like those of single tokens."""


def example_values(name: str, given: ArrayLike) -> NDArray[np.float64]:
    """Return numbers as float64, shape (m,).

    ValueError for text, objects, truth values, masked values, other shapes, no numbers at all, and NaN.
    """
    if np.ma.isMaskedArray(given) and (masked := int(np.count_nonzero(np.ma.getmaskarray(given)))):
        raise ValueError(f"{name}: {masked} values are masked: score those examples, or leave them out of n as well")
    try:
        values = np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be numbers: {' '.join(str(error).split())}") from None
    if values.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, one per example, found shape {values.shape}")
    if values.size == 0:
        raise ValueError(f"{name} are empty")
    if values.dtype.kind not in "fiu":
        raise ValueError(f"{name} must be numbers, found {values.dtype} (first: {shown(values[0])})")
    values = values.astype(np.float64)
    if not (finite := np.isfinite(values)).all():
        row = int(np.argmin(finite))
        raise ValueError(f"{name}: row {row + 1} is {values[row]}; {np.count_nonzero(~finite)} are not finite")
    return values


def check_inside(values: NDArray[np.float64], loss_range: LossRange) -> None:
    """Raise ValueError unless all losses are in the range."""
    lower, upper = loss_range
    slack = RANGE_TOLERANCE * (upper - lower)
    outside = (values < lower - slack) | (values > upper + slack)
    if outside.any():
        row = int(np.argmax(outside))
        raise ValueError(
            f"losses: row {row + 1} is {values[row]}, outside [{lower}, {upper}] ({np.count_nonzero(outside)} of "
            f"{values.size} are); the range must hold for every example: smooth the predictor, or widen it"
        )


def draw_counts(counts: ArrayLike, size: int) -> NDArray[np.int64]:
    """Return the counts as int64, shape (m,); ValueError unless each loss has a positive whole number."""
    values = example_values("counts", counts)
    if values.size != size:
        raise ValueError(f"{values.size} counts for {size} losses: each distinct loss needs one")
    wrong = (values < 1) | (values != np.floor(values))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(f"counts: row {row + 1} is {values[row]:g}, expected a whole number of at least 1")
    if values.sum() > LARGEST_DRAW:
        raise ValueError(
            f"counts: a draw of {values.sum():,.0f} examples, expected at most {LARGEST_DRAW:,}; are these counts of "
            "tokens? Else give every loss as often as it was drawn"
        )
    return values.astype(np.int64)


def check_size(m: int, n: int, *, subsample: bool, counted: bool) -> None:
    """Check that the number of losses fits n and the kind of sample."""
    if subsample and m == n and not counted:
        raise ValueError(
            f"{m} losses for n = {n}: if every example was scored once, it is not a subsample; if n were drawn with "
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


def unusual_losses(drawn_D: NDArray[np.float64], loss_range: LossRange, premises: Premises) -> list[str]:
    """Return what is unusual about the sizes, and about the position of the losses in their range."""
    n, m, found = premises.n_units, drawn_D.size, []
    # A draw: its size, and the repeats that drawing with replacement implies.
    if premises.delta_sample is not None:
        if n > TOKENS_SUSPECTED * m:
            found.append(
                f"n is {n / m:,.0f} times the number of losses: does it count independent examples, or tokens?"
            )
        if m > n:
            found.append(f"the draw of {m} is larger than n = {n}: scoring all n once gives a smaller bound")
        if m * (m - 1) / (2 * n) > REPEATS_EXPECTED and np.unique(drawn_D).size == m:
            repeats = m - 1 if n == 1 else m + n * math.expm1(m * math.log1p(-1 / n))
            found.append(
                f"no loss occurs twice, though a draw of {m} from {n} with replacement repeats about {repeats:.0f}: "
                "was it drawn without replacement, or are its counts missing?"
            )
    # Error rates do reach the ends of their range, and spread over it.
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


def precision_warnings(given_D: NDArray) -> list[str]:
    """Return a warning for losses in 16-bit floats, with the error of rounding them."""
    if given_D.dtype.kind != "f" or given_D.dtype.itemsize >= 4:
        return []
    moved = float(np.spacing(np.abs(given_D).max())) / 2
    return [f"losses are stored as {given_D.dtype}, which moved them by up to {moved:.1g}: store them in float32"]
