"""What rounding may do to the loss of a document, and its place in a bound."""

from sublora.bounds.smoothing import LossRange

SCORE_TOLERANCE_BITS = 1e-5
"""How far a document's loss, computed in float32, may lie from the exact one, in bits per token.

Measured: at most 1e-6 (docs/bounds.md, Precision of the scores).
"""


def with_tolerance(bound_bits: float, loss_range: LossRange) -> float:
    """A bound on the mean loss as one machine computes it, raised so that it holds for every other machine's.

    Where no document's loss differs by more than SCORE_TOLERANCE_BITS, neither does its expectation. A loss never
    exceeds the upper end of its range, whoever computes it.
    """
    return min(bound_bits + SCORE_TOLERANCE_BITS, loss_range.upper)
