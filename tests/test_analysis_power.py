"""The planned numbers of seeds against simulation: is an effect of known size decided in 80 % of experiments?

Shape legend: E experiments, R seeds.
"""

import math

import numpy as np
import pytest

from sublora.analysis.hypotheses import inference
from sublora.analysis.hypotheses.fixed_splits import NEGLIGIBLE_GAIN_BITS
from sublora.analysis.hypotheses.rows import ALPHA
from sublora.system.streams import generator

EXPERIMENTS = 1000
POWER = 0.8
SIMULATION_ERROR = 3.0 * math.sqrt(POWER * (1.0 - POWER) / EXPERIMENTS)
MOST_ABOVE = 0.1
"""A whole number of seeds, and one that can reach alpha at all, gives more power than was asked for."""


def share_decided(effect: float, seeds: int, *, alpha: float, alternative: str, name: str) -> float:
    """Share of decided experiments, whose differences are normal with this mean, in standard deviations."""
    samples_ER = generator("test power", name, seeds).normal(size=(EXPERIMENTS, seeds)) + effect
    return float(np.mean([inference.sign_flip_p(values_R, alternative) <= alpha for values_R in samples_ER]))


def with_effect(effect: float) -> np.ndarray:
    """Differences whose mean over standard deviation is the effect, exactly."""
    return np.array([effect - 1.0, effect, effect + 1.0])


@pytest.mark.parametrize(
    ("effect", "alpha", "alternative"),
    [
        (1.3, ALPHA / 2, "greater"),  # H1: two splits, one-sided
        (1.0, ALPHA / 2, "greater"),
        (0.9, ALPHA, "greater"),  # no gain that matters
        (1.5, ALPHA / 5, "two-sided"),  # H2: one gate of five
        (1.1, ALPHA, "two-sided"),
    ],
)
def test_planned_seeds_decide_in_80_percent_of_experiments(effect, alpha, alternative):
    seeds = inference.values_to_decide(with_effect(effect), alpha=alpha, alternative=alternative)
    assert seeds <= 11  # 2,048 sign assignments for each experiment
    share = share_decided(effect, seeds, alpha=alpha, alternative=alternative, name="planned")
    assert POWER - SIMULATION_ERROR - 0.02 <= share <= POWER + MOST_ABOVE + SIMULATION_ERROR
    # Fewer seeds decide less often: the plan is no mere upper bound.
    fewer = share_decided(effect, math.ceil(0.7 * seeds), alpha=alpha, alternative=alternative, name="fewer")
    assert fewer < share


def test_without_an_effect_nothing_is_decided_more_often_than_alpha():
    for alternative in ("greater", "two-sided"):
        share = share_decided(0.0, 8, alpha=ALPHA, alternative=alternative, name="null")
        assert share <= ALPHA + 3.0 * math.sqrt(ALPHA * (1.0 - ALPHA) / EXPERIMENTS)


def test_a_gain_at_the_margin_is_called_negligible_no_more_often_than_alpha():
    spread = 0.02
    samples_ER = generator("test power", "margin").normal(-NEGLIGIBLE_GAIN_BITS, spread, size=(EXPERIMENTS, 8))
    called = [inference.sign_flip_p(values_R + NEGLIGIBLE_GAIN_BITS, "greater") <= ALPHA for values_R in samples_ER]
    assert np.mean(called) <= ALPHA + 3.0 * math.sqrt(ALPHA * (1.0 - ALPHA) / EXPERIMENTS)
