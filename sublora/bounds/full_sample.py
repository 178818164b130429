"""Bounds on the mean loss of a fresh document when all n training documents have been scored.

Conventions are those of `sublora.bounds.inequalities`. In the formulas x = (loss - lower) / (upper - lower),
x_bar is the mean of x over the documents, mu its expectation, and B = C ln 2 + ln(1/delta).
"""

import math

import numpy as np

from sublora.bounds.checks import check_count, checked_losses, complexity_nats, rounded_up

BETS_J = np.geomspace(1e-4, 1.0, 32)
"""The bets t of `betting`, shape (bets,), fixed before any data are seen."""

LARGEST_LOG_RATIO = 50.0
"""Headroom below e^-50 times its mean counts as 0: the bound is then `upper`, to the last bit of a double."""


def hoeffding(losses, *, lower: float, upper: float, code_bits: float, n: int, delta: float) -> float:
    """Return Hoeffding's bound: mu <= x_bar + sqrt(B / 2n). Bits per token.

    Conditions: n independent documents; the message's code was fixed before they were seen.
    Union: over all messages, weighted 2^-C (C ln 2 nats).
    Source: Hoeffding 1963, Theorem 2; with the union over messages as in Lotfi et al. 2024.
    """
    values, nats = _inputs(losses, lower, upper, code_bits, n, delta)
    return rounded_up(values.mean() + (upper - lower) * math.sqrt(nats / (2 * n)), lower=lower, upper=upper)


def kl_inverse(losses, *, lower: float, upper: float, code_bits: float, n: int, delta: float) -> float:
    """Return Chernoff's bound in its exact form: mu <= sup{p : kl(x_bar || p) <= B / n}. Bits per token.

    kl is the divergence between coins. Conditions as for `hoeffding`, which it never exceeds (Pinsker).
    Union: over all messages, C ln 2 nats; none over p, since the event is the single deviation at p = mu.
    Source: Hoeffding 1963, Theorem 1, inequality (2.1).
    """
    values, nats = _inputs(losses, lower, upper, code_bits, n, delta)
    width = upper - lower
    mean = kl_upper_inverse((values.mean() - lower) / width, nats / n)
    return rounded_up(lower + width * mean, lower=lower, upper=upper)


def kl_upper_inverse(mean: float, nats: float) -> float:
    """Return sup{p in [mean, 1] : kl(mean || p) <= nats}, as the smallest double found at or above it."""
    mean = min(max(mean, 0.0), 1.0)
    inside, outside = mean, 1.0
    while inside < (middle := 0.5 * (inside + outside)) < outside:
        if _relative_entropy(mean, middle) + _relative_entropy(1 - mean, 1 - middle) > nats:
            outside = middle
        else:
            inside = middle
    return outside


def _relative_entropy(q: float, p: float) -> float:
    """Return q ln(q / p) for p > 0, without cancellation if they are close.

    It replaces scipy.special.rel_entr, because importing SciPy would take longer than everything else in a bound.
    """
    if q == 0.0:
        return 0.0
    return -q * math.log1p((p - q) / q) if q < 2.0 * p < 4.0 * q else q * (math.log(q) - math.log(p))


def empirical_bernstein(losses, *, lower: float, upper: float, code_bits: float, n: int, delta: float) -> float:
    """Return the empirical Bernstein bound, in bits per token.

    mu <= x_bar + sqrt(2 s^2 (B + ln 2) / n) + 7 (B + ln 2) / (3 (n - 1)).

    s^2 is the unbiased sample variance of x. Conditions as for `hoeffding`, and n >= 2.
    Union: over all messages, C ln 2 nats; over mean and variance, the ln 2.
    Source: Maurer & Pontil 2009, Theorem 4.
    """
    values, nats = _inputs(losses, lower, upper, code_bits, n, delta)
    if n < 2:
        raise ValueError("empirical_bernstein needs a variance, so at least two documents")
    nats += math.log(2.0)
    deviation = math.sqrt(2 * values.var(ddof=1) * nats / n) + (upper - lower) * 7 * nats / (3 * (n - 1))
    return rounded_up(values.mean() + deviation, lower=lower, upper=upper)


def betting(losses, *, lower: float, upper: float, code_bits: float, n: int, delta: float) -> float:
    """Return the betting bound, in bits per token.

    mu < min_j U_j, where mean_i ln(1 + t_j (U_j - x_i) / (1 - U_j)) = (B + ln J) / n.

    The J = 32 bets t_j in (0, 1] are fixed before any data are seen. At u = mu every factor
    1 + t (u - x_i) / (1 - u) is at least 1 - t >= 0 and has expectation 1, so the product over n independent documents
    exceeds e^B J with probability at most e^-B / J (Markov). The product increases with u, hence every u at which it is
    larger lies above mu. Conditions as for `hoeffding`.
    Union: over all messages, C ln 2 nats; over the bets, ln J nats.
    Source: dual form of Kinf, Honda & Takemura 2010; as a confidence bound: Waudby-Smith & Ramdas 2024,
    Jang et al. 2023.
    """
    values, nats = _inputs(losses, lower, upper, code_bits, n, delta)
    headroom, _ = betting_headroom(upper - values, (nats + math.log(len(BETS_J))) / n)
    return rounded_up(upper - headroom, lower=lower, upper=upper)


def betting_closed_form(losses, *, lower: float, upper: float, code_bits: float, n: int, delta: float) -> float:
    """Return the bound of `betting` with the single bet t = 1, in bits per token.

    It is upper - exp(mean_i ln(upper - loss_i) - B / n).

    This is the best of all bets once B / n exceeds about half the squared coefficient of variation of upper - loss, and
    equal to `upper` as soon as one loss is. Conditions as for `hoeffding`. Union: over all messages, C ln 2 nats.
    """
    values, nats = _inputs(losses, lower, upper, code_bits, n, delta)
    with np.errstate(divide="ignore"):
        headroom = np.exp(np.log(upper - values).mean() - nats / n)
    return rounded_up(upper - headroom, lower=lower, upper=upper)


def betting_headroom(headroom_D: np.ndarray, allowance: float, bets_J: np.ndarray = BETS_J) -> tuple[float, float]:
    """Return the largest v with max_j mean_i ln(1 + t_j (y_i / v - 1)) >= allowance, and the bet that reaches it.

    With y = upper - loss and v = upper - u this is the equation of `betting`, since (u - x) / (1 - u) = y / v - 1; the
    width of the range cancels. In w = ln v each mean is convex and decreasing, and so is their maximum, so Newton's
    steps from the left stay on the left of the root, which is the side that the inequality excludes. A bet below the
    allowance at one w is below it at all larger ones and is dropped. Rounding may finally overshoot the root; the
    result then steps back until it is excluded.

    headroom_D: y >= 0 in bits, shape (documents,). The result is (v in bits, t), with v = 0 if nothing is excluded.
    """
    # Start far to the left, and return 0 if even there nothing is excluded.
    mean_headroom = headroom_D.mean()
    if mean_headroom == 0.0:
        return 0.0, float(bets_J[0])
    log_v, step = math.log(mean_headroom) - LARGEST_LOG_RATIO, math.inf
    growth_J = _growth(headroom_D, log_v, bets_J)
    if growth_J.max() < allowance:
        return 0.0, float(bets_J[growth_J.argmax()])
    # Newton's method in w, with the bets that can still reach the allowance.
    while step > 1e-14 * (1.0 + abs(log_v)):
        best = float(bets_J[growth_J.argmax()])
        bets_J = bets_J[growth_J >= min(allowance, growth_J.max())]
        ratio_D = headroom_D * math.exp(-log_v)
        slope = np.mean(best * ratio_D / (1.0 + best * (ratio_D - 1.0)))
        step = (growth_J.max() - allowance) / slope
        log_v += step
        growth_J = _growth(headroom_D, log_v, bets_J)
    # Step back until the result itself is excluded.
    retreat = 1e-15
    while _growth(headroom_D, log_v, bets_J).max() < allowance:
        log_v, retreat = log_v - retreat, 2.0 * retreat
    return math.exp(log_v), best


def _growth(headroom_D: np.ndarray, log_v: float, bets_J: np.ndarray) -> np.ndarray:
    """Return mean_i ln(1 + t_j (y_i / v - 1)), shape (bets,); one bet at a time, to save memory."""
    excess_D = headroom_D * math.exp(-log_v) - 1.0
    with np.errstate(divide="ignore"):
        return np.array([np.log1p(bet * excess_D).mean() for bet in bets_J])


def _inputs(losses, lower: float, upper: float, code_bits: float, n: int, delta: float) -> tuple[np.ndarray, float]:
    """Return the checked losses of all n documents, and B in nats."""
    values = checked_losses(losses, lower=lower, upper=upper)
    check_count("n", n)
    if values.size != n:
        raise ValueError(f"{values.size} losses for n = {n} documents: score all of them or use a subsampled form")
    return values, complexity_nats(code_bits, delta)
