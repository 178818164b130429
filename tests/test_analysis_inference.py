"""The statistics against scipy, against enumeration by hand, and against their own guarantees."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from sublora.analysis.hypotheses import inference
from sublora.system.streams import generator


def draws(*parts: int | str, size: tuple[int, ...]) -> np.ndarray:
    return generator("test inference", *parts).normal(size=size)


def all_signs(n: int) -> np.ndarray:
    return np.array(list(itertools.product((1.0, -1.0), repeat=n)))


@pytest.mark.parametrize("n", [2, 3, 6, 9])
@pytest.mark.parametrize("alternative", ["two-sided", "less", "greater"])
def test_sign_flip_agrees_with_scipy(n, alternative):
    differences = draws("flip", n, size=(n,)) + 0.4
    expected = stats.permutation_test(
        (differences,), np.sum, permutation_type="samples", alternative=alternative, n_resamples=np.inf
    ).pvalue
    assert inference.sign_flip_p(differences, alternative) == pytest.approx(expected, abs=1e-12)


def test_sign_flip_by_hand():
    assert inference.sign_flip_p([1.0, 2.0, 3.0]) == 2 / 8
    assert inference.sign_flip_p([-1.0, 2.0, 3.0]) == 4 / 8  # |sum| >= 4: +-(1,2,3), +-(-1,2,3)
    assert inference.sign_flip_p([0.0, 0.0]) == 1.0
    assert inference.sign_flip_p([-2.0]) == 1.0
    assert inference.sign_flip_p([-2.0], "less") == 0.5


def test_sign_flip_counts_ties_in_spite_of_rounding():
    differences = np.array([0.1, 0.2, 0.3, 0.4])  # 0.1 + 0.4 and 0.2 + 0.3 differ in the last bit
    sums = np.abs(all_signs(4) @ np.array([1, 2, -3, 4]))
    assert inference.sign_flip_p(differences * [1, 1, -1, 1]) == np.mean(sums >= 4)


def test_drawn_sign_flips_estimate_the_exact_p():
    differences = draws("many", size=(18,)) + 0.5
    exact = np.mean(np.abs(all_signs(18) @ differences) >= abs(differences.sum()) - 1e-9)
    error = 4.0 * math.sqrt(exact * (1.0 - exact) / inference.MONTE_CARLO_DRAWS)
    assert 0.0 < exact < 0.5
    assert abs(inference.sign_flip_p(differences) - exact) < error
    assert inference.sign_flip_p(differences) == inference.sign_flip_p(differences)


@pytest.mark.parametrize("alternative", ["two-sided", "less", "greater"])
def test_smallest_sign_flip_p_is_attained(alternative):
    for n in (1, 3, 6):
        values = np.arange(1.0, n + 1) * (-1.0 if alternative == "less" else 1.0)
        assert inference.sign_flip_p(values, alternative) == inference.smallest_sign_flip_p(n, alternative)


@pytest.mark.parametrize("n", [3, 5, 6, 9])
@pytest.mark.parametrize("alpha", [0.025, 0.05, 0.2])
def test_the_limit_is_where_sign_flips_stop_rejecting(n, alpha):
    values = draws("limit", n, size=(n,)) + 0.3
    limit = inference.lower_flip_limit(values, alpha)
    if 2.0**-n > alpha:
        assert limit == -math.inf
        return
    assert inference.sign_flip_p(values - (limit - 1e-9), "greater") <= alpha
    assert inference.sign_flip_p(values - (limit + 1e-9), "greater") > alpha


def test_limits_hold_at_their_level():
    """Over many samples of a skewed but symmetric kind the limit exceeds the centre in at most alpha of them."""
    samples = draws("coverage", size=(2000, 7)) ** 3 + 2.0
    above = np.mean([inference.lower_flip_limit(values, 0.1) > 2.0 for values in samples])
    assert 0.05 < above <= 0.1 + 3.0 * math.sqrt(0.09 / 2000)


def test_beyond_sixteen_values_the_limit_is_students():
    values = draws("many values", size=(20,))
    expected = stats.ttest_1samp(values, 0.0, alternative="greater").confidence_interval(0.95)
    assert inference.lower_flip_limit(values, 0.05) == pytest.approx(expected.low)


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.5])
def test_flip_tests_keep_their_level_over_all_sign_patterns(alpha):
    """Under the null hypothesis every sign pattern of the same magnitudes is equally likely."""
    rows = draws("level", size=(6, 3))
    signs = all_signs(6)
    single = np.array([inference.sign_flip_p(pattern * rows[:, 0]) for pattern in signs])
    joint = np.array([inference.joint_sign_flip_p(pattern[:, None] * rows) for pattern in signs])
    for p_values in (single, joint):
        assert np.mean(p_values <= alpha) <= alpha
        assert np.mean(p_values <= p_values.min()) == pytest.approx(p_values.min())


def test_joint_flip_by_enumeration_and_for_one_column():
    rows = draws("joint", size=(5, 4)) + 0.3
    statistics = ((all_signs(5) @ rows) ** 2).sum(axis=1)
    expected = np.mean(statistics >= statistics[0] * (1 - 1e-12))
    assert inference.joint_sign_flip_p(rows) == pytest.approx(expected)
    assert inference.joint_sign_flip_p(rows[:, :1]) == inference.sign_flip_p(rows[:, 0])


def test_joint_flip_finds_opposite_deviations_that_cancel_in_the_mean():
    rows = 0.1 * draws("opposite", size=(8, 2)) + [1.0, -1.0]
    assert inference.joint_sign_flip_p(rows) == 2 / 2**8
    assert inference.sign_flip_p(rows.sum(axis=1)) > 0.05


def test_holm_by_hand():
    np.testing.assert_allclose(inference.holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(inference.holm(np.array([0.6, 0.5])), [1.0, 1.0])
    assert inference.holm(np.array([0.2])) == 0.2


@pytest.mark.slow
def test_holm_agrees_with_statsmodels_to_the_bit():
    for rank in range(50):
        p_values = draws("holm", rank, size=(1 + rank % 20,)) % 1.0
        expected = multipletests(p_values, method="holm")[1]
        np.testing.assert_array_equal(inference.holm(p_values), expected)


@pytest.mark.parametrize("n", [5, 20])
def test_sign_flips_give_scipys_p_to_the_bit(n):
    values = draws("bits", n, size=(n,)) + 0.3
    for alternative in ("two-sided", "less", "greater"):
        expected = stats.permutation_test(
            (np.ones(n),),
            lambda signs_SR, axis: signs_SR @ values,
            permutation_type="samples",
            vectorized=True,
            alternative=alternative,
            n_resamples=np.inf if n <= inference.MOST_EXACT_VALUES else inference.MONTE_CARLO_DRAWS,
            rng=generator("sign flips", n),
        )
        assert inference.sign_flip_p(values, alternative) == expected.pvalue


def test_t_interval_agrees_with_scipy():
    values = draws("t", size=(5,))
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert inference.t_interval(values) == pytest.approx((expected.low, expected.high))
    assert all(math.isnan(end) for end in inference.t_interval(values[:1]))


def test_paired_t_agrees_with_scipy():
    values = draws("paired t", size=(6,)) + 0.5
    assert inference.paired_t_p(values) == pytest.approx(stats.ttest_1samp(values, 0.0).pvalue)
    assert inference.paired_t_p(values) == inference.paired_t_p(-values)


@pytest.mark.parametrize(("values", "p"), [([0.3], 1.0), ([0.0, 0.0], 1.0), ([0.5, 0.5, 0.5], 0.0)])
def test_paired_t_where_nothing_varies(values, p):
    assert inference.paired_t_p(np.array(values)) == p


def test_share_interval_of_clopper_and_pearson():
    low, high = inference.share_interval(0, 6)
    assert low == 0.0
    assert high == pytest.approx(1.0 - 0.025 ** (1 / 6))


@pytest.mark.parametrize("shape", [(2, 3), (2, 5), (3, 4), (6, 4), (3, 6)])
def test_page_agrees_with_scipy(shape):
    values = draws("page", *shape, size=shape) + 0.3 * np.arange(shape[1])
    rising, falling = (stats.page_trend_test(v, method="exact").pvalue for v in (values, values[:, ::-1]))
    assert inference.page_p(values) == pytest.approx(min(1.0, 2.0 * min(rising, falling)), abs=1e-12)
    assert inference.page_p(values) == pytest.approx(inference.page_p(-values), abs=1e-12)


def test_page_of_one_row_is_the_exact_test_of_spearmans_rho():
    row = draws("row", size=(6,)) + 0.2 * np.arange(6)
    expected = stats.permutation_test(
        (row,), lambda x: stats.spearmanr(x, np.arange(6)).statistic, permutation_type="pairings", n_resamples=np.inf
    ).pvalue
    assert inference.page_p(row[None, :]) == pytest.approx(expected, abs=1e-12)


def test_page_with_ties_is_close_to_enumeration():
    values = np.array([[1.0, 2.0, 2.0, 3.0], [1.0, 1.0, 2.0, 1.0]])
    ranks = stats.rankdata(values, axis=1)
    weights = np.arange(1, 5)
    sums = [np.array([np.dot(weights, order) for order in itertools.permutations(row)]) for row in ranks]
    null = (sums[0][:, None] + sums[1]).ravel()
    centre = 2 * 4 * 25 / 4
    expected = np.mean(np.abs(null - centre) >= abs((ranks @ weights).sum() - centre) - 1e-9)
    assert inference.page_p(values) == pytest.approx(expected, abs=1e-12)  # 576 orders: all of them are taken


def test_drawn_orders_estimate_the_exact_page_p(monkeypatch):
    values = draws("orders", size=(3, 7)) + 0.15 * np.arange(7)
    exact = inference.page_p(values)
    monkeypatch.setattr(inference, "MOST_EXACT_LAYERS", 6)
    drawn = inference.page_p(values)
    assert drawn != exact
    assert abs(drawn - exact) < 8.0 * math.sqrt(exact * (1.0 - exact) / inference.MONTE_CARLO_DRAWS)
    assert inference.page_p(values) == drawn


def test_page_of_the_twelve_layers_of_gpt2():
    assert inference.page_p(-np.arange(12.0)[None, :]) <= 1e-4
    assert inference.page_p(np.ones((2, 12))) == pytest.approx(1.0)


def test_page_needs_three_columns():
    with pytest.raises(ValueError, match="at least 3 columns, found 2"):
        inference.page_p(np.ones((3, 2)))


def test_depth_correlation_is_spearmans_without_ties():
    values = draws("rho", size=(4, 9))
    expected = [stats.spearmanr(np.arange(9), row).statistic for row in values]
    np.testing.assert_allclose(inference.depth_correlation(values), expected, atol=1e-12)
    assert inference.depth_correlation(np.full((1, 5), 0.5)) == pytest.approx(0.0)


@pytest.mark.parametrize(("effect", "n"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_plans_match_published_sample_sizes(effect, n):
    """One-sample t test, two-sided, alpha 0.05, power 0.8: the values G*Power gives."""
    differences = np.array([effect - 1.0, effect, effect + 1.0])
    assert inference.values_to_decide(differences, alpha=0.05) == n
    assert inference.values_to_decide(-differences, alpha=0.05) == n
    assert inference.values_to_decide(differences, alpha=0.05, alternative="greater") < n


def test_plans_at_the_edges():
    for undecidable in ([0.3], [-1.0, 1.0], [1e-9 - 1.0, 1e-9, 1e-9 + 1.0]):
        assert inference.values_to_decide(np.array(undecidable), alpha=0.05) is None
    for clear in ([0.3, 0.3], [0.999, 1.001, 1.0]):
        assert inference.values_to_decide(np.array(clear), alpha=0.05) == 6  # five reach 1/16, six 1/32
        assert inference.values_to_decide(np.array(clear), alpha=0.05, alternative="greater") == 5


def test_cohens_dz():
    assert inference.cohens_dz(np.array([1.0, 2.0, 3.0])) == pytest.approx(2.0)
    assert math.isnan(inference.cohens_dz(np.array([1.0])))
    assert math.isnan(inference.cohens_dz(np.array([1.0, 1.0])))
