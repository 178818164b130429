"""Small-sample inference: paired intervals, exact sign-flip and rank tests, Holm's correction, planning.

Suffixes: R runs or pairs, S sign assignments, G groups with a gate, L layers.
"""

import functools
import math
from typing import Literal

import numpy as np
from scipy import stats

from sublora.streams import generator

Alternative = Literal["two-sided", "less", "greater"]

CONFIDENCE = 0.95
MOST_EXACT_PAIRS = 16
"""Up to so many pairs all 2^n sign assignments are enumerated, beyond that drawn."""
MOST_EXACT_LAYERS = 12
"""Up to so many layers the rank distribution is computed over all L! orders, beyond that drawn."""
MONTE_CARLO_DRAWS = 99_999
FEWEST_PAIRS_PLANNED = 3
MOST_PAIRS_PLANNED = 1_000_000


def t_interval(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean by Student's t; (nan, nan) for a single value, which shows no spread."""
    n = len(values)
    if n < 2:
        return math.nan, math.nan
    half = stats.t.ppf((1.0 + CONFIDENCE) / 2.0, n - 1) * np.std(values, ddof=1) / math.sqrt(n)
    return float(np.mean(values) - half), float(np.mean(values) + half)


def cohens_dz(differences: np.ndarray) -> float:
    """Mean over standard deviation of paired differences; nan where they show no spread (Cohen 1988)."""
    spread = np.std(differences, ddof=1) if len(differences) > 1 else 0.0
    return float(np.mean(differences) / spread) if spread > 0.0 else math.nan


def sign_flip_p(differences_R: np.ndarray, alternative: Alternative = "two-sided") -> float:
    """p-value of "the differences are symmetric about 0" by flipping signs (Fisher 1935), the sum as statistic.

    Exact for up to 16 pairs; beyond, from 99,999 drawn assignments (and the observed one).
    """
    differences_R = np.asarray(differences_R, dtype=np.float64)
    sums_S, observed = _sign_matrix(len(differences_R)) @ differences_R, differences_R.sum()
    if alternative == "two-sided":
        sums_S, observed = np.abs(sums_S), abs(observed)
    elif alternative == "less":
        sums_S, observed = -sums_S, -observed
    return _share_at_least(sums_S, observed, scale=np.abs(differences_R).sum())


def joint_sign_flip_p(deviations_RG: np.ndarray) -> float:
    """p-value of "all rows are symmetric about 0", flipping whole rows; statistic: squared column means, summed.

    Columns of one row may depend on each other in any way.
    """
    deviations_RG = np.asarray(deviations_RG, dtype=np.float64)
    statistic_S = ((_sign_matrix(len(deviations_RG)) @ deviations_RG) ** 2).sum(axis=1)
    observed = (deviations_RG.sum(axis=0) ** 2).sum()
    return _share_at_least(statistic_S, observed, scale=(np.abs(deviations_RG).sum(axis=0) ** 2).sum())


def smallest_sign_flip_p(pairs: int) -> float:
    """What a two-sided sign-flip test can reach at best: all differences of one sign."""
    return 2.0 ** (1 - pairs) if pairs else 1.0


@functools.cache
def _sign_matrix(n: int) -> np.ndarray:
    """S x R matrix of +-1: every assignment, or the observed one (all +1) and random ones."""
    if n <= MOST_EXACT_PAIRS:
        return 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    drawn = generator("sign flips", n).integers(0, 2, size=(MONTE_CARLO_DRAWS, n))
    return np.vstack([np.ones(n), 1.0 - 2.0 * drawn])


def _share_at_least(values: np.ndarray, observed: float, scale: float) -> float:
    """Share of the values not below the observed one; sums in another order may differ in the last bits."""
    return float(np.mean(values >= observed - 1e-12 * scale))


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's step-down correction (1979): the family-wise error stays below alpha under any dependence."""
    p_values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p_values, kind="stable")
    steps = p_values[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty_like(p_values)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return corrected


def depth_correlation(values_RL: np.ndarray) -> np.ndarray:
    """Rank correlation of each row with the column index, in [-1, 1]: Spearman's rho where there are no ties.

    A linear function of Page's L: ties get mean ranks and no further correction, so a constant row has 0.
    """
    ranks_RL = stats.rankdata(values_RL, axis=1)
    layers = ranks_RL.shape[1]
    centred_L = np.arange(layers) - (layers - 1) / 2.0
    return 12.0 * (ranks_RL @ centred_L) / (layers * (layers**2 - 1))


def page_p(values_RL: np.ndarray) -> float:
    """Two-sided p-value of Page's trend test (1963): are columns ordered alike in all rows, up or down?

    Null hypothesis: every order of a row is equally likely, independently of the other rows. Ties are dealt with
    exactly (the null distribution is that of the row's own mean ranks). Exact up to 12 columns; beyond, from
    99,999 drawn orders (and the observed one). ValueError with fewer than 3 columns.
    """
    values_RL = np.asarray(values_RL, dtype=np.float64)
    layers = values_RL.shape[1]
    if layers < 3:
        raise ValueError(f"a trend needs at least 3 columns, found {layers}")
    doubled_RL = np.rint(2.0 * stats.rankdata(values_RL, axis=1)).astype(np.int64)
    weights_L = np.arange(1, layers + 1)
    expected = len(values_RL) * layers * (layers + 1) ** 2 // 2
    distance = abs(int((doubled_RL @ weights_L).sum()) - expected)
    if layers <= MOST_EXACT_LAYERS:
        pmf = functools.reduce(np.convolve, [_rank_sum_pmf(tuple(sorted(row))) for row in doubled_RL.tolist()])
        return float(min(1.0, pmf[np.abs(np.arange(len(pmf)) - expected) >= distance].sum()))
    rng = generator("orders", *values_RL.shape)
    sums = sum(rng.permuted(np.tile(row, (MONTE_CARLO_DRAWS, 1)), axis=1) @ weights_L for row in doubled_RL)
    return float((1 + np.sum(np.abs(sums - expected) >= distance)) / (1 + MONTE_CARLO_DRAWS))


@functools.cache
def _rank_sum_pmf(doubled_ranks: tuple[int, ...]) -> np.ndarray:
    """Distribution of sum over positions l = 1 ... L of l times the rank put there, all L! orders equally likely.

    Ranks are doubled, so that mean ranks of ties are integers. Dynamic programme over the sets of ranks used by
    the positions so far: 2^L sets instead of L! orders.
    """
    layers = len(doubled_ranks)
    largest = sum(position * rank for position, rank in enumerate(doubled_ranks, start=1))
    by_set = {0: np.ones(1)}
    for position in range(1, layers + 1):
        following: dict[int, np.ndarray] = {}
        for used, pmf in by_set.items():
            share = pmf / (layers - position + 1)
            for item, rank in enumerate(doubled_ranks):
                if used >> item & 1:
                    continue
                target = following.setdefault(used | 1 << item, np.zeros(largest + 1))
                start = position * rank
                target[start : start + len(share)] += share[: largest + 1 - start]
        by_set = following
    return by_set[(1 << layers) - 1]


def share_interval(successes: int, trials: int) -> tuple[float, float]:
    """Exact 95 % interval of a share (Clopper and Pearson 1934)."""
    interval = stats.binomtest(successes, trials).proportion_ci(CONFIDENCE, method="exact")
    return float(interval.low), float(interval.high)


def pairs_to_decide(differences: np.ndarray, *, alpha: float, power: float = 0.8) -> int | None:
    """Pairs with which a two-sided t test at level alpha finds a difference like the observed one, 80 % of the time.

    Takes the observed mean and standard deviation for the true ones; at least 3. None if no number up to a million
    does, or if a single pair leaves no spread to plan with.
    """
    n = len(differences)
    spread = float(np.std(differences, ddof=1)) if n > 1 else math.nan
    mean = abs(float(np.mean(differences)))
    if math.isnan(spread) or mean == 0.0:
        return None
    if spread <= 1e-12 * mean:
        return FEWEST_PAIRS_PLANNED
    low, high = FEWEST_PAIRS_PLANNED - 1, FEWEST_PAIRS_PLANNED
    while _t_power(high, mean / spread, alpha) < power:
        low, high = high, 2 * high
        if low > MOST_PAIRS_PLANNED:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _t_power(middle, mean / spread, alpha) >= power else (middle, high)
    return high


def _t_power(n: int, effect: float, alpha: float) -> float:
    """Power of the two-sided one-sample t test for n >= 3; 1 at shifts where the noncentral t is not computable."""
    critical = stats.t.ppf(1.0 - alpha / 2.0, n - 1)
    shift = effect * math.sqrt(n)
    if shift > 35.0:
        return 1.0
    return float(stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift))
