"""Bounds on the mean loss of a fresh document from m of the n training documents, drawn with replacement.

Conventions are those of `sublora.bounds.inequalities`. delta = delta_1 + delta_2: delta_1 is for the n documents being
a sample of the population (and for the union over messages), delta_2 for scoring only m of them. The draw comes after
the message is frozen, so delta_2 needs no union over messages.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sublora.bounds.checks import (
    check_count,
    check_probability,
    check_split,
    checked_losses,
    complexity_nats,
    rounded_up,
)
from sublora.bounds.full_sample import kl_upper_inverse
from sublora.system.streams import generator

SUBSAMPLED_BETS_J = np.concatenate([np.geomspace(1e-2, 0.5, 12), 1.0 - np.geomspace(0.5, 1e-3, 20)[1:]])
"""The bets t of `betting_subsampled`, shape (bets,), fixed before any data are seen; below 1, so that Y is bounded."""

STAKES_K = np.array([0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 0.94, 0.98])
"""The stakes s of its test, as shares of the largest stake that cannot lose more than everything."""

REVISIONS = (16, 64, 256)
"""Numbers of scored documents after which bet and stake are chosen again from the documents before."""

PILOT_DOCUMENTS = 256
"""The largest number of earlier documents that inform a choice."""

NOMINAL_HEADROOM_D = np.exp(0.08 * np.linspace(-1.6, 1.6, 9))
"""The upper - loss, up to scale, that the first choice assumes: a spread of 8 %."""

CAUTION = 0.03
"""A choice assumes losses at `upper` among the documents not yet seen. Their share is CAUTION times the mass
ln(1/delta_2) / m that a draw of m documents can miss."""

LARGEST_LOG_RATIO = 50.0
"""Headroom below e^-50 times its maximum counts as 0."""


def hoeffding_subsampled(
    losses,
    *,
    lower: float,
    upper: float,
    code_bits: float,
    n: int,
    delta: float,
    delta_sample: float | None = None,
) -> float:
    """Return the paper's bound, with r = m / (m + n); bits per token:

    mu <= x_bar_m + sqrt((C ln 2 - ln(r delta)) / 2n) + sqrt(-ln((1 - r) delta) / 2m).

    losses: of the m documents, drawn with replacement from the n after the message was frozen.
    delta_sample: ignored, since r divides delta; taken so that all inequalities for a draw have the same arguments.
    Conditions: n independent documents; the message's code was fixed before they were seen.
    Union: over all messages, C ln 2 nats; r delta for the n documents, (1 - r) delta for the draw.
    Source: Lotfi et al. 2024, "Non-Vacuous Generalization Bounds for Large Language Models", the bound
    with subsampling; each half is Hoeffding 1963, Theorem 2.
    """
    values = checked_losses(losses, lower=lower, upper=upper)
    check_count("n", n)
    check_probability("delta", delta)
    m = values.size
    share = m / (m + n)
    deviation = math.sqrt(complexity_nats(code_bits, share * delta) / (2 * n))
    deviation += math.sqrt(-math.log((1 - share) * delta) / (2 * m))
    return rounded_up(values.mean() + (upper - lower) * deviation, lower=lower, upper=upper)


def kl_inverse_subsampled(
    losses, *, lower: float, upper: float, code_bits: float, n: int, delta: float, delta_sample: float
) -> float:
    """Return the kl inverse applied twice, in bits per token.

    mu <= sup{p : kl(q || p) <= B_1 / n}, q = sup{q : kl(x_bar_m || q) <= ln(1/delta_2) / m}. With probability
    1 - delta_2 the mean of x over the n documents is at most q, and the outer bound increases with it.
    B_1 = C ln 2 + ln(1/delta_1). Losses and conditions as for `hoeffding_subsampled`.
    Union: over all messages, C ln 2 nats; delta_1 + delta_2 = delta.
    """
    values, nats = _inputs(losses, lower, upper, code_bits, n, delta, delta_sample)
    width = upper - lower
    mean_of_n = kl_upper_inverse((values.mean() - lower) / width, -math.log(delta_sample) / values.size)
    return rounded_up(lower + width * kl_upper_inverse(mean_of_n, nats / n), lower=lower, upper=upper)


def betting_subsampled(
    losses, *, lower: float, upper: float, code_bits: float, n: int, delta: float, delta_sample: float
) -> float:
    """Return the bound from betting on the population, and again on the draw of m documents. Bits per token.

    Statement. For u in (0, 1) and a bet t in (0, 1) let Y_t(u, x) = ln(1 + t (u - x) / (1 - u)), which is at
    least a_t = ln(1 - t), and c = (B_1 + ln J) / n. Document i of the draw (i = 1 ... m) multiplies a wealth by
        f_i(u) = 1 + s_i (Y_{t_i}(u, x_i) - c) / (c - a_{t_i}),   s_i in (0, 1),
    with bet t_i (one of J) and stake s_i chosen from documents 1 ... i-1 alone, the same for all u. The bound is
    the smallest u at which some product f_1 ... f_k, k <= m, reaches 1 / delta_2.

    Proof. (1) As for `betting`, with probability 1 - delta_1, for every message and each of the J bets, the mean
    of Y_t(mu, x) over the n documents is below c. (2) Given the n documents and the message, document i is a
    uniform draw from the n, so at u = mu the expectation of f_i given the past is at most 1; f_i >= 1 - s_i > 0.
    The wealth at mu is therefore a non-negative supermartingale that starts at 1, and by Ville's inequality
    it ever reaches 1 / delta_2 with probability at most delta_2. (3) Every f_i increases with u, because
    Y does and t_i, s_i, c do not depend on u. So all u from the bound upwards are excluded, and mu is below the bound
    unless one of the two events failed.

    The documents are taken in a fixed pseudo-random order, which stands for a random one where the caller stored them
    sorted. An order that was chosen with this permutation in mind is no draw, and the bound does not hold for it.
    Losses and conditions as for `hoeffding_subsampled`.
    Union: over all messages, C ln 2 nats; over the J = 31 bets, ln J nats, charged among the n documents, where they
    cost less; none over stakes, none over u. delta_1 + delta_2 = delta.
    Source: betting with predictable bets and Ville's inequality, Waudby-Smith & Ramdas 2024, section 4; the
    composition of the two steps is proved above.
    """
    # Choose bets and stakes, each from earlier documents.
    values, nats = _inputs(losses, lower, upper, code_bits, n, delta, delta_sample)
    m = values.size
    headroom_D = upper - values[generator("order of the draw", m).permutation(m)]
    allowance, threshold = (nats + math.log(len(SUBSAMPLED_BETS_J))) / n, -math.log(delta_sample)
    bet_D, stake_D = _predictable_bets(headroom_D, allowance, threshold)

    # The bound is where the wealth first reaches 1 / delta_2: search over the headroom.
    def excluded(v: float) -> bool:
        log_factors_D = np.log1p(stake_D * relative_gain(headroom_D, v, bet_D, allowance))
        return bool(np.cumsum(log_factors_D).max() >= threshold)

    headroom = largest_excluded_headroom(excluded, headroom_D.max())
    return rounded_up(upper - headroom, lower=lower, upper=upper)


class Play(NamedTuple):
    """A bet t, a stake s, and the headroom v = upper - u, in bits, that they exclude."""

    bet: float
    stake: float
    headroom: float


def growth_optimal_play(headroom_D: np.ndarray, allowance: float, nats_per_document: float) -> Play:
    """Return the pair from the grids that excludes most if all drawn documents look like these.

    It maximizes v subject to mean ln f(v) = nats_per_document: take the pair of largest mean ln f at v, solve for v,
    and repeat as long as v grows. headroom_D: y = upper - loss in bits, shape (documents,).
    """
    # Add one document at `upper` with the weight of what a draw can miss.
    largest, trial = headroom_D.max(), headroom_D.mean() * math.exp(-allowance)
    caution = min(CAUTION * nats_per_document, 0.5)
    weights_D = np.append(np.full(headroom_D.size, (1.0 - caution) / headroom_D.size), caution)
    headroom_D = np.append(headroom_D, 0.0)
    play = Play(float(SUBSAMPLED_BETS_J[0]), float(STAKES_K[0]), 0.0)
    while trial > 0.0:
        # The best pair of bet and stake at the present v.
        gain_JD = relative_gain(headroom_D, trial, SUBSAMPLED_BETS_J[:, None], allowance)
        growth_KJ = np.stack([np.log1p(stake * gain_JD) @ weights_D for stake in STAKES_K])
        k, j = np.unravel_index(growth_KJ.argmax(), growth_KJ.shape)
        bet, stake = float(SUBSAMPLED_BETS_J[j]), float(STAKES_K[k])

        def excess(log_v: float, bet: float = bet, stake: float = stake) -> tuple[float, float]:
            """Return mean ln f - nats at v, and its derivative in ln v."""
            ratio_D = bet * headroom_D / math.exp(log_v)
            factor_D = 1.0 + stake * relative_gain(headroom_D, math.exp(log_v), bet, allowance)
            slope_D = -ratio_D / (1.0 - bet + ratio_D) * stake / (allowance - math.log1p(-bet)) / factor_D
            return float(np.log(factor_D) @ weights_D) - nats_per_document, float(slope_D @ weights_D)

        # Solve for v with this pair; at the right end Y <= 0 < c for all documents.
        right = math.log(largest)
        if excess(right - LARGEST_LOG_RATIO)[0] <= 0.0:
            break
        solved = math.exp(_falling_root(excess, right - LARGEST_LOG_RATIO, right, start=math.log(trial)))
        if solved <= play.headroom:
            break
        play, trial = Play(bet, stake, solved), solved
    return play


def _falling_root(
    value_and_slope: Callable[[float], tuple[float, float]], left: float, right: float, *, start: float
) -> float:
    """Return the zero of a falling function, positive at `left` and negative at `right`, to double precision.

    This is Newton's method in a bracket: a step that leaves it, or halves it too slowly, is replaced by bisection. It
    replaces scipy.optimize.brentq, because importing SciPy would take longer than everything else in a bound.
    """
    x, before = min(max(start, left), right), right - left
    while True:
        value, slope = value_and_slope(x)
        left, right = (x, right) if value > 0.0 else (left, x)
        step = -value / slope if slope < 0.0 else math.inf
        if not (left <= x + step <= right and abs(step) < 0.5 * before):
            step = 0.5 * (left + right) - x
        before = abs(step)
        if before <= 1e-15 * (1.0 + abs(x)):
            return x + step
        x += step


def largest_excluded_headroom(excluded: Callable[[float], bool], largest: float) -> float:
    """Return the largest v <= `largest` that is excluded, found by bisection and rounded down; 0 if there is no such v.

    If v is excluded, every smaller v must be; the returned value has itself been tested.
    """
    if largest == 0.0 or not excluded(largest * math.exp(-LARGEST_LOG_RATIO)):
        return 0.0
    inside, outside = math.log(largest) - LARGEST_LOG_RATIO, math.log(largest)
    while outside - inside > 1e-13 * (1.0 + abs(outside)):
        middle = 0.5 * (inside + outside)
        if excluded(math.exp(middle)):
            inside = middle
        else:
            outside = middle
    return math.exp(inside)


def _predictable_bets(headroom_D: np.ndarray, allowance: float, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Return bet and stake for every document, each from earlier documents alone; shapes (documents,)."""
    m = headroom_D.size
    bet_D, stake_D = np.empty(m), np.empty(m)
    for start, stop in itertools.pairwise((0, *(count for count in REVISIONS if count < m), m)):
        pilot = headroom_D[:start][:PILOT_DOCUMENTS] if start else NOMINAL_HEADROOM_D
        play = growth_optimal_play(pilot, allowance, threshold / m)
        bet_D[start:stop], stake_D[start:stop] = play.bet, play.stake
    return bet_D, stake_D


def relative_gain(headroom_D, v, bet, allowance: float) -> np.ndarray:
    """Return (Y - c) / (c - a) at v = upper - u, at least -1: the gain of a stake of 1, as a share of the wealth."""
    return (np.log1p(bet * (headroom_D / v - 1.0)) - allowance) / (allowance - np.log1p(-bet))


def _inputs(
    losses, lower: float, upper: float, code_bits: float, n: int, delta: float, delta_sample: float
) -> tuple[np.ndarray, float]:
    """Return the checked losses of the m documents, and B_1 in nats."""
    values = checked_losses(losses, lower=lower, upper=upper)
    check_count("n", n)
    check_split(delta, delta_sample)
    return values, complexity_nats(code_bits, delta - delta_sample)
