"""Smoothed predictors: proper, bounded as claimed, and computed as defined."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sublora.bounds.smoothing import (
    LARGEST_A,
    LARGEST_K,
    SMALLEST_A,
    DocumentMixture,
    TokenSmoothing,
    document_losses_bits,
    parse_smoothing,
)

CANDIDATES = [TokenSmoothing(1e-4), TokenSmoothing(0.1), DocumentMixture(1), DocumentMixture(8), DocumentMixture(50)]
LOG_P = st.one_of(st.just(0.0), st.just(-math.inf), st.floats(-200.0, 0.0))
DOCUMENTS = st.lists(st.lists(LOG_P, min_size=2, max_size=12), min_size=1, max_size=6)


def flat(documents):
    """(log_p_S, offsets) of lists of log-probabilities."""
    return np.concatenate(documents), np.concatenate([[0], np.cumsum([len(document) for document in documents])])


@given(st.one_of(st.floats(SMALLEST_A, LARGEST_A).map(TokenSmoothing),
                 st.integers(1, LARGEST_K).map(DocumentMixture)))  # fmt: skip
def test_a_name_says_everything(smoothing):
    assert parse_smoothing(smoothing.name) == smoothing


def test_names_are_canonical():
    assert [each.name for each in CANDIDATES[:4]] == ["token(0.0001)", "token(0.1)", "document(1)", "document(8)"]
    assert parse_smoothing(" token( 1e-1 )").name == "token(0.1)"
    assert TokenSmoothing(np.float64(0.1)).name == "token(0.1)"


WRONG_NAMES = (
    "", "0.1", "token", "token(0)", "token(1.0)", "token(nan)", "token(x)", "token(0.1) document(8)", "document(0)",
    "document(1.5)", "document(65)", "document(-3)", "guess(1)",
)  # fmt: skip


@pytest.mark.parametrize("text", WRONG_NAMES)
def test_other_names_are_refused_in_one_line(text):
    with pytest.raises(ValueError, match="expected token") as caught:
        parse_smoothing(text)
    assert repr(text) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("a", [0.0, 1.0, -0.1, math.nan])
def test_impossible_values_of_a_are_refused(a):
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        TokenSmoothing(a)


@pytest.mark.parametrize("k", [0, LARGEST_K + 1, 2.5, True, -1])
def test_impossible_values_of_k_are_refused(k):
    with pytest.raises(ValueError, match="k must be a whole number from 1 to 64"):
        DocumentMixture(k)


@pytest.mark.parametrize("smoothing", CANDIDATES)
def test_impossible_populations_are_refused(smoothing):
    with pytest.raises(ValueError, match="vocab_size"):
        smoothing.loss_range_bits(0, 2)
    with pytest.raises(ValueError, match="min_targets"):
        smoothing.loss_range_bits(257, 0)


@pytest.mark.parametrize("a", [1e-4, 0.1, 0.5])
def test_the_range_of_token_smoothing_is_reached_by_certainty_and_by_impossibility(a):
    smoothing = TokenSmoothing(a)
    lower, upper = smoothing.loss_range_bits(257, 9)
    assert lower == pytest.approx(-math.log2(1 - a + a / 257), abs=1e-15)
    assert upper == pytest.approx(math.log2(257 / a), abs=1e-12)
    losses = smoothing.document_losses_bits(*flat([np.zeros(9), np.full(9, -np.inf)]), 257)
    assert losses == pytest.approx([lower, upper], abs=1e-12)


@pytest.mark.parametrize("k", [1, 8, 50])
def test_the_range_of_the_mixture_is_reached_by_an_impossible_shortest_document(k):
    mixture = DocumentMixture(k)
    lower, upper = mixture.loss_range_bits(257, 9)
    assert (lower, upper) == (0.0, math.log2(257) + k / 9)
    losses = mixture.document_losses_bits(*flat([np.full(9, -np.inf), np.full(10, -np.inf)]), 257)
    assert losses == pytest.approx([upper, math.log2(257) + k / 10], abs=1e-12)
    certain = mixture.losses_bits(0.0, np.array([9, 90, 10**6]), 257)
    assert (certain >= 0).all() and certain[-1] <= certain[0] <= -math.log2(1 - 2.0**-k) / 9
    assert certain[-1] <= 1e-6


@settings(deadline=None, max_examples=200)
@given(DOCUMENTS, st.sampled_from(CANDIDATES), st.sampled_from([2, 257, 50_257]))
@example([[-math.inf] * 2, [0.0] * 2], CANDIDATES[2], 2)
def test_no_document_leaves_the_range(documents, smoothing, vocab_size):
    losses = smoothing.document_losses_bits(*flat(documents), vocab_size)
    lower, upper = smoothing.loss_range_bits(vocab_size, min(map(len, documents)))
    assert losses.dtype == np.float64 and losses.shape == (len(documents),)
    slack = 1e-12 * (upper - lower)
    assert lower - slack <= losses.min() and losses.max() <= upper + slack


@settings(deadline=None, max_examples=100)
@given(st.lists(st.lists(st.floats(-5.0, 0.0), min_size=1, max_size=8), min_size=1, max_size=5), st.integers(1, 20))
def test_the_mixture_is_what_exact_fractions_say(documents, k):
    vocab_size, epsilon = 257, Fraction(1, 2**k)
    losses = DocumentMixture(k).document_losses_bits(*flat(documents), vocab_size)
    weights = DocumentMixture(k).responsibility(
        [math.fsum(document) for document in documents], list(map(len, documents)), vocab_size
    )
    for document, loss, weight in zip(documents, losses, weights, strict=True):
        probability = math.prod(Fraction(math.exp(log_p)) for log_p in document)
        mixed = (1 - epsilon) * probability + epsilon * Fraction(1, vocab_size ** len(document))
        bits = math.log2(mixed.denominator) - math.log2(mixed.numerator)
        assert loss == pytest.approx(bits / len(document), rel=1e-9, abs=1e-12)
        assert weight == pytest.approx(float((1 - epsilon) * probability / mixed), rel=1e-9)


def test_token_smoothing_is_the_mean_over_targets_of_its_definition():
    """To the bit: the numbers of token smoothing are pinned elsewhere and must not move."""
    random = np.random.default_rng(1)
    lengths = random.integers(1, 60, size=40)
    log_p, offsets = (
        random.normal(-3, 3, size=lengths.sum()).astype(np.float32),
        np.concatenate([[0], np.cumsum(lengths)]),
    )
    p = np.exp(np.minimum(log_p.astype(np.float64), 0.0))
    for a in (1e-4, 0.1, 0.5):
        expected = np.add.reduceat(-np.log2((1.0 - a) * p + a / 257), offsets[:-1]) / np.diff(offsets)
        losses = TokenSmoothing(a).document_losses_bits(log_p, offsets, 257)
        assert losses.tobytes() == expected.tobytes()
        naive = [np.mean(-np.log2((1 - a) * p[i:j] + a / 257)) for i, j in itertools.pairwise(offsets)]
        assert losses == pytest.approx(naive, rel=1e-12)


def test_candidates_side_by_side():
    log_p, offsets = flat([[-1.0, -2.0], [-0.5, -9.0, -3.0]])
    losses_DA = document_losses_bits(CANDIDATES, log_p, offsets, 257)
    assert losses_DA.shape == (2, len(CANDIDATES))
    for column, smoothing in zip(losses_DA.T, CANDIDATES, strict=True):
        assert (column == smoothing.document_losses_bits(log_p, offsets, 257)).all()


@pytest.mark.parametrize("smoothing", [TokenSmoothing(0.1), DocumentMixture(8)])
@pytest.mark.parametrize("offsets", [[0, 2], [1, 3], [0, 2, 2, 3], [0], [0, 2, 1, 3]])
def test_documents_that_do_not_cover_the_targets_are_refused(smoothing, offsets):
    with pytest.raises(ValueError, match="offsets must"):
        smoothing.document_losses_bits(np.zeros(3), np.array(offsets), 257)


# A network over three tokens, the last of which ends a document: any table of conditional probabilities will do.

VOCAB, END, LENGTH = 3, 2, 5


def network(prefix):
    """p(. | prefix), shape (VOCAB,), a different distribution for every prefix."""
    weights = np.random.default_rng([7, *prefix, len(prefix)]).random(VOCAB) ** 3 + 1e-3
    return weights / weights.sum()


def log_probability(tokens):
    return math.fsum(math.log(network(tokens[:t])[token]) for t, token in enumerate(tokens))


def mixture_probability(mixture, tokens):
    return 2.0 ** -(len(tokens) * mixture.losses_bits(log_probability(tokens), len(tokens), VOCAB))


@pytest.mark.parametrize("k", [1, 3, 8])
def test_the_mixture_sums_to_one_over_all_strings_of_a_length(k):
    strings = itertools.product(range(VOCAB), repeat=LENGTH)
    total = math.fsum(mixture_probability(DocumentMixture(k), string) for string in strings)
    assert total == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("k", [1, 3, 8])
def test_the_mixture_predicts_token_by_token(k):
    """Its next-token form weighs the network by the posterior, sums to 1 at every step, and its product is q."""
    mixture = DocumentMixture(k)
    assert mixture.responsibility(0.0, 0, VOCAB) == pytest.approx(1 - 2.0**-k, rel=1e-15)
    for tokens in itertools.product(range(VOCAB), repeat=LENGTH):
        product = 1.0
        for t, token in enumerate(tokens):
            r = mixture.responsibility(log_probability(tokens[:t]), t, VOCAB)
            predicted = r * network(tokens[:t]) + (1 - r) / VOCAB
            assert predicted.sum() == pytest.approx(1.0, abs=1e-12)
            product *= predicted[token]
        assert product == pytest.approx(mixture_probability(mixture, tokens), rel=1e-12)


def test_documents_that_end_themselves_and_those_still_open_sum_to_one():
    """With the closing end-of-text as a target, q is a distribution over documents of any length."""
    mixture, closed = DocumentMixture(3), 0.0
    for length in range(1, LENGTH + 1):
        for body in itertools.product(range(END), repeat=length - 1):
            closed += mixture_probability(mixture, (*body, END))
    still_open = math.fsum(mixture_probability(mixture, body) for body in itertools.product(range(END), repeat=LENGTH))
    assert closed + still_open == pytest.approx(1.0, abs=1e-12)


@given(st.floats(-3000.0, 0.0), st.integers(1, 500), st.integers(1, 60))
def test_the_mixture_costs_little_more_than_the_better_of_its_parts(log_p, targets, k):
    loss = DocumentMixture(k).losses_bits(log_p, targets, 257)
    network_bits, guessing_bits = -log_p / math.log(2) / targets, math.log2(257)
    assert loss <= network_bits - math.log2(1 - 2.0**-k) / targets + 1e-9
    assert loss <= guessing_bits + k / targets + 1e-9
    assert loss >= min(network_bits, guessing_bits) - 1e-9


@given(st.floats(-3000.0, -1e-3), st.integers(1, 500), st.integers(1, 60))
def test_the_responsibility_is_the_slope_of_the_loss(log_p, targets, k):
    mixture, step = DocumentMixture(k), 1e-4
    rise, fall = (mixture.losses_bits(log_p + shift, targets, 257) for shift in (step, -step))
    slope = (fall - rise) * targets * math.log(2) / (2 * step)
    assert slope == pytest.approx(mixture.responsibility(log_p, targets, 257), abs=1e-5)


def test_extreme_documents_stay_exact():
    mixture = DocumentMixture(8)
    log_p, targets = np.array([-1e9, -np.inf, -1e-9, 0.0]), np.array([10**6, 5, 10**6, 5])
    losses, weights = mixture.losses_bits(log_p, targets, 257), mixture.responsibility(log_p, targets, 257)
    assert np.isfinite(losses).all()
    assert losses[:2] == pytest.approx(math.log2(257) + 8 / targets[:2], rel=1e-12)
    assert losses[2] == pytest.approx((1e-9 / math.log(2) - math.log2(1 - 2.0**-8)) / 10**6, rel=1e-9)
    assert weights[:2].tolist() == [0.0, 0.0]
    assert weights[2] == 1.0 and 1 - 1e-12 < weights[3] < 1
