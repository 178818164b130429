"""The anchored bound: its algebra on small worlds, how often it fails, and that wrong forms of it are caught."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import multinomial

from sublora.bounds.anchor import (
    AnchoredMixture,
    FailureShare,
    anchored_candidates,
    base_bound,
    certified_gain_bits,
    excess_bound,
)
from sublora.bounds.inequalities import betting_subsampled
from sublora.bounds.smoothing import DocumentMixture, LossRange, TokenSmoothing

BASE_SHARE = FailureShare(0.10, 0.06)
EXCESS_SHARE = FailureShare(0.20, 0.12)
"""Large shares, so that a few simulated experiments say much."""


def world(rng: np.random.Generator, vocab_size: int, targets: int) -> np.ndarray:
    """Probabilities of all documents of that many targets, shape (V^T,)."""
    return rng.dirichlet(np.full(vocab_size**targets, 0.3))


# Algebra.


@pytest.mark.parametrize("k", [1, 4, 12])
def test_the_mixture_is_a_distribution_and_its_losses_are_minus_log2_of_it(k):
    rng, vocab_size, targets = np.random.default_rng(k), 3, 3
    network, base = world(rng, vocab_size, targets), world(rng, vocab_size, targets)
    mixture = AnchoredMixture(k, 12)
    anchor = (1 - 2.0**-12) * base + 2.0**-12 * vocab_size**-targets
    q = (1 - 2.0**-k) * network + 2.0**-k * anchor
    assert q.sum() == pytest.approx(1.0)
    counts = np.full(len(q), targets)
    with np.errstate(divide="ignore"):
        logs = np.log(network), np.log(base), counts, vocab_size
    np.testing.assert_allclose(mixture.losses_bits(*logs), -np.log2(q) / targets, rtol=1e-12)
    np.testing.assert_allclose(mixture.base_losses_bits(*logs[1:]), -np.log2(anchor) / targets, rtol=1e-12)
    np.testing.assert_allclose(mixture.excess_bits(*logs), np.log2(anchor / q) / targets, atol=1e-13)
    np.testing.assert_allclose(mixture.responsibility(*logs), (1 - 2.0**-k) * network / q, rtol=1e-12)


@pytest.mark.parametrize("log_p", [0.0, -1e-3, -50.0, -1e6, -np.inf, np.nan, 1e-6])
@pytest.mark.parametrize("base_log_p", [0.0, -50.0, -1e6, -np.inf, np.nan])
@pytest.mark.parametrize("targets", [5, 6, 5000])
def test_every_loss_and_excess_lies_in_its_range_whatever_the_networks_do(log_p, base_log_p, targets):
    mixture, population = AnchoredMixture(6, 12), (257, 5)
    excess = mixture.excess_bits(log_p, base_log_p, targets, 257)
    lower, upper = mixture.excess_range_bits(*population)
    assert lower <= excess <= upper
    assert 0.0 <= mixture.losses_bits(log_p, base_log_p, targets, 257) <= mixture.loss_range_bits(*population).upper
    base_range = mixture.anchor.loss_range_bits(*population)
    assert 0.0 <= mixture.base_losses_bits(base_log_p, targets, 257) <= base_range.upper


def test_a_network_without_a_probability_costs_k_bits_over_the_anchor():
    mixture = AnchoredMixture(6, 12)
    for broken in (-np.inf, np.nan):
        assert mixture.excess_bits(broken, -50.0, 10, 257) == pytest.approx(6 / 10, abs=1e-15)


def test_the_ends_of_the_ranges_are_attained_only_with_k0_in_them():
    mixture = AnchoredMixture(6, 12)
    worst = mixture.losses_bits(-np.inf, -np.inf, 5, 257)
    assert worst == pytest.approx(mixture.loss_range_bits(257, 5).upper)
    assert worst > DocumentMixture(6).loss_range_bits(257, 5).upper  # the range without k0 would be too short
    assert mixture.base_losses_bits(-np.inf, 5, 257) > math.log2(257)


def test_a_token_smoothing_has_no_anchored_form():
    with pytest.raises(ValueError, match=r"must be document\(k\), found token"):
        anchored_candidates([DocumentMixture(4), TokenSmoothing(0.1)], 12)


def test_the_gain_is_that_over_the_base_without_guessing():
    """On every document the base alone loses at most as much less than Q_b as the gain takes off."""
    rng, mixture = np.random.default_rng(0), AnchoredMixture(3, 2)
    base_log_p, log_p, targets = -rng.exponential(30, 500), -rng.exponential(20, 500), rng.integers(4, 40, 500)
    gain = -base_log_p / math.log(2) / targets - mixture.losses_bits(log_p, base_log_p, targets, 17)
    excess = mixture.excess_bits(log_p, base_log_p, targets, 17)
    assert (gain >= np.array([certified_gain_bits(each, 2, 4) for each in excess]) - 1e-12).all()
    assert certified_gain_bits(-0.3, 12, 25) == pytest.approx(0.3, abs=2e-5)


def test_alternatives_share_the_draws_part_of_delta_alone():
    assert FailureShare(0.05, 0.04).for_alternatives(3) == FailureShare(pytest.approx(0.015), 0.005)
    assert FailureShare(0.05, None).for_alternatives(3) == FailureShare(0.05, None)


# How often the sum fails.


@pytest.mark.parametrize("probabilities", [(0.2, 0.3, 0.4, 0.1), (0.02, 0.02, 0.02, 0.94), (0.5, 0.0, 0.0, 0.5)])
def test_exact_failure_probability_of_the_sum_in_a_world_of_four_documents(probabilities):
    """Base good or bad, network good or bad: every outcome of n draws is gone through."""
    n, share = 24, FailureShare(0.2, None)
    base_range, excess_range = LossRange(0.0, 8.0), LossRange(-8.0, 0.25)
    base_losses, excesses = np.array([2.0, 2.0, 7.5, 7.5]), np.array([-0.5, 0.25, -0.5, 0.25])
    u_b = {
        i: base_bound(np.repeat([7.5, 2.0], [i, n - i]), base_range, n=n, share=share, picked_bits=0)
        for i in range(n + 1)
    }
    u_D = {
        i: excess_bound(np.repeat([0.25, -0.5], [i, n - i]), excess_range, n=n, code_bits=0, share=share)
        for i in range(n + 1)
    }
    truth = np.dot(probabilities, base_losses + excesses)
    missed = 0.0
    for counts in itertools.product(range(n + 1), repeat=3):
        if sum(counts) <= n:
            full = (*counts, n - sum(counts))
            if u_b[full[2] + full[3]] + u_D[full[1] + full[3]] < truth:
                missed += multinomial.pmf(full, n, probabilities)
    assert missed <= 2 * share.delta


RUNS = 3


PLACES = [*(pytest.param(place, marks=pytest.mark.slow) for place in ("nowhere", "elsewhere")), "there too"]


@pytest.mark.slow
@pytest.mark.parametrize("rare", [0.0, 0.004, 0.03])
@pytest.mark.parametrize("network_fails_where", PLACES)
def test_level_of_the_sum_with_rare_bad_documents_and_a_shared_base_bound(rare, network_fails_where):
    """Three runs share u_b; each names its own draw of D afterwards. The best run of each experiment is judged."""
    mixture, targets, vocab_size, n, m = AnchoredMixture(4, 12), 8, 16, 300, 60
    base_range = mixture.anchor.loss_range_bits(vocab_size, targets)
    excess_range = mixture.excess_range_bits(vocab_size, targets)

    def documents(rng, count):
        base = -rng.gamma(12.0, 1.2, count)
        runs = np.minimum(base + rng.normal(2.0, 1.5, (RUNS, count)) * (1 + np.arange(RUNS)[:, None] / 4), 0.0)
        base_fails = rng.random(count) < rare
        fails = {"nowhere": np.zeros(count, bool), "elsewhere": rng.random(count) < rare, "there too": base_fails}
        base[base_fails] = -np.inf
        runs[:, fails[network_fails_where]] = -np.inf
        return base, runs

    def losses(base, runs):
        excess = np.stack([mixture.excess_bits(each, base, targets, vocab_size) for each in runs])
        return mixture.base_losses_bits(base, targets, vocab_size), excess

    population = losses(*documents(np.random.default_rng(99), 200_000))
    truth = population[0].mean() + population[1].mean(axis=1)
    failures, experiments = 0, 60
    for seed in range(experiments):
        rng = np.random.default_rng(seed)
        base_losses, excess = losses(*documents(rng, n))
        u_b = base_bound(base_losses[rng.integers(0, n, m)], base_range, n=n, share=BASE_SHARE, picked_bits=0)
        u_D = [
            excess_bound(
                each[rng.integers(0, n, m)],
                excess_range,
                n=n,
                code_bits=math.log2(RUNS),
                share=EXCESS_SHARE,
                alternatives_bits=math.log2(RUNS),
            )
            for each in excess
        ]
        best = int(np.argmin(u_D))
        failures += u_b + u_D[best] < truth[best]
    assert failures / experiments <= BASE_SHARE.delta + EXCESS_SHARE.delta


def test_a_memorizer_pays_with_its_message_and_is_caught_where_it_does_not():
    """The prover picks, of 2^C networks without any gain, the one that happens to fit the n documents best."""
    bits, n, m, experiments = 10, 200, 100, 60
    excess_range = LossRange(-8.0, 0.5)
    paid = unpaid = 0
    for seed in range(experiments):
        rng = np.random.default_rng(seed)
        excess = np.where(rng.random((2**bits, n)) < 0.5, 0.4, -0.4)  # truth: 0 for each
        best = excess[excess.mean(axis=1).argmin()]
        drawn = best[rng.integers(0, n, m)]
        bounds = [
            excess_bound(drawn, excess_range, n=n, code_bits=charged, share=FailureShare(0.3, 0.2))
            for charged in (bits, 0)
        ]
        paid += bounds[0] < 0.0
        unpaid += bounds[1] < 0.0
    assert paid / experiments <= 0.3
    assert unpaid > paid


# Wrong forms.


@pytest.mark.slow
def test_a_draw_that_is_known_while_the_network_is_chosen_fails_and_the_test_sees_it():
    """The best of 2^16 networks without any gain: on a draw that was known beforehand, and on one made afterwards."""
    bits, n, m, experiments, failure = 16, 5000, 100, 20, 0.1
    arguments = {"n": n, "code_bits": bits, "share": FailureShare(failure, 0.08)}
    known = afterwards = 0
    for seed in range(experiments):
        rng = np.random.default_rng(seed)
        excess = np.where(rng.integers(0, 2, (2**bits, m), dtype=np.int8) == 1, 0.4, -0.4)  # truth: 0 for each
        best = excess[excess.mean(axis=1).argmin()]
        known += excess_bound(best, LossRange(-8.0, 0.5), **arguments) < 0.0
        fresh = np.where(rng.random(m) < 0.5, 0.4, -0.4)
        afterwards += excess_bound(fresh, LossRange(-8.0, 0.5), **arguments) < 0.0
    assert known / experiments > 5 * failure
    assert afterwards / experiments <= failure


def test_the_base_bound_of_documents_is_wrong_for_sources_and_the_test_sees_it():
    """Large sources that are easy, small ones that are hard: the mean over documents is not that over sources."""
    rng, sources = np.random.default_rng(0), 400
    hard = rng.random(sources) < 0.5
    sizes, losses = np.where(hard, 1, 20), np.where(hard, 6.0, 2.0)
    of_documents, truth = np.repeat(losses, sizes), 0.5 * 6.0 + 0.5 * 2.0
    base_range, share = LossRange(0.0, 8.5), FailureShare(0.05, None)
    wrong = base_bound(of_documents, base_range, n=len(of_documents), share=share, picked_bits=0)
    right = base_bound(losses, base_range, n=sources, share=share, picked_bits=0)
    assert wrong < truth <= right


def test_an_excess_that_was_clipped_from_below_cannot_lower_the_bound():
    """Only the headroom counts: raising small values only raises the bound."""
    rng = np.random.default_rng(1)
    excess = rng.normal(-0.3, 0.15, 400).clip(-1.0, 0.2)
    arguments = {"n": 400, "code_bits": 100.0, "share": FailureShare(0.04, None)}
    honest = excess_bound(excess, LossRange(-8.5, 0.25), **arguments)
    assert excess_bound(np.maximum(excess, -0.3), LossRange(-8.5, 0.25), **arguments) >= honest
    assert excess_bound(excess, LossRange(-20.0, 0.25), **arguments) == pytest.approx(honest, abs=1e-10)


def test_picking_the_base_by_hand_is_paid_in_union_and_draw():
    losses, base_range = np.random.default_rng(2).normal(3.0, 0.4, 300), LossRange(0.0, 8.5)
    free, picked = (
        base_bound(losses, base_range, n=5000, share=FailureShare(0.01, 0.009), picked_bits=bits) for bits in (0.0, 5.0)
    )
    delta, delta_sample = 0.001 + 0.009 / 32, 0.009 / 32
    wanted = betting_subsampled(
        losses, lower=0.0, upper=8.5, code_bits=5.0, n=5000, delta=delta, delta_sample=delta_sample
    )
    assert picked == pytest.approx(wanted + 1e-5) and picked > free
