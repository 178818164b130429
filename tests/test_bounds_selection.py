"""Loss ranges, the choice of the smoothing, and the slope of the bound in the code length."""

import math

import numpy as np
import pytest

from sublora.bounds import inequalities
from sublora.bounds.selection import Sampling, bound_slope_per_bit, choose_smoothing, estimated_bound, loss_range

SMOOTHING = (1e-4, 1e-3, 5e-3, 0.01, 0.05, 0.1, 0.25, 0.5)
RUN = {"n": 17_000, "delta": 0.05}
DRAW = {"m": 1_000, "delta_sample": 0.045}


def smoothed_losses(vocab_size=257, documents=300, tokens=40):
    """Document losses at every smoothing, from token probabilities between confident and hopeless."""
    random = np.random.default_rng(8)
    level = random.normal(-3.0, 0.4, size=(documents, 1))
    p = np.exp(np.minimum(random.normal(level, 2.0, size=(documents, tokens)), 0.0))
    return np.stack([-np.log2((1 - a) * p + a / vocab_size).mean(axis=1) for a in SMOOTHING], axis=1)


def test_loss_range_is_reached_by_certainty_and_by_impossibility():
    for a in SMOOTHING:
        lower, upper = loss_range(a, 257)
        assert lower == pytest.approx(-math.log2((1 - a) * 1.0 + a / 257), abs=1e-15)
        assert upper == pytest.approx(-math.log2((1 - a) * 0.0 + a / 257), abs=1e-12)


@pytest.mark.parametrize(("smoothing", "vocab_size"), [(0.0, 257), (1.0, 257), (0.1, 0)])
def test_loss_range_refuses_what_is_no_smoothing(smoothing, vocab_size):
    with pytest.raises(ValueError, match="smoothing|vocab_size"):
        loss_range(smoothing, vocab_size)


@pytest.mark.parametrize("code_bits", [0.0, 50.0, 400.0])
def test_the_estimate_from_all_n_losses_is_the_bound(code_bits):
    losses = smoothed_losses()[:, 4]
    lower, upper = loss_range(SMOOTHING[4], 257)
    arguments = {"lower": lower, "upper": upper, "code_bits": code_bits}
    estimate = estimated_bound(losses, **arguments, sampling=Sampling(len(losses), 0.05))
    assert estimate == inequalities.betting(losses, **arguments, n=len(losses), delta=0.05)


def test_the_estimate_of_a_draw_is_close_to_the_bound_of_a_draw():
    column, population = 5, smoothed_losses(documents=3000)[:, 5]
    lower, upper = loss_range(SMOOTHING[column], 257)
    arguments = {"lower": lower, "upper": upper, "code_bits": 2_500.0}
    estimate = estimated_bound(population, **arguments, sampling=Sampling(**RUN, **DRAW))
    random = np.random.default_rng(1)
    draws = [
        inequalities.betting_subsampled(random.choice(population, 1_000), delta_sample=0.045, **RUN, **arguments)
        for _ in range(10)
    ]
    assert estimate - population.mean() == pytest.approx(np.mean(draws) - population.mean(), rel=0.05)
    assert estimate > estimated_bound(population, **arguments, sampling=Sampling(**RUN))


@pytest.mark.parametrize("draw", [{}, DRAW])
@pytest.mark.parametrize("code_bits", [10.0, 1_000.0, 6_000.0])
def test_the_chosen_smoothing_minimizes_the_estimate(code_bits, draw):
    losses, sampling = smoothed_losses(), Sampling(**RUN, **draw)
    estimates = []
    for column, a in zip(losses.T, SMOOTHING, strict=True):
        lower, upper = loss_range(a, 257)
        estimates.append(estimated_bound(column, lower=lower, upper=upper, code_bits=code_bits, sampling=sampling))
    chosen = choose_smoothing(losses, SMOOTHING, vocab_size=257, code_bits=code_bits, sampling=sampling)
    assert chosen == int(np.argmin(estimates))


def test_longer_messages_want_more_smoothing():
    losses, run = smoothed_losses(), {"vocab_size": 257, "sampling": Sampling(**RUN)}
    chosen = [choose_smoothing(losses, SMOOTHING, code_bits=c, **run) for c in (1.0, 1_000.0, 20_000.0)]
    assert chosen == sorted(chosen)
    assert chosen[0] < chosen[-1]


def test_choose_smoothing_refuses_columns_that_do_not_match():
    with pytest.raises(ValueError, match="8 smoothing values"):
        choose_smoothing(np.ones((5, 7)), SMOOTHING, vocab_size=257, code_bits=1.0, sampling=Sampling(**RUN))


@pytest.mark.parametrize("code_bits", [20.0, 300.0, 2_500.0])
@pytest.mark.parametrize("draw", [{}, DRAW])
def test_the_slope_is_the_derivative_of_the_estimate(code_bits, draw):
    losses = smoothed_losses()[:, 4]
    lower, upper = loss_range(SMOOTHING[4], 257)
    arguments = {"lower": lower, "upper": upper, "sampling": Sampling(**RUN, **draw)}
    step = 0.5
    rise = estimated_bound(losses, code_bits=code_bits + step, **arguments)
    fall = estimated_bound(losses, code_bits=code_bits - step, **arguments)
    slope = bound_slope_per_bit(losses, code_bits=code_bits, **arguments)
    assert slope > 0
    assert slope == pytest.approx((rise - fall) / (2 * step), rel=1e-3)


def test_a_vacuous_bound_has_no_slope():
    lower, upper = loss_range(0.1, 257)
    losses = np.full(10, upper)
    for sampling in (Sampling(**RUN), Sampling(**RUN, **DRAW)):
        assert bound_slope_per_bit(losses, lower=lower, upper=upper, code_bits=5.0, sampling=sampling) == 0.0


def test_m_and_delta_sample_belong_together():
    with pytest.raises(ValueError, match="both or neither"):
        Sampling(n=5, delta=0.05, m=3)
