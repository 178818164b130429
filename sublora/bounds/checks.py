"""The checks that every inequality applies to its inputs, and the rounding of its result."""

import math
import numbers

import numpy as np

LN2 = math.log(2.0)

ROUNDING = 1e-12
"""Floating-point slack, as a share of the loss range. Every bound is raised by it, so that rounding errors of the
arithmetic (about 1e-15) cannot make a bound smaller than its formula."""

RANGE_TOLERANCE = 1e-9
"""How far rounding may move a mean over tokens out of its range, as a share of the range; such values are clipped."""


DRAW_SHARE = 0.9
"""The part of delta for a draw unless the caller says otherwise; a nat costs more among m examples than among n."""


def checked_losses(losses, *, lower: float, upper: float) -> np.ndarray:
    """Return losses as float64, shape (documents,), inside [lower, upper]; ValueError for anything else."""
    if not (math.isfinite(lower) and math.isfinite(upper) and lower < upper):
        raise ValueError(f"the loss range needs finite lower < upper, found [{lower}, {upper}]")
    values = np.asarray(losses, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"losses must be one-dimensional and not empty, found shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"losses hold {np.count_nonzero(~np.isfinite(values))} values that are not finite")
    slack = RANGE_TOLERANCE * (upper - lower)
    smallest, largest = values.min(), values.max()
    if smallest < lower - slack or largest > upper + slack:
        raise ValueError(f"losses span [{smallest}, {largest}], outside the stated range [{lower}, {upper}]")
    return np.clip(values, lower, upper)


def check_probability(name: str, value: float) -> None:
    """Raise ValueError unless the value lies strictly between 0 and 1; `name` names it."""
    if not 0.0 < value < 1.0:
        raise ValueError(f"{name} must lie strictly between 0 and 1, found {value}")


def check_split(delta: float, delta_sample: float) -> None:
    """Raise ValueError unless delta_sample is a part of delta that leaves a positive rest."""
    check_probability("delta", delta)
    check_probability("delta_sample", delta_sample)
    if delta_sample >= delta:
        raise ValueError(f"delta_sample {delta_sample} must be smaller than delta {delta}, of which it is a part")


LARGEST_COUNT = 2**53
"""Beyond it a count is no exact floating-point number."""


def check_count(name: str, value: int) -> None:
    """Raise ValueError unless the value is a positive whole number up to 2^53; `name` names it."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not 1 <= value <= LARGEST_COUNT or value % 1:
        raise ValueError(f"{name} must be a positive whole number up to 2^53, found {shown(value)}")


def shown(value: object) -> str:
    """Return a value as an error message shows it, in few characters however long the value is."""
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a number of about {round(value.bit_length() * math.log10(2.0))} digits"
    text = repr(value) if isinstance(value, str | bytes) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def real_number(name: str, value: object) -> float:
    """Return a number as a float. ValueError for text, a truth value, and what no float can hold."""
    if isinstance(value, str | bytes | bool | np.bool_):
        raise ValueError(f"{name} must be a number, found {shown(value)}")
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} must be a number, found {shown(value)}") from None


def complexity_nats(code_bits: float, delta: float) -> float:
    """Return B = C ln 2 + ln(1/delta), the price of a union over all messages for one of C = code_bits bits.

    ValueError if C or delta is out of its range.
    """
    check_probability("delta", delta)
    if not (math.isfinite(code_bits) and code_bits >= 0):
        raise ValueError(f"code_bits must be finite and not negative, found {code_bits}")
    return code_bits * LN2 - math.log(delta)


def rounded_up(bound: float, *, lower: float, upper: float) -> float:
    """Return the bound plus the rounding slack, but at most the largest possible loss."""
    return float(min(upper, bound + ROUNDING * (upper - lower)))
