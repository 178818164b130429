"""Paired comparisons: coverage, symmetry, p-values, and the number of examples that would decide."""

import numpy as np
import pytest

from sublora.bounds.anchor import EXCESS_TOLERANCE_BITS, FailureShare, base_bound, excess_bound
from sublora.bounds.certify_pairs import REFERENCE_SHARE, certify_comparison, certify_excess
from sublora.bounds.paired import Comparison, compare, p_value, paired_differences, smallest_number
from sublora.bounds.smoothing import SCORE_TOLERANCE_BITS, LossRange

UNIT = LossRange(0.0, 1.0)
RANGES = (UNIT, LossRange(0.0, 2.0))
DELTA = 0.1


def pairs(random: np.random.Generator, n: int, gain: float, rare: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Losses of a model and a reference that share most of their variation; with probability `rare` the model fails."""
    reference = random.uniform(0.2, 0.8, n)
    model = reference - gain + random.normal(0.0, 0.02, n).clip(-0.1, 0.1)
    return np.where(random.random(n) < rare, 1.0, model), reference


def beside(
    model: np.ndarray, reference: np.ndarray, ranges: tuple[LossRange, LossRange] = RANGES, delta: float = DELTA
) -> Comparison:
    return compare(paired_differences(model, reference, ranges), delta)


@pytest.mark.parametrize("gain,rare", [(0.0, 0.0), (0.02, 0.0), (0.01, 0.01)])
def test_both_ends_hold_more_often_than_promised(gain: float, rare: float) -> None:
    """Rare failures, which most samples do not show, included."""
    random = np.random.default_rng(5)
    truth = np.subtract(*pairs(random, 1_000_000, gain, rare)).mean()
    failures = 0
    for _ in range(300):
        found = compare(paired_differences(*pairs(random, 100, gain, rare), RANGES), DELTA)
        failures += not found.low <= truth <= found.high
    assert failures <= DELTA * 300


def test_exchanging_the_models_mirrors_the_interval() -> None:
    model, reference = pairs(np.random.default_rng(1), 200, 0.05)
    one, other = beside(model, reference), beside(reference, model, RANGES[::-1])
    assert (one.low, one.high, one.mean) == (-other.high, -other.low, -other.mean)


def test_verdicts_and_the_examples_that_would_decide() -> None:
    model, reference = pairs(np.random.default_rng(2), 1000, 0.05)
    assert beside(model, reference).verdict == "smaller"
    assert beside(reference, model, RANGES[::-1]).verdict == "larger"
    few = beside(model[:40], reference[:40])
    assert few.verdict == "not decided" and 40 < few.examples_to_decide < 1000
    # The same differences as often as said decide; half as many do not.
    for factor, verdict in ((1.1, "smaller"), (0.5, "not decided")):
        repeated = np.arange(round(factor * few.examples_to_decide)) % 40
        assert beside(model[repeated], reference[repeated]).verdict == verdict
    same = beside(model, model, (UNIT, UNIT))
    assert same.verdict == "not decided" and same.examples_to_decide is None and same.low < 0.0 < same.high


def test_the_p_value_is_the_level_at_which_the_bound_passes_zero() -> None:
    model, reference = pairs(np.random.default_rng(3), 200, 0.05)
    p = p_value(paired_differences(model, reference, RANGES))
    assert 0.0 < p < 1.0
    # An interval with delta has delta / 2 on each side.
    assert beside(model, reference, delta=2.0 * p * 1.001).high < 0.0
    assert beside(model, reference, delta=2.0 * p * 0.999).high >= 0.0
    assert p_value(paired_differences(reference, model, RANGES[::-1])) == 1.0


def test_a_smaller_upper_end_gives_a_shorter_interval() -> None:
    """What a mixture cannot lose above its anchor need not be paid for; a difference above it is refused."""
    found = paired_differences(*pairs(np.random.default_rng(7), 200, 0.05), RANGES)
    narrow = compare(found.at_most(0.1), DELTA)
    assert narrow.high < compare(found, DELTA).high < 0.0 and narrow.mean == compare(found, DELTA).mean
    with pytest.raises(ValueError, match="outside the stated range"):
        found.at_most(-0.04)


def test_the_smallest_number_from_which_on_a_property_holds() -> None:
    assert smallest_number(lambda n: n >= 17) == 17 and smallest_number(lambda n: False) is None
    assert smallest_number(lambda n: n >= 17, most=16) is None


def test_pairs_that_do_not_fit_are_refused() -> None:
    for model, reference, words in (
        ([0.1, 0.2], [0.1], "2 losses of the model, 1 of the reference"),
        ([1.5], [0.1], "outside the stated range"),
    ):
        with pytest.raises(ValueError, match=words):
            beside(model, reference)


def test_accuracies_are_better_if_larger() -> None:
    reference = (np.arange(500) % 2).astype(float)
    model = np.maximum(reference, np.arange(500) % 8 == 0)
    found = certify_comparison(model, reference, UNIT, direction="higher", delta=DELTA)
    assert found.verdict == "better" and 0.0 < found.low < found.mean_difference == 0.126 < found.high
    assert "better than the reference by at least" in found.sentence
    assert certify_comparison(model, reference, UNIT, direction="lower", delta=DELTA).verdict == "worse"
    few = certify_comparison(model[:20], reference[:20], UNIT, direction="higher", delta=DELTA)
    assert few.sentence.startswith("Not decided: with probability 0.9,") and "examples would decide" in few.sentence


@pytest.mark.parametrize("subsample", [False, True])
def test_the_excess_is_bounded_as_by_the_anchored_bound(subsample: bool) -> None:
    random, n = np.random.default_rng(6), 5_000
    drawn = random.integers(0, n, 300) if subsample else np.arange(n)
    losses, reference = (values[drawn] for values in pairs(random, n, 0.1))
    found = certify_excess(
        losses, reference, UNIT, excess_upper=0.15, code_bits=200.0, n=n, delta=0.05, subsample=subsample
    )
    base, excess = (
        FailureShare(0.05 * part, 0.9 * 0.05 * part if subsample else None)
        for part in (REFERENCE_SHARE, 1.0 - REFERENCE_SHARE)
    )
    u_b = base_bound(reference, UNIT, n=n, share=base, picked_bits=0.0)
    u_d = excess_bound(losses - reference, LossRange(-1.0, 0.15), n=n, code_bits=200.0, share=excess)
    assert found.reference_bound == pytest.approx(u_b - SCORE_TOLERANCE_BITS, abs=1e-12)
    assert found.excess_bound == pytest.approx(u_d - EXCESS_TOLERANCE_BITS, abs=1e-12)
    assert found.value == pytest.approx(found.reference_bound + found.excess_bound) and found.gain > 0.0
    assert found.m == len(drawn) and "it gains at least" in found.sentence
    assert ("drawn uniformly with replacement" in " ".join(found.on_trust)) == subsample


def test_an_excess_that_rounding_lifts_above_its_end_is_taken() -> None:
    reference, end = np.linspace(0.1, 0.9, 999), 2 / 31
    losses = reference + end
    assert (losses - reference).max() > end
    found = certify_excess(losses, reference, UNIT, excess_upper=end, code_bits=1.0, n=999, delta=0.05, subsample=False)
    assert found.excess_bound == end


def test_an_excess_above_its_end_is_refused() -> None:
    with pytest.raises(ValueError, match=r"row 2: the model loses 0\.3 more than the reference"):
        certify_excess(
            np.array([0.1, 0.6]),
            np.array([0.1, 0.3]),
            UNIT,
            excess_upper=0.2,
            code_bits=1.0,
            n=2,
            delta=0.05,
            subsample=False,
        )
