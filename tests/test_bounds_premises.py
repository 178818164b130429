"""Premises and the bounded loss: what contradicts itself is refused, and a choice among draws is paid for."""

import dataclasses

import pytest

from sublora.bounds import inequalities
from sublora.bounds.premises import BoundedLoss, Premises
from sublora.bounds.smoothing import DocumentMixture, TokenSmoothing

DRAWN = Premises(n_units=17_000, delta=0.05, m_units=500, delta_sample=0.045, sweep_size=30)


def test_m_and_delta_sample_belong_together():
    with pytest.raises(ValueError, match="both or neither"):
        Premises(n_units=5, delta=0.05, m_units=3)
    with pytest.raises(ValueError, match="both or neither"):
        Premises(n_units=5, delta=0.05, delta_sample=0.01)


def test_a_sweep_holds_a_run():
    with pytest.raises(ValueError, match="sweep_size"):
        dataclasses.replace(DRAWN, sweep_size=0)


def test_the_headline_is_fixed_by_whether_units_are_drawn():
    for premises in (DRAWN, Premises(17_000, 0.05)):
        for name in (premises.headline, premises.hoeffding):
            assert name in inequalities.__all__
            assert name.endswith("_subsampled") == (premises is DRAWN)


def test_only_a_draw_is_divided_among_alternatives():
    shared = DRAWN.for_all_alternatives(extra_bits=3.0)
    assert shared.delta_sample == 0.045 / 30 / 8
    assert shared.delta - shared.delta_sample == pytest.approx(0.005, rel=1e-12)
    everything = Premises(17_000, 0.05, sweep_size=30)
    assert everything.for_all_alternatives(extra_bits=3.0) == everything


def test_each_candidate_has_its_range():
    candidates = (TokenSmoothing(0.1), DocumentMixture(4))
    loss = BoundedLoss(candidates, 257, 17, DRAWN)
    assert loss.ranges == tuple(candidate.loss_range_bits(257, 17) for candidate in candidates)
    assert loss.range_of(candidates[1]) == loss.ranges[1]


@pytest.mark.parametrize(
    ("candidates", "message"),
    [((), "at least one candidate"), ((DocumentMixture(4), DocumentMixture(4)), "must differ")],
)
def test_candidates_of_a_smoothing_are_there_and_differ(candidates, message):
    with pytest.raises(ValueError, match=message):
        BoundedLoss(candidates, 257, 17, DRAWN)
