"""The bounds hold as often as they claim, and the same tests catch bounds that do not."""

import functools
import itertools
import math

import numpy as np
import pytest
from scipy.stats import binom

from sublora.bounds import inequalities
from sublora.bounds.premises import BoundedLoss, Premises, held_out_bound
from sublora.bounds.record import RunFacts
from sublora.bounds.run_bounds import ChargedMessage, HeldOutLosses, ScoredDocuments, run_bounds
from sublora.bounds.smoothing import DocumentMixture, LossRange
from sublora.system.streams import generator

FULL = [each.__name__ for each in inequalities.FULL_SAMPLE]
SUBSAMPLED = [each.__name__ for each in inequalities.SUBSAMPLED]


def bound(name, losses, *, n, code_bits, lower=0.0, upper=1.0, delta=0.05, delta_sample=0.03):
    arguments = {"lower": lower, "upper": upper, "code_bits": code_bits, "n": n, "delta": delta}
    if name in SUBSAMPLED:
        arguments["delta_sample"] = delta_sample
    return getattr(inequalities, name)(losses, **arguments)


def coins(ones, count, low=0.0, high=1.0):
    return np.repeat([high, low], [ones, count - ones])


# (a) Bernoulli losses: the probability of a miss, summed over all outcomes.

GRID_P = np.concatenate([[1e-3, 5e-3], np.linspace(0.01, 0.99, 197), [0.995, 0.999]])


@pytest.mark.parametrize("delta", [0.05, 0.3])
@pytest.mark.parametrize("n", [50, 200])
@pytest.mark.parametrize("name", FULL)
def test_exact_miss_probability(name, n, delta):
    bounds = np.array([bound(name, coins(ones, n), n=n, code_bits=0.0, delta=delta) for ones in range(n + 1)])
    misses = [binom.pmf(np.arange(n + 1), n, p) @ (bounds < p) for p in GRID_P]
    assert max(misses) <= delta
    assert max(misses) > 0  # the bound can fail, so the line above says something


@pytest.mark.parametrize(("n", "m"), [(50, 20), (50, 100), (200, 40)])
@pytest.mark.parametrize("name", ["hoeffding_subsampled", "kl_inverse_subsampled"])
def test_exact_miss_probability_of_a_draw(name, n, m):
    delta, delta_sample = 0.3, 0.2
    bounds = np.array(
        [bound(name, coins(k, m), n=n, code_bits=0.0, delta=delta, delta_sample=delta_sample) for k in range(m + 1)]
    )
    drawn = binom.pmf(np.arange(m + 1)[None, :], m, np.arange(n + 1)[:, None] / n)  # given the ones among the n
    misses = [binom.pmf(np.arange(n + 1), n, p) @ drawn @ (bounds < p) for p in GRID_P]
    assert 0 < max(misses) <= delta


def test_exact_miss_probability_of_betting_on_a_draw():
    # Bets follow the order of the draw, so every sequence of outcomes is gone through.
    n, m, delta, delta_sample = 50, 10, 0.3, 0.2
    sequences = np.array(list(itertools.product([0.0, 1.0], repeat=m)))
    bounds = np.array(
        [
            bound("betting_subsampled", losses, n=n, code_bits=0.0, delta=delta, delta_sample=delta_sample)
            for losses in sequences
        ]
    )
    ones, shares = sequences.sum(axis=1), np.arange(n + 1)[:, None] / n
    drawn = shares**ones * (1 - shares) ** (m - ones)
    misses = [binom.pmf(np.arange(n + 1), n, p) @ drawn @ (bounds < p) for p in GRID_P]
    assert 0 < max(misses) <= delta


@pytest.mark.slow
def test_betting_on_a_draw_when_the_draw_can_miss_the_bad_documents():
    # A few documents lose everything. n is so large that only the draw is left to chance; the bound is below
    # the mean exactly when the draw contains too few of them.
    n, m, delta, delta_sample, replications = 10**9, 100, 0.1, 0.0999, 300
    random = np.random.default_rng(11)
    worst = []
    for bad in (0.01, 0.02, 0.1):
        mean = bad + (1 - bad) * 0.3
        missed = 0
        for _ in range(replications):
            losses = np.where(random.random(m) < bad, 1.0, 0.3)
            missed += (
                bound("betting_subsampled", losses, n=n, code_bits=0.0, delta=delta, delta_sample=delta_sample) < mean
            )
        worst.append(missed)
    assert max(worst) <= binom.ppf(0.999, replications, delta)
    assert max(worst) > 0


def test_the_order_of_a_draw_is_a_premise():
    """Losses in the order drawn, or sorted, fail as rarely as they may; an order made for the permutation is caught."""
    m, bad, replications, delta, delta_sample = 100, 0.1, 50, 0.1, 0.0999
    permutation = generator("order of the draw", m).permutation(m)
    missed = dict.fromkeys(("drawn", "sorted", "good ones first"), 0)
    for seed in range(replications):
        drawn = np.where(np.random.default_rng(seed).random(m) < bad, 1.0, 0.3)
        arranged = np.empty(m)
        arranged[permutation] = np.sort(drawn)
        for name, losses in zip(missed, (drawn, np.sort(drawn), arranged), strict=True):
            value = bound("betting_subsampled", losses, n=10**9, code_bits=0.0, delta=delta, delta_sample=delta_sample)
            missed[name] += value < bad + (1.0 - bad) * 0.3
    assert max(missed["drawn"], missed["sorted"]) <= binom.ppf(0.999, replications, delta)
    assert missed["good ones first"] == replications


@pytest.mark.parametrize("name", ["hoeffding", "kl_inverse", "betting"])
def test_exact_miss_probability_without_replacement(name):
    """The bound on the mean over N documents from a random subset of n, summed over all subsets."""
    documents, n, delta = 10, 7, 0.3
    populations = (coins(3, documents), coins(1, documents), np.linspace(0.0, 1.0, documents) ** 3)
    misses = []
    for losses_N in populations:
        values = [
            bound(name, np.array(drawn), n=n, code_bits=0.0, delta=delta)
            for drawn in itertools.combinations(losses_N, n)
        ]
        misses.append(np.mean(np.array(values) < losses_N.mean()))
    assert max(misses) <= delta


def test_a_held_out_bound_from_units_taken_until_they_hold_enough_documents():
    """The last unit tends to be large, and large units are bad ones here; the number of units is decided by them."""
    delta, replications, wanted, large = 0.5, 3000, 60, 0.08
    sizes, losses = np.array([1, 60]), np.array([0.2, 1.0])
    mean = large * losses[1] + (1.0 - large) * losses[0]

    @functools.cache
    def is_missed(small, bad):
        return held_out_bound(np.repeat(losses, [small, bad]), LossRange(0.0, 1.1), delta=delta) < mean

    random, misses, last = np.random.default_rng(7), 0, []
    for _ in range(replications):
        is_large = (random.random(wanted) < large).astype(int)
        taken = is_large[: np.searchsorted(np.cumsum(sizes[is_large]), wanted) + 1]
        misses += is_missed(int((1 - taken).sum()), int(taken.sum()))
        last.append(taken[-1])
    assert np.mean(last) > 10 * large  # where units end depends on their losses
    assert 0 < misses <= binom.ppf(0.999, replications, delta)


# (b) A memorizer: a document is a key, uniform on 64, and a fair bit repeated 16 times. A hypothesis predicts, for
# each key, one value of the bit with probability 0.9; the one that fits the sample best is taken, so C = 64 bits.
# Fresh bits are fair, so the true risk of every hypothesis is the mean of the two losses.

KEYS, TOKENS, CODE_BITS, DELTA = 64, 16, 64.0, 0.05
RIGHT, WRONG = -math.log2(0.9), -math.log2(0.1)
LOWER, UPPER = 0.1, 3.5
TRUE_RISK = 0.5 * (RIGHT + WRONG)


def memorizer_errors(random, n):
    """Documents whose bit the best hypothesis gets wrong: of every key, the minority."""
    keys, bits = random.integers(KEYS, size=n), random.integers(2, size=n)
    ones, counts = np.bincount(keys, bits, minlength=KEYS), np.bincount(keys, minlength=KEYS)
    return int(np.minimum(ones, counts - ones).sum())


def violations(name, *, documents, charged_bits, replications, repeats=1, seed=5):
    """How often the bound lies below the true risk; repeats: losses counted once a token, not once a document."""

    @functools.cache
    def value(errors):
        losses = np.repeat(coins(errors, documents, RIGHT, WRONG), repeats)
        return bound(name, losses, n=losses.size, code_bits=charged_bits, lower=LOWER, upper=UPPER, delta=DELTA)

    random = np.random.default_rng(seed)
    return sum(value(memorizer_errors(random, documents)) < TRUE_RISK for _ in range(replications))


def violations_of_a_draw(name, *, documents, m, charged_bits, replications, n=None, seed=6):
    random = np.random.default_rng(seed)
    count = 0
    for _ in range(replications):
        losses = random.permutation(coins(memorizer_errors(random, documents), documents, RIGHT, WRONG))
        drawn = losses[random.integers(documents, size=m)]
        value = bound(name, drawn, n=n or documents, code_bits=charged_bits, lower=LOWER, upper=UPPER, delta=DELTA)
        count += value < TRUE_RISK
    return count


@pytest.mark.parametrize("documents", [64, 400])
@pytest.mark.parametrize("name", FULL)
def test_a_memorizer_stays_within_delta(name, documents):
    count = violations(name, documents=documents, charged_bits=CODE_BITS, replications=1000)
    assert count <= binom.ppf(0.999, 1000, DELTA)


@pytest.mark.slow
@pytest.mark.parametrize("name", SUBSAMPLED)
def test_a_memorizer_scored_on_a_draw_stays_within_delta(name):
    count = violations_of_a_draw(name, documents=400, m=100, charged_bits=CODE_BITS, replications=1000)
    assert count <= binom.ppf(0.999, 1000, DELTA)


# (c) The same experiment must catch a wrong bound.


@pytest.mark.parametrize("name", FULL)
def test_an_uncharged_message_is_caught(name):
    assert violations(name, documents=64, charged_bits=0.0, replications=1000) > 500


@pytest.mark.parametrize("name", FULL)
def test_counting_tokens_as_documents_is_caught(name):
    assert violations(name, documents=64, charged_bits=CODE_BITS, replications=1000, repeats=TOKENS) > 500


@pytest.mark.slow
@pytest.mark.parametrize("name", SUBSAMPLED)
def test_wrong_bounds_from_a_draw_are_caught(name):
    draw = {"documents": 64, "m": 500, "replications": 150}
    assert violations_of_a_draw(name, **draw, charged_bits=0.0) > 75
    assert violations_of_a_draw(name, **draw, charged_bits=CODE_BITS, n=64 * TOKENS) > 75


# (d) The memorizer's record with all documents scored, under a document mixture. The network's loss is unbounded: it
# gives a wrong bit a probability of 1e-4. Fresh documents are fair, so the true risk is again a mean of two losses.

MIXTURE = DocumentMixture(4)
MIXED_RIGHT, MIXED_WRONG = MIXTURE.losses_bits(TOKENS * np.log([0.9999, 0.0001]), TOKENS, 2)
MIXED_RISK = 0.5 * (MIXED_RIGHT + MIXED_WRONG)


@functools.cache
def memorizer_record(errors, documents, test_errors, tests, charged_bits):
    losses, test = (coins(*counts, MIXED_RIGHT, MIXED_WRONG) for counts in ((errors, documents), (test_errors, tests)))
    return run_bounds(
        RunFacts(name="", budget=1, allocation="uniform", mode="uniform", ratio=None, seed=1),
        message=ChargedMessage(MIXTURE, {"symbols": charged_bits, "arm": 0, "extra": 0.0}, {}, {}),
        scored=ScoredDocuments(losses, np.zeros((documents, 1)), (1,)),
        held_out=HeldOutLosses(test, test, test),
        loss=BoundedLoss((MIXTURE,), 2, TOKENS, Premises(documents, DELTA)),
    ).as_json()


def misses_of_the_record(key, *, documents, charged_bits, tests=20, replications=1000):
    random = np.random.default_rng(8)
    misses = 0
    for _ in range(replications):
        errors, test_errors = memorizer_errors(random, documents), int(random.binomial(tests, 0.5))
        misses += memorizer_record(errors, documents, test_errors, tests, charged_bits)[key] < MIXED_RISK
    return misses


@pytest.mark.slow
@pytest.mark.parametrize("key", ["bound_value", "bound_all_runs", "bound_held_out"])
def test_the_full_sample_record_of_a_memorizer_stays_within_delta(key):
    assert misses_of_the_record(key, documents=400, charged_bits=CODE_BITS) <= binom.ppf(0.999, 1000, DELTA)


def test_a_record_that_charges_nothing_is_caught():
    assert misses_of_the_record("bound_value", documents=64, charged_bits=0.0) > 500
