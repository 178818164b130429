"""The anchored bound: what adapting changed is bounded apart from what the base already knew.

The direct bound pays for the range from the loss up to guessing. With an anchor the certified predictor is a mixture,
per document, of the adapted network and of the base, which was fixed before the n documents were seen. For a document
of T targets, V the size of the vocabulary, P and P_base the probabilities that network and base give to the document:

    Q_b = (1 - 2^-k0) P_base + 2^-k0 V^-T     loss_b = -log2 Q_b / T   in [0, log2 V + k0 / T_min]
    q   = (1 - 2^-k) P + 2^-k Q_b             loss_q = -log2 q / T     in [0, log2 V + (k + k0) / T_min]
    D   = loss_q - loss_b                     in [-(log2 V + k0 / T_min), k / T_min]

The upper end of the excess D holds for every network, since q >= 2^-k Q_b. Betting on D uses only its headroom
k / T_min - D, so the bound pays for the spread of what adapting changed. Two bounds add up:

    E[D] <= u_D with probability 1 - delta_excess, over all C bits of the message;
    E[loss_b] <= u_b with probability 1 - delta_base, without a message;
    E[loss_q] <= u_b + u_D with probability 1 - delta_base - delta_excess.

The step from a loss to an excess and a reference is that of Recursive PAC-Bayes (Wu, Zhang, Cherief-Abdellatif and
Seldin, NeurIPS 2024) with gamma = 1. Statement and proof: docs/bounds.md, The anchored bound.

Losses are in bits per token, log-probabilities in nats. Shape legend: D documents (or units), A candidates of k.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sublora.bounds.checks import LN2
from sublora.bounds.inequalities import betting, betting_subsampled
from sublora.bounds.smoothing import SCORE_TOLERANCE_BITS, DocumentMixture, LossRange, Smoothing

EXCESS_TOLERANCE_BITS = 2 * SCORE_TOLERANCE_BITS
"""How far an excess computed in float32 may lie from the exact one: two losses are in it."""


class Population(NamedTuple):
    """What the ends of a loss's range depend on."""

    vocab_size: int
    """V, the end-of-text token included."""
    min_targets: int
    """T_min: targets of the shortest document."""


@dataclasses.dataclass(frozen=True)
class AnchoredMixture:
    """The certified predictor q = (1 - 2^-k) P + 2^-k Q_b, mixed once per document."""

    k: int
    """Chosen on val; its index travels in the message."""
    k0: int
    """Prior weight 2^-k0 of guessing inside the anchor Q_b: a setting, never chosen on data."""

    def __post_init__(self) -> None:
        DocumentMixture(self.k)
        DocumentMixture(self.k0)

    @classmethod
    def of(cls, smoothing: Smoothing, k0: int) -> "AnchoredMixture":
        """Return the anchored form of document(k). ValueError for token(a), whose excess has no small upper end."""
        if not isinstance(smoothing, DocumentMixture):
            raise ValueError(f"with an anchor the smoothing must be document(k), found {smoothing.name}")
        return cls(smoothing.k, k0)

    @property
    def anchor(self) -> DocumentMixture:
        """The mixture Q_b of base and guessing."""
        return DocumentMixture(self.k0)

    def excess_range_bits(self, vocab_size: int, min_targets: int) -> LossRange:
        """Return the smallest and the largest D of a document with at least T_min = `min_targets` targets."""
        return LossRange(-self.anchor.loss_range_bits(vocab_size, min_targets).upper, self.k / min_targets)

    def loss_range_bits(self, vocab_size: int, min_targets: int) -> LossRange:
        """Return the range of loss_q, [0, log2 V + (k + k0) / T_min]: the one of the direct bound for the same q."""
        return LossRange(0.0, self.anchor.loss_range_bits(vocab_size, min_targets).upper + self.k / min_targets)

    def base_losses_bits(self, base_log_p_D: ArrayLike, targets_D: ArrayLike, vocab_size: int) -> NDArray[np.float64]:
        """Return loss_b of whole documents, shape (D,), from ln P_base and the numbers of targets."""
        return self.anchor.losses_bits(known_log_p(base_log_p_D), targets_D, vocab_size)

    def excess_bits(
        self, log_p_D: ArrayLike, base_log_p_D: ArrayLike, targets_D: ArrayLike, vocab_size: int
    ) -> NDArray[np.float64]:
        """Return D of whole documents, shape (D,).

        Computed as -log2(2^-k + (1 - 2^-k) P / Q_b) / T, so that rounding never lifts it above k / T. A network
        without a probability (NaN) gives the document probability 0.
        """
        log_odds_D = self._log_weight_of_network(log_p_D, base_log_p_D, targets_D, vocab_size)
        return -np.logaddexp(-self.k * LN2, log_odds_D) / (LN2 * np.asarray(targets_D))

    def losses_bits(
        self, log_p_D: ArrayLike, base_log_p_D: ArrayLike, targets_D: ArrayLike, vocab_size: int
    ) -> NDArray[np.float64]:
        """Return loss_q of whole documents, shape (D,)."""
        excess_D = self.excess_bits(log_p_D, base_log_p_D, targets_D, vocab_size)
        return np.maximum(self.base_losses_bits(base_log_p_D, targets_D, vocab_size) + excess_D, 0.0)

    def responsibility(
        self, log_p_D: ArrayLike, base_log_p_D: ArrayLike, targets_D: ArrayLike, vocab_size: int
    ) -> NDArray[np.float64]:
        """Return (1 - 2^-k) P / q, the posterior probability of the network after a document, shape (D,)."""
        log_odds_D = self._log_weight_of_network(log_p_D, base_log_p_D, targets_D, vocab_size)
        return np.exp(-np.logaddexp(0.0, -self.k * LN2 - log_odds_D))

    def _log_weight_of_network(
        self, log_p_D: ArrayLike, base_log_p_D: ArrayLike, targets_D: ArrayLike, vocab_size: int
    ) -> NDArray[np.float64]:
        """Return ln((1 - 2^-k) P / Q_b)."""
        base_losses_D = self.base_losses_bits(base_log_p_D, targets_D, vocab_size)
        log_anchor_D = -base_losses_D * (LN2 * np.asarray(targets_D))
        return DocumentMixture(self.k).log_prior + known_log_p(log_p_D) - log_anchor_D


def known_log_p(log_p_D: ArrayLike) -> NDArray[np.float64]:
    """Return log-probabilities as float64, at most 0; what is no number counts as probability 0."""
    values_D = np.asarray(log_p_D, dtype=np.float64)
    return np.minimum(np.where(np.isnan(values_D), -np.inf, values_D), 0.0)


def anchored_candidates(smoothings: Sequence[Smoothing], k0: int) -> tuple[AnchoredMixture, ...]:
    """Return the anchored form of every candidate of the grid. ValueError if one is a token(a)."""
    return tuple(AnchoredMixture.of(each, k0) for each in smoothings)


class MixtureLosses(NamedTuple):
    """Losses of a mixture of a network and its base on documents, and the ranges that bounds on them need."""

    losses_D: NDArray[np.float64]
    """Losses of the certified predictor q, bits per token."""
    base_losses_D: NDArray[np.float64]
    """Losses of the anchor Q_b, bits per token: what `sublora.certify` takes as `against`."""
    base_range: LossRange
    """Range of the anchor's loss: `lower` and `upper` of `sublora.certify`."""
    excess_upper: float
    """What q loses at most more than Q_b on any document, k / T_min bits per token."""


def anchored_losses(
    log_p: ArrayLike, base_log_p: ArrayLike, targets: ArrayLike, *, vocab_size: int, k: int, k0: int, min_targets: int
) -> MixtureLosses:
    """Return the losses of q = (1 - 2^-k) P + 2^-k Q_b and of its anchor Q_b, for any language model.

    Args:
        log_p, base_log_p: ln of the probability that the adapted network and its base give to each whole document, in
            nats, shape (D,); a network without a probability (NaN) counts as probability 0.
        targets: tokens predicted in each document, shape (D,).
        vocab_size: V, the end-of-text token included.
        k: chosen on documents set apart, and charged in the message; k0: fixed beforehand.
        min_targets: targets of the shortest document that the population admits.

    Raises:
        ValueError: k or k0 is not between 1 and 64, or a document has fewer targets than `min_targets`.
    """
    targets_D = np.asarray(targets)
    if targets_D.size and targets_D.min() < min_targets:
        raise ValueError(f"a document has {targets_D.min()} targets, fewer than min_targets {min_targets}")
    mixture, population = AnchoredMixture(k, k0), Population(vocab_size, min_targets)
    arguments = (base_log_p, targets_D, vocab_size)
    return MixtureLosses(
        mixture.losses_bits(log_p, *arguments),
        mixture.base_losses_bits(*arguments),
        mixture.anchor.loss_range_bits(*population),
        mixture.excess_range_bits(*population).upper,
    )


@dataclasses.dataclass(frozen=True)
class FailureShare:
    """A part of delta: how often one of the two bounds may fail, and how much of that is for its draw."""

    delta: float
    delta_sample: float | None
    """None: all n units are scored, and nothing is drawn."""

    def for_alternatives(self, bits: float) -> "FailureShare":
        """Return the share of one of 2^bits alternatives, each of which has its own draw; the rest is unchanged."""
        if self.delta_sample is None:
            return self
        share = self.delta_sample * 2.0**-bits
        return FailureShare(self.delta - self.delta_sample + share, share)


def base_bound(losses_D: ArrayLike, loss_range: LossRange, *, n: int, share: FailureShare, picked_bits: float) -> float:
    """Return u_b, an upper bound on E[loss_b] in bits per token, with probability 1 - share.delta.

    losses_D: loss_b of all n units, or of m units whose draw is seeded by the base, the data, k0 and m, and by nothing
    of a run. picked_bits: what is charged for a base or a smoothing that was picked by hand on this data, one of
    2^picked_bits: in the union and in the draw's share of delta. ValueError as in `sublora.bounds.inequalities`.
    """
    bound = betting_with_share(
        losses_D, loss_range, n=n, code_bits=picked_bits, share=share.for_alternatives(picked_bits)
    )
    return min(bound + SCORE_TOLERANCE_BITS, loss_range.upper)


def excess_bound(
    excess_D: ArrayLike,
    excess_range: LossRange,
    *,
    n: int,
    code_bits: float,
    share: FailureShare,
    alternatives_bits: float = 0.0,
) -> float:
    """Return u_D, an upper bound on E[D] in bits per token, with probability 1 - share.delta.

    excess_D: of all n units, or of m units drawn after the message of `code_bits` was frozen, seeded by it.
    alternatives_bits: log2 of the number of runs, each with its own draw, of which the best may be named. ValueError
    as in `sublora.bounds.inequalities`.
    """
    own = share.for_alternatives(alternatives_bits)
    bound = betting_with_share(excess_D, excess_range, n=n, code_bits=code_bits, share=own)
    return min(bound + EXCESS_TOLERANCE_BITS, excess_range.upper)


def certified_gain_bits(excess_upper_bits: float, k0: int, min_targets: int) -> float:
    """Return how much less than the frozen base itself the certified predictor needs at least, bits per token.

    The base alone, without guessing, needs at least loss_b - log2(1 / (1 - 2^-k0)) / T on every document; so
    E[loss of P_base] - E[loss_q] >= -u_D - log2(1 / (1 - 2^-k0)) / T_min, with the probability of u_D. Negative where
    no gain is certified.
    """
    return -excess_upper_bits + math.log1p(-(2.0**-k0)) / (LN2 * min_targets)


def betting_with_share(
    losses_D: ArrayLike, loss_range: LossRange, *, n: int, code_bits: float, share: FailureShare
) -> float:
    """Return the bound by the one inequality that looks at the headroom alone, with a draw or without."""
    lower, upper = loss_range
    if share.delta_sample is None:
        return betting(losses_D, lower=lower, upper=upper, code_bits=code_bits, n=n, delta=share.delta)
    return betting_subsampled(
        losses_D,
        lower=lower,
        upper=upper,
        code_bits=code_bits,
        n=n,
        delta=share.delta,
        delta_sample=share.delta_sample,
    )
