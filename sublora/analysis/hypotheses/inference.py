"""Small-sample inference: paired intervals, sign-flip and rank tests, Holm's correction, planning.

Suffixes: R runs or seeds, S samples or sign assignments, G groups with a gate, L layers.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from scipy import stats

from sublora.bounds.paired import holm as holm
from sublora.system.streams import generator

Alternative = Literal["two-sided", "less", "greater"]

CONFIDENCE = 0.95
MOST_EXACT_VALUES = 16
"""Up to this number of values all 2^n sign assignments are enumerated, beyond it they are drawn."""
MOST_EXACT_LAYERS = 8
"""Up to this number of layers Page's L is computed over all orders, beyond it orders are drawn."""
MONTE_CARLO_DRAWS = 99_999
BATCH_DRAWS = 4096
"""Sign assignments that are in memory as floats at once."""
FEWEST_PLANNED = 3
CLEAR_EFFECT = 2.5
"""In standard deviations: so few values as can reach a level at all show it."""
FAINT_EFFECT = 0.003
"""In standard deviations: it would take about a million values."""


def t_interval(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean by Student's t; (nan, nan) for a single value, which shows no spread."""
    if len(values) < 2:
        return math.nan, math.nan
    mean, error = float(np.mean(values)), float(stats.sem(values))
    if error == 0.0:
        return mean, mean
    low, high = stats.t.interval(CONFIDENCE, len(values) - 1, loc=mean, scale=error)
    return float(low), float(high)


def paired_t_p(differences: np.ndarray) -> float:
    """Two-sided p-value of "the mean difference is 0" by Student's paired t test; 1 for a single difference."""
    if len(differences) < 2:
        return 1.0
    mean, error = float(np.mean(differences)), float(stats.sem(differences))
    if error == 0.0:
        return 1.0 if mean == 0.0 else 0.0
    return float(2.0 * stats.t.sf(abs(mean) / error, len(differences) - 1))


def cohens_dz(differences: np.ndarray) -> float:
    """Mean over standard deviation of paired differences; nan where they show no spread (Cohen 1988)."""
    spread = np.std(differences, ddof=1) if len(differences) > 1 else 0.0
    return float(np.mean(differences) / spread) if spread > 0.0 else math.nan


def sign_flip_p(differences_R: np.ndarray, alternative: Alternative = "two-sided") -> float:
    """p-value of "the differences are symmetric about 0" by flipping signs (Fisher 1935), the sum as statistic.

    Exact for up to 16 differences; beyond, from 99,999 drawn assignments and the observed one.
    """
    differences_R = np.asarray(differences_R, dtype=np.float64)
    return _flip(len(differences_R), lambda signs_SR: signs_SR @ differences_R, alternative)


def joint_sign_flip_p(deviations_RG: np.ndarray) -> float:
    """p-value of "all rows are symmetric about 0", flipping whole rows; statistic: squared column means, summed.

    Columns of one row may depend on each other in any way.
    """
    deviations_RG = np.asarray(deviations_RG, dtype=np.float64)
    return _flip(len(deviations_RG), lambda signs_SR: ((signs_SR @ deviations_RG) ** 2).sum(axis=-1), "greater")


def _flip(n: int, statistic: Callable[[np.ndarray], Any], alternative: Alternative) -> float:
    """Permutation test over the signs of n rows, from all rows as observed (+1); `statistic` takes signs S x n."""
    if n < 2:  # which permutation_test refuses
        observed, flipped = statistic(np.array([[1.0], [-1.0]]))
        is_extreme = flipped <= observed if alternative == "less" else flipped >= observed
        return 1.0 if is_extreme or alternative == "two-sided" else 0.5
    # p as scipy's permutation_test computes it, which would draw the same sign vectors anew for every test.
    observed = statistic(np.ones(n))
    signs_SR = _sign_vectors(n)
    batches = (signs_SR[start : start + BATCH_DRAWS] for start in range(0, len(signs_SR), BATCH_DRAWS))
    null_S = np.concatenate([statistic(batch_SR.astype(np.float64)) for batch_SR in batches])
    tolerance = abs(100.0 * np.finfo(np.float64).eps * observed)
    counted = 0 if n <= MOST_EXACT_VALUES else 1  # among drawn assignments the observed one counts as well
    total = len(null_S) + counted
    p_less = (np.count_nonzero(null_S <= observed + tolerance) + counted) / total
    p_greater = (np.count_nonzero(null_S >= observed - tolerance) + counted) / total
    p = {"less": p_less, "greater": p_greater, "two-sided": 2.0 * min(p_less, p_greater)}[alternative]
    return float(min(p, 1.0))


@functools.lru_cache(maxsize=4)
def _sign_vectors(n: int) -> np.ndarray:
    """Return the sign assignments (S x n, -1 or 1) that scipy's permutation_test visits for n values.

    All 2^n up to MOST_EXACT_VALUES, beyond that MONTE_CARLO_DRAWS drawn ones, the same at every call.
    """
    visited: list[np.ndarray] = []

    def record(signs_SR: np.ndarray, axis: int) -> Any:
        if signs_SR.ndim == 2:  # the first call, with a single row, is for the observed statistic
            visited.append(signs_SR.astype(np.int8))
        return signs_SR.sum(axis=axis)

    stats.permutation_test(
        (np.ones(n),),
        record,
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf if n <= MOST_EXACT_VALUES else MONTE_CARLO_DRAWS,
        batch=BATCH_DRAWS,
        rng=generator("sign flips", n),
    )
    return np.concatenate(visited)


def smallest_sign_flip_p(n: int, alternative: Alternative = "two-sided") -> float:
    """What a sign-flip test of n values can reach at best: all of one sign."""
    return min(1.0, (2.0 if alternative == "two-sided" else 1.0) * 2.0**-n)


def lower_flip_limit(values_R: np.ndarray, alpha: float) -> float:
    """Lower confidence limit, level 1 - alpha, of the centre of symmetry: sign flips reject every smaller centre.

    The means of all subsets of the values are what the centre is compared with (Hartigan, Using subsample values as
    typical values, JASA 1969): flipping the signs of a subset changes the order of the sums exactly where the centre
    passes its mean. -inf where so few values reject no centre at that level; by Student's t beyond 16 values.
    """
    values_R = np.asarray(values_R, dtype=np.float64)
    n = len(values_R)
    if n > MOST_EXACT_VALUES:
        return float(np.mean(values_R) + stats.t.ppf(alpha, n - 1) * stats.sem(values_R))
    rank = math.floor(alpha * 2.0**n + 1e-9)
    if rank == 0:
        return -math.inf
    subsets_SR = np.array(list(itertools.product((0.0, 1.0), repeat=n)))[1:]
    means_S = np.sort(subsets_SR @ values_R / subsets_SR.sum(axis=1))
    return float(means_S[rank - 1])


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

    Null hypothesis: every order of a row is equally likely, independently of the other rows. Exact up to 8 layers
    where no row has ties; otherwise from 99,999 drawn orders, ties with their mean ranks. ValueError for fewer than
    three columns.
    """
    values_RL = np.asarray(values_RL, dtype=np.float64)
    rows, layers = values_RL.shape
    if layers < 3:
        raise ValueError(f"a trend needs at least 3 columns, found {layers}")
    ranks_RL = stats.rankdata(values_RL, axis=1)
    tied = any(len(np.unique(ranks_L)) < layers for ranks_L in ranks_RL)
    if rows > 1 and layers <= MOST_EXACT_LAYERS and not tied:
        rising, falling = (stats.page_trend_test(ranks, method="exact").pvalue for ranks in (ranks_RL, -ranks_RL))
        return float(min(1.0, 2.0 * min(rising, falling)))
    # A single row of up to 8 layers has few enough orders for permutation_test to enumerate them all.
    result = stats.permutation_test(
        tuple(ranks_RL),
        lambda *rows_L, axis: np.sum(rows_L, axis=0) @ np.arange(1, layers + 1),
        permutation_type="pairings",
        vectorized=True,
        n_resamples=MONTE_CARLO_DRAWS,
        rng=generator("orders", rows, layers),
    )
    return float(result.pvalue)


def share_interval(successes: int, trials: int) -> tuple[float, float]:
    """Exact 95 % interval of a share (Clopper and Pearson 1934)."""
    interval = stats.binomtest(successes, trials).proportion_ci(CONFIDENCE, method="exact")
    return float(interval.low), float(interval.high)


def values_to_decide(
    differences: np.ndarray, *, alpha: float, alternative: Alternative = "two-sided", power: float = 0.8
) -> int | None:
    """Values with which a sign-flip test at level alpha finds a mean like the observed one, 80 % of the time.

    Takes the observed mean and standard deviation for the true ones, and the power of the one-sided t test at the level
    that n sign flips attain for that of the flips (tests/test_analysis_power.py compares them by simulation). None if
    about a million values would not do, or if a single value leaves no spread to plan with. A one-sided alternative is
    that in the direction of the observed mean.
    """
    from statsmodels.stats.power import TTestPower  # a second

    mean = float(np.mean(differences))
    if len(differences) < 2 or mean == 0.0:
        return None
    spread = float(np.std(differences, ddof=1))
    effect = abs(mean) / spread if spread > 0.0 else math.inf
    if effect < FAINT_EFFECT:
        return None
    one_sided = alpha / 2.0 if alternative == "two-sided" else alpha
    needed = next(n for n in itertools.count(FEWEST_PLANNED) if 2.0**-n <= one_sided)
    if effect > CLEAR_EFFECT:
        return needed
    test = TTestPower()
    planned = test.solve_power(effect_size=effect, alpha=one_sided, power=power, alternative="larger")
    needed = max(needed, math.ceil(planned))
    while test.power(effect, needed, _attained(one_sided, needed), alternative="larger") < power:
        needed += 1
    return needed


def _attained(alpha: float, n: int) -> float:
    """The largest multiple of 2^-n that is at most alpha."""
    return math.floor(alpha * 2.0**n) / 2.0**n if n < MOST_EXACT_VALUES else alpha
