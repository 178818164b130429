"""Smoothed predictors, which make the loss of a document bounded, and the range of that loss.

The network alone may give a token probability 0 and thus a document an infinite loss. Two predictors avoid that. With p
the network's next-token probabilities, V the vocabulary size, and P = prod_t p(x_t | x_<t) the network's probability of
a document of T targets (the closing end-of-text is one):

    token(a)      p_a(x_t | x_<t) = (1 - a) p(x_t | x_<t) + a / V     guesses anew at every token
    document(k)   q(x) = (1 - e) P + e V^-T,  e = 2^-k                guesses whole documents

Both are proper: non-negative, and they sum to 1 over the vocabulary at every step, hence over all documents. The second
is the Bayesian mixture of two predictors, the network and uniform guessing, with prior probability e on guessing. Its
next-token form is

    q(x_t | x_<t) = r p(x_t | x_<t) + (1 - r) / V,   r the posterior probability of the network after x_<t,

so it starts like token(e), and later trusts the predictor that has predicted the document better so far.

Losses are in bits per token, the mean over the targets of a document. Shape legend: D documents, S targets of all
documents, A candidates.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sublora.bounds.checks import LN2, check_count, check_probability
from sublora.bounds.smoothing_names import LARGEST_A, LARGEST_K, SMALLEST_A, parse_name


class LossRange(NamedTuple):
    """Smallest and largest loss that a document of the population can have, in bits per token."""

    lower: float
    upper: float


SCORE_TOLERANCE_BITS = 1e-5
"""How far a document's loss, computed in float32, may be from the exact one, in bits per token.

Measured: at most 1e-6 (docs/bounds.md, Precision of the scores).
"""


def with_tolerance(bound_bits: float, loss_range: LossRange) -> float:
    """Return a bound on the mean loss as one machine computes it, raised so that it holds for the exact losses.

    If no document's loss is off by more than SCORE_TOLERANCE_BITS, neither is its expectation. Another machine may be
    off in the other direction, so two machines differ by up to twice as much. A loss never exceeds the upper end of its
    range.
    """
    return min(bound_bits + SCORE_TOLERANCE_BITS, loss_range.upper)


@dataclass(frozen=True)
class TokenSmoothing:
    """p_a = (1 - a) p + a / V for every token. Source: prediction smoothing, Lotfi et al. 2024."""

    a: float

    def __post_init__(self) -> None:
        check_probability("token(a): a", self.a)
        if self.a < SMALLEST_A:
            raise ValueError(f"token(a): a is at least {SMALLEST_A:g}, found {self.a}")
        if self.a > LARGEST_A:
            raise ValueError(f"token(a): a is at most {LARGEST_A}, found {self.a}: beyond it there is only guessing")

    @property
    def name(self) -> str:
        """The name in settings, token(a)."""
        return f"token({float(self.a)!r})"

    def loss_range_bits(self, vocab_size: int, min_targets: int) -> LossRange:
        """Return [-log2(1 - a + a/V), log2(V/a)]: p = 1 and p = 0 for every target, whatever the length."""
        _check_population(vocab_size, min_targets)
        return LossRange(-math.log2(1.0 - self.a + self.a / vocab_size), math.log2(vocab_size / self.a))

    def target_losses_bits(self, log_p_S: NDArray, vocab_size: int) -> NDArray[np.float64]:
        """Return the loss of each target, bits, shape (S,), from the network's log-probabilities in nats."""
        p_S = np.exp(np.minimum(log_p_S.astype(np.float64), 0.0))
        return -np.log2((1.0 - self.a) * p_S + self.a / vocab_size)

    def document_losses_bits(
        self, log_p_S: NDArray, offsets: NDArray[np.integer], vocab_size: int
    ) -> NDArray[np.float64]:
        """Return the mean loss per token of each document, bits, shape (D,).

        log_p_S: natural log-probabilities of the targets of all documents, one document after another, shape (S,);
        offsets: where each document begins, and S at the end, shape (D + 1,), strictly increasing from 0.
        """
        check_offsets(offsets, len(log_p_S))
        return np.add.reduceat(self.target_losses_bits(log_p_S, vocab_size), offsets[:-1]) / np.diff(offsets)


@dataclass(frozen=True)
class DocumentMixture:
    """q = (1 - e) P + e V^-T for every document, e = 2^-k: the network and guessing, mixed once per document."""

    k: int

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or self.k not in range(1, LARGEST_K + 1):
            raise ValueError(f"document(k): k must be a whole number from 1 to {LARGEST_K}, found {self.k}")

    @property
    def name(self) -> str:
        """The name in settings, document(k)."""
        return f"document({int(self.k)})"

    def loss_range_bits(self, vocab_size: int, min_targets: int) -> LossRange:
        """Return [0, log2 V + k / T_min] for documents of at least T_min = `min_targets` targets.

        q <= 1, and long documents of which the network is certain approach 0. q >= e V^-T, so the loss is at most
        log2 V + k / T, which falls with T; this is attained at T = T_min and P = 0.
        """
        _check_population(vocab_size, min_targets)
        return LossRange(0.0, math.log2(vocab_size) + self.k / min_targets)

    def document_losses_bits(
        self, log_p_S: NDArray, offsets: NDArray[np.integer], vocab_size: int
    ) -> NDArray[np.float64]:
        """Return -log2(q) / T of each document, bits per token, shape (D,); arguments as for `TokenSmoothing`."""
        check_offsets(offsets, len(log_p_S))
        log_p_D = np.add.reduceat(np.minimum(log_p_S.astype(np.float64), 0.0), offsets[:-1])
        return self.losses_bits(log_p_D, np.diff(offsets), vocab_size)

    def losses_bits(self, log_p_D: ArrayLike, targets_D: ArrayLike, vocab_size: int) -> NDArray[np.float64]:
        """Return the losses of documents, given ln P in nats and their numbers of targets; shapes broadcast."""
        network, guessing = self._log_weights(log_p_D, targets_D, vocab_size)
        # The two terms sum to at most 1; adding their logarithms may leave a rounding error above 0.
        return np.maximum(-np.logaddexp(network, guessing), 0.0) / (LN2 * np.asarray(targets_D))

    def responsibility(self, log_p_D: ArrayLike, targets_D: ArrayLike, vocab_size: int) -> NDArray[np.float64]:
        """Return r = (1 - e) P / q, the posterior probability of the network after the targets.

        Arguments are as for `losses_bits`. The gradient of -ln q is r times that of -ln P. With the first t targets of
        a document instead of all T, r is the weight of the network in the prediction of target t + 1 (1 - e at t = 0).
        """
        network, guessing = self._log_weights(log_p_D, targets_D, vocab_size)
        return np.exp(-np.logaddexp(0.0, guessing - network))

    @property
    def log_prior(self) -> float:
        """ln(1 - e), the network's prior probability."""
        return math.log1p(-(2.0**-self.k))

    def log_prior_odds(self, targets, vocab_size: int):
        """Return ln of (1 - e) / (e V^-T) for numbers or tensors; ln P plus this are the network's log-odds."""
        return self.log_prior + self.k * LN2 + math.log(vocab_size) * targets

    def _log_weights(self, log_p_D: ArrayLike, targets_D: ArrayLike, vocab_size: int) -> tuple[NDArray, NDArray]:
        """Return ln((1 - e) P) and ln(e V^-T)."""
        log_p_D = np.minimum(np.asarray(log_p_D, dtype=np.float64), 0.0)
        guessing_D = -self.k * LN2 - np.asarray(targets_D) * math.log(vocab_size)
        return self.log_prior + log_p_D, guessing_D


Smoothing = TokenSmoothing | DocumentMixture


def parse_smoothing(text: str) -> Smoothing:
    """Return the smoothing of a name, `token(0.1)` or `document(8)`; ValueError in one line for anything else."""
    kind, number = parse_name(text)
    return TokenSmoothing(number) if kind == "token" else DocumentMixture(int(number))


def document_losses_bits(
    candidates: Sequence[Smoothing], log_p_S: NDArray, offsets: NDArray[np.integer], vocab_size: int
) -> NDArray[np.float64]:
    """Return the losses of every document under every candidate, bits per token, shape (D, A)."""
    return np.stack([each.document_losses_bits(log_p_S, offsets, vocab_size) for each in candidates], axis=1)


def check_offsets(offsets: NDArray[np.integer], targets: int) -> None:
    """Raise ValueError unless every document has at least one target, and together they have all."""
    if offsets.ndim != 1 or len(offsets) < 2 or offsets[0] != 0 or offsets[-1] != targets:
        raise ValueError(f"offsets must lead from 0 to the number of targets, {targets}")
    if np.diff(offsets).min() < 1:
        raise ValueError("every document needs at least one target: offsets must increase")


def _check_population(vocab_size: int, min_targets: int) -> None:
    check_count("vocab_size", vocab_size)
    check_count("min_targets", min_targets)
