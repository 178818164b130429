"""Inequalities against hand computation, independent solutions of the same equations, and each other."""

import math
import time

import numpy as np
import pytest
from scipy.optimize import brentq

from sublora.bounds import inequalities, subsampled
from sublora.bounds.checks import ROUNDING
from sublora.bounds.full_sample import BETS_J, betting_headroom

LN2 = math.log(2)
DELTA, DELTA_SAMPLE = 0.05, 0.045
FULL = [each.__name__ for each in inequalities.FULL_SAMPLE]
SUBSAMPLED = [each.__name__ for each in inequalities.SUBSAMPLED]


def bound(name, losses, *, lower=0.0, upper=10.0, code_bits=50.0, n=None, delta=DELTA, delta_sample=DELTA_SAMPLE):
    arguments = {"lower": lower, "upper": upper, "code_bits": code_bits, "delta": delta}
    if name in SUBSAMPLED:
        arguments["delta_sample"] = delta_sample
    return getattr(inequalities, name)(losses, n=len(losses) if n is None else n, **arguments)


@pytest.fixture
def losses():
    return np.clip(np.random.default_rng(3).normal(4.0, 0.7, size=400), 0.5, 9.5)


def test_hoeffding_by_hand():
    # B = 100 ln 2 + ln 20 = 72.31045; sqrt(B / 2000) = 0.1901453; times the width 8, plus the mean 3.
    assert bound("hoeffding", np.full(1000, 3.0), lower=1.0, upper=9.0, code_bits=100.0) == pytest.approx(
        4.521163, abs=1e-6
    )


def test_hoeffding_subsampled_is_the_papers_formula(losses):
    n, m, code_bits = 17_000, len(losses), 2_000.0
    r = m / (m + n)
    expected = np.mean(losses) + 10 * (
        math.sqrt((code_bits * LN2 - math.log(r * DELTA)) / (2 * n)) + math.sqrt(-math.log((1 - r) * DELTA) / (2 * m))
    )
    assert bound("hoeffding_subsampled", losses, code_bits=code_bits, n=n) == pytest.approx(expected, abs=1e-9)


def test_the_papers_formula_divides_delta_itself(losses):
    """Every inequality for a draw takes delta_sample; only for this one it says nothing."""
    values = [bound("hoeffding_subsampled", losses, n=17_000, delta_sample=share) for share in (None, 0.001, 0.045)]
    assert len(set(values)) == 1


def test_all_that_is_public_is_in_one_of_the_tuples():
    assert sorted([*FULL, *SUBSAMPLED, "FULL_SAMPLE", "SUBSAMPLED"]) == sorted(inequalities.__all__)


def test_empirical_bernstein_by_hand():
    # x = 0.2 and 0.6 in equal numbers: mean 0.4, unbiased variance 0.04 * 100 / 99, B + ln 2 = ln 40 + 10 ln 2.
    values = np.tile([2.0, 6.0], 50)
    nats = math.log(40) + 10 * LN2
    expected = 10 * (0.4 + math.sqrt(2 * 0.04 * 100 / 99 * nats / 100) + 7 * nats / (3 * 99))
    assert bound("empirical_bernstein", values, code_bits=10.0) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("code_bits", [0.0, 3.0, 50.0, 400.0])
def test_kl_inverse_solves_its_equation(losses, code_bits):
    mean, nats = losses.mean() / 10, (code_bits * LN2 + math.log(1 / DELTA)) / losses.size

    def excess(p):
        return mean * math.log(mean / p) + (1 - mean) * math.log((1 - mean) / (1 - p)) - nats

    expected = 10 * brentq(excess, mean, 1 - 1e-12, xtol=1e-15)
    assert bound("kl_inverse", losses, code_bits=code_bits) == pytest.approx(expected, abs=1e-8)


def test_kl_inverse_subsampled_is_the_kl_inverse_of_a_kl_inverse(losses):
    # Without a message the inner bound is kl_inverse of the m losses at delta_sample.
    inner = bound("kl_inverse", losses, code_bits=0.0, delta=DELTA_SAMPLE)
    expected = bound("kl_inverse", np.full(5_000, inner), code_bits=300.0, delta=DELTA - DELTA_SAMPLE)
    assert bound("kl_inverse_subsampled", losses, code_bits=300.0, n=5_000) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("code_bits", [0.0, 3.0, 50.0, 400.0])
def test_betting_solves_its_equation_for_the_best_bet(losses, code_bits):
    x, nats = losses / 10, (code_bits * LN2 + math.log(1 / DELTA) + math.log(32)) / losses.size

    def root(t):
        def excess(u):
            return np.mean(np.log(1 + t * (u - x) / (1 - u))) - nats

        return brentq(excess, x.mean(), 1 - 1e-13, xtol=1e-15) if excess(1 - 1e-13) > 0 else 1.0

    expected = 10 * min(root(t) for t in np.geomspace(1e-4, 1 - 1e-12, 32))
    assert bound("betting", losses, code_bits=code_bits) == pytest.approx(expected, abs=1e-8)


def test_betting_with_the_bet_one_alone_is_the_closed_form(losses):
    nats = (50.0 * LN2 + math.log(1 / DELTA)) / losses.size
    headroom, bet = betting_headroom(10.0 - losses, nats, np.array([1.0]))
    assert bet == 1.0
    assert 10.0 - headroom == pytest.approx(bound("betting_closed_form", losses), abs=1e-10)


def test_betting_returns_a_value_that_its_own_equation_excludes(losses):
    for nats in (1e-6, 1e-3, 0.1, 1.0, 40.0):
        v, bet = betting_headroom(10.0 - losses, nats)
        assert np.log1p(bet * ((10.0 - losses) / (v * (1 - ROUNDING)) - 1)).mean() >= nats
        further = v * (1 + 1e-9)
        assert all(np.log1p(t * ((10.0 - losses) / further - 1)).mean() < nats for t in BETS_J)


GOLDEN = {
    "hoeffding": 5.778228373420048,
    "kl_inverse": 5.766727833120509,
    "empirical_bernstein": 6.148492420936586,
    "betting": 4.283647573291219,
    "betting_closed_form": 4.2339039671337035,
    "hoeffding_subsampled": 5.047722173728466,
    "kl_inverse_subsampled": 5.033362827485662,
    "betting_subsampled": 3.9057179979173444,
}


@pytest.mark.parametrize("name", FULL + SUBSAMPLED)
def test_the_numbers_stay(name):
    """They change only with the numerics version of `bound`."""
    index = np.arange(400)
    values = 3.0 + (index * 7919 % 400) / 400 + (index % 37 == 0) * 4.0
    n = 400 if name in FULL else 3_000
    assert bound(name, values, n=n) == pytest.approx(GOLDEN[name], rel=1e-12)


def test_orders_that_are_theorems(losses):
    skewed = np.where(np.arange(400) % 40 == 0, 10.0, 1.0)
    for values in (losses, skewed):
        ones = math.ceil(400 * values.mean() / 10)
        coins = np.repeat([0.0, 10.0], [400 - ones, ones])
        for code_bits in (0.0, 20.0, 200.0, 2000.0):
            # Pinsker; the union over bets against one of its members; ln is concave, so coins are the worst case.
            assert bound("kl_inverse", values, code_bits=code_bits) <= bound("hoeffding", values, code_bits=code_bits)
            betting = bound("betting", values, code_bits=code_bits)
            assert betting <= bound("betting_closed_form", values, code_bits=code_bits + 5) + 1e-9
            assert betting <= bound("betting", coins, code_bits=code_bits) + 1e-9


@pytest.mark.parametrize("name", FULL + SUBSAMPLED)
def test_bounds_move_the_right_way(name, losses):
    n = losses.size if name in FULL else 2_000
    base = bound(name, losses, n=n)
    assert losses.mean() < base < 10.0
    assert bound(name, losses, n=n, code_bits=80.0) > base
    assert bound(name, losses, n=n, delta=0.2) < base
    assert bound(name, losses + 0.3, n=n) > base
    if name in FULL:
        assert bound(name, np.tile(losses, 4)) < base
    else:
        assert bound(name, losses, n=4 * n) < base
        assert bound(name, np.tile(losses, 4), n=n) < base


def test_a_larger_part_of_delta_for_the_draw_helps_where_the_draw_dominates(losses):
    for name in ("kl_inverse_subsampled", "betting_subsampled"):
        assert bound(name, losses, n=10**7, delta_sample=0.045) < bound(name, losses, n=10**7, delta_sample=0.001)


@pytest.mark.parametrize("name", FULL + SUBSAMPLED)
def test_scale_and_shift_of_the_unit_do_not_matter(name, losses):
    shifted = bound(name, 3 * losses + 2, lower=2.0, upper=32.0)
    assert shifted == pytest.approx(3 * bound(name, losses) + 2, abs=1e-8)


@pytest.mark.parametrize("name", FULL + SUBSAMPLED)
def test_extremes_stay_finite_and_below_upper(name):
    for values in (np.full(30, 10.0), np.full(30, 0.0), np.tile([0.0, 10.0], 15), np.array([0.0] * 29 + [10.0])):
        for code_bits in (0.0, 1e3, 1e12):
            result = bound(name, values, code_bits=code_bits)
            assert values.mean() <= result <= 10.0
    assert bound(name, np.full(30, 10.0)) == 10.0
    assert bound(name, np.full(30, 4.0), code_bits=1e12) == 10.0


def test_betting_subsampled_approaches_betting_when_the_draw_is_large(losses):
    many = np.tile(losses, 250)
    full = bound("betting", losses, delta=DELTA - DELTA_SAMPLE)
    drawn = bound("betting_subsampled", many, n=losses.size)
    assert full - 1e-3 < drawn < full + 0.05 * (full - losses.mean())


def test_betting_subsampled_excludes_by_wealth_in_the_documented_formula(losses):
    n, code_bits = 5_000, 800.0
    result = bound("betting_subsampled", losses, code_bits=code_bits, n=n)
    order = subsampled.generator("order of the draw", losses.size).permutation(losses.size)
    allowance = (code_bits * LN2 - math.log(DELTA - DELTA_SAMPLE) + math.log(31)) / n
    bets, stakes = subsampled._predictable_bets(10.0 - losses[order], allowance, -math.log(DELTA_SAMPLE))

    def largest_wealth(u):
        x, wealth, largest = losses[order] / 10, 1.0, 1.0
        for xi, t, s in zip(x, bets, stakes, strict=True):
            y = math.log(1 + t * (u - xi) / (1 - u))
            wealth *= 1 + s * (y - allowance) / (allowance - math.log(1 - t))
            largest = max(largest, wealth)
        return largest

    assert largest_wealth(result / 10 + 1e-9) >= 1 / DELTA_SAMPLE
    assert largest_wealth(result / 10 - 1e-9) < 1 / DELTA_SAMPLE


def test_bets_depend_on_earlier_documents_alone(losses):
    headroom = 10.0 - losses
    before = subsampled._predictable_bets(headroom, 0.05, 3.0)
    for first in subsampled.REVISIONS:
        changed = headroom.copy()
        changed[first:] = np.random.default_rng(0).uniform(0, 10, size=losses.size - first)
        after = subsampled._predictable_bets(changed, 0.05, 3.0)
        upto = next((later for later in subsampled.REVISIONS if later > first), losses.size)
        for kind in (0, 1):
            assert (before[kind][:upto] == after[kind][:upto]).all()
    changed = headroom.copy()
    changed[:16] = np.tile([0.5, 9.5], 8)
    assert (subsampled._predictable_bets(changed, 0.05, 3.0)[1][16:64] != before[1][16:64]).all()


def test_betting_subsampled_takes_documents_in_any_order(losses):
    base = bound("betting_subsampled", losses, n=5_000)
    gap = base - losses.mean()
    for arranged in (np.sort(losses), np.sort(losses)[::-1]):
        assert bound("betting_subsampled", arranged, n=5_000) == pytest.approx(base, abs=0.15 * gap)


@pytest.mark.parametrize("name", FULL + SUBSAMPLED)
@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"losses": np.array([1.0, 10.1])}, "outside the stated range"),
        ({"losses": np.array([-0.1, 1.0])}, "outside the stated range"),
        ({"losses": np.array([1.0, np.nan])}, "not finite"),
        ({"losses": np.array([])}, "not empty"),
        ({"losses": np.ones((2, 2))}, "one-dimensional"),
        ({"lower": 10.0}, "lower < upper"),
        ({"upper": math.inf}, "lower < upper"),
        ({"delta": 0.0}, "delta must lie"),
        ({"delta": 1.0}, "delta must lie"),
        ({"code_bits": -1.0}, "code_bits"),
        ({"code_bits": math.nan}, "code_bits"),
        ({"n": 0}, "n must be"),
        ({"n": 2.5}, "n must be"),
    ],
)
def test_bad_input_is_refused(name, change, complaint):
    arguments = {"losses": np.array([1.0, 2.0]), **change}
    with pytest.raises(ValueError, match=complaint):
        bound(name, **arguments)


@pytest.mark.parametrize("name", FULL)
@pytest.mark.parametrize("n", [1, 3])
def test_full_forms_want_all_n_documents(name, n):
    with pytest.raises(ValueError, match="score all of them"):
        bound(name, np.array([1.0, 2.0]), n=n)


@pytest.mark.parametrize("name", SUBSAMPLED[1:])
@pytest.mark.parametrize("delta_sample", [0.05, 0.06, 0.0])
def test_delta_sample_is_a_proper_part_of_delta(name, delta_sample):
    with pytest.raises(ValueError, match="delta_sample"):
        bound(name, np.array([1.0, 2.0]), delta_sample=delta_sample)


def test_empirical_bernstein_needs_two_documents():
    with pytest.raises(ValueError, match="two documents"):
        bound("empirical_bernstein", np.array([1.0]))


def test_rounding_outside_the_range_is_clipped():
    edge = np.array([10.0 + 1e-12, -1e-12])
    assert bound("hoeffding", edge) == bound("hoeffding", np.array([10.0, 0.0]))


@pytest.mark.parametrize("name", ["betting", "betting_subsampled"])
def test_ten_thousand_losses_take_less_than_50_milliseconds(name):
    values = np.clip(np.random.default_rng(0).normal(7.0, 0.7, size=10_000), 0.2, 18.0)
    n = 10_000 if name == "betting" else 8_000_000
    seconds = []
    for _ in range(5):
        start = time.process_time()
        bound(name, values, lower=0.15, upper=18.9, code_bits=n * 0.02, n=n)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.05
