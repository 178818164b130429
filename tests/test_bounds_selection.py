"""The choice of the smoothing, and the slope of the bound in the code length."""

import numpy as np
import pytest

from sublora.bounds import inequalities
from sublora.bounds.premises import BoundedLoss, Premises
from sublora.bounds.selection import bound_slope_per_bit, choose_smoothing, estimated_bound
from sublora.bounds.smoothing import DocumentMixture, LossRange, TokenSmoothing, document_losses_bits

VOCAB_SIZE, TARGETS = 257, 40
TOKEN = [TokenSmoothing(a) for a in (1e-4, 1e-3, 5e-3, 0.01, 0.05, 0.1, 0.25, 0.5)]
BOTH = [*TOKEN, *(DocumentMixture(k) for k in (1, 4, 8, 16))]
RUN = {"n_units": 17_000, "delta": 0.05}
DRAW = {"m_units": 1_000, "delta_sample": 0.045}


def smoothed_losses(candidates=TOKEN, documents=300):
    """Document losses under every candidate, from token probabilities between confident and hopeless."""
    random = np.random.default_rng(8)
    level = random.normal(-3.0, 0.4, size=(documents, 1))
    log_p = np.minimum(random.normal(level, 2.0, size=(documents, TARGETS)), 0.0)
    offsets = np.arange(documents + 1) * TARGETS
    return document_losses_bits(candidates, log_p.ravel(), offsets, VOCAB_SIZE)


def ranges_of(candidates):
    return [candidate.loss_range_bits(VOCAB_SIZE, TARGETS) for candidate in candidates]


def loss_of(candidates, premises):
    return BoundedLoss(tuple(candidates), VOCAB_SIZE, TARGETS, premises)


RANGES = ranges_of(TOKEN)


@pytest.mark.parametrize("code_bits", [0.0, 50.0, 400.0])
def test_the_estimate_from_all_n_losses_is_the_bound(code_bits):
    losses = smoothed_losses()[:, 4]
    estimate = estimated_bound(losses, RANGES[4], code_bits=code_bits, premises=Premises(len(losses), 0.05))
    bound = inequalities.betting(losses, **RANGES[4]._asdict(), code_bits=code_bits, n=len(losses), delta=0.05)
    assert estimate == bound


def test_the_estimate_of_a_draw_is_close_to_the_bound_of_a_draw():
    population = smoothed_losses(documents=3000)[:, 5]
    estimate = estimated_bound(population, RANGES[5], code_bits=2_500.0, premises=Premises(**RUN, **DRAW))
    arguments = RANGES[5]._asdict() | {"n": 17_000, "delta": 0.05} | {"code_bits": 2_500.0, "delta_sample": 0.045}
    random = np.random.default_rng(1)
    draws = [inequalities.betting_subsampled(random.choice(population, 1_000), **arguments) for _ in range(10)]
    assert estimate - population.mean() == pytest.approx(np.mean(draws) - population.mean(), rel=0.05)
    assert estimate > estimated_bound(population, RANGES[5], code_bits=2_500.0, premises=Premises(**RUN))


@pytest.mark.parametrize("draw", [{}, DRAW])
@pytest.mark.parametrize("code_bits", [10.0, 1_000.0, 6_000.0])
def test_the_chosen_smoothing_minimizes_the_estimate(code_bits, draw):
    losses, ranges, premises = smoothed_losses(BOTH), ranges_of(BOTH), Premises(**RUN, **draw)
    estimates = [
        estimated_bound(column, loss_range, code_bits=code_bits, premises=premises)
        for column, loss_range in zip(losses.T, ranges, strict=True)
    ]
    chosen = choose_smoothing(losses, loss_of(BOTH, premises), code_bits=code_bits)
    assert chosen == int(np.argmin(estimates))


def test_longer_messages_want_more_smoothing():
    losses, loss = smoothed_losses(), loss_of(TOKEN, Premises(**RUN))
    chosen = [choose_smoothing(losses, loss, code_bits=c) for c in (1.0, 1_000.0, 20_000.0)]
    assert chosen == sorted(chosen)
    assert chosen[0] < chosen[-1]


def test_choose_smoothing_refuses_columns_that_do_not_match():
    with pytest.raises(ValueError, match="8 candidates of the smoothing"):
        choose_smoothing(np.ones((5, 7)), loss_of(TOKEN, Premises(**RUN)), code_bits=1.0)


@pytest.mark.parametrize("code_bits", [20.0, 300.0, 2_500.0])
@pytest.mark.parametrize("draw", [{}, DRAW])
def test_the_slope_is_the_derivative_of_the_estimate(code_bits, draw):
    losses = smoothed_losses()[:, 4]
    premises, step = Premises(**RUN, **draw), 0.5
    rise = estimated_bound(losses, RANGES[4], code_bits=code_bits + step, premises=premises)
    fall = estimated_bound(losses, RANGES[4], code_bits=code_bits - step, premises=premises)
    slope = bound_slope_per_bit(losses, RANGES[4], code_bits=code_bits, premises=premises)
    assert slope > 0
    assert slope == pytest.approx((rise - fall) / (2 * step), rel=1e-3)


def test_a_vacuous_bound_has_no_slope():
    loss_range = LossRange(0.1, 9.0)
    losses = np.full(10, 9.0)
    for premises in (Premises(**RUN), Premises(**RUN, **DRAW)):
        assert bound_slope_per_bit(losses, loss_range, code_bits=5.0, premises=premises) == 0.0
