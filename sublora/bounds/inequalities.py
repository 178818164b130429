"""Upper bounds on the mean loss of a fresh document, from a message's length and per-document losses.

Conventions, the same for all; all arguments except the losses are keyword-only.
    losses      one per document, shape (documents,), in bits per token (top-k: error rates), each in [lower, upper]
    code_bits   C, every bit a decoder needs beyond what was fixed independently of the n documents
    n           number of training documents, taken to be independent draws from one population
    delta       the bound fails with probability at most delta, for all messages at once
The result is in the unit of the losses, rounded up, and never above `upper`. ValueError if an argument is out of its
range, a loss is not finite or outside [lower, upper], there are no losses, or, in FULL_SAMPLE, their number is not n.
Proofs: docs/bounds.md.
"""

from collections.abc import Callable

from sublora.bounds.full_sample import betting, betting_closed_form, empirical_bernstein, hoeffding, kl_inverse
from sublora.bounds.subsampled import betting_subsampled, hoeffding_subsampled, kl_inverse_subsampled

__all__ = [
    "FULL_SAMPLE",
    "SUBSAMPLED",
    "betting",
    "betting_closed_form",
    "betting_subsampled",
    "empirical_bernstein",
    "hoeffding",
    "hoeffding_subsampled",
    "kl_inverse",
    "kl_inverse_subsampled",
]

FULL_SAMPLE: tuple[Callable[..., float], ...] = (
    hoeffding,
    kl_inverse,
    empirical_bernstein,
    betting,
    betting_closed_form,
)
"""Inequalities for the losses of all n documents, in the order of bounds.json and of the columns of runs.csv."""

SUBSAMPLED: tuple[Callable[..., float], ...] = (hoeffding_subsampled, kl_inverse_subsampled, betting_subsampled)
"""Inequalities for the losses of m drawn documents; each also takes `delta_sample`, the part of delta for the draw."""
