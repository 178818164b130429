"""The adaptive order-3 model against its own formula, written one token at a time."""

from collections import defaultdict

import numpy as np
import pytest

from sublora.yardsticks.order3 import DISCOUNTS, ORDER, STRENGTH, Order3
from sublora.yardsticks.targets import TargetBatch


def log_probabilities(documents, vocab_size):
    """Log-probabilities of the targets of each document, a list of arrays."""
    batch = TargetBatch.of([np.array(document) for document in documents], vocab_size - 1)
    return np.split(Order3(vocab_size).log_probabilities(batch), batch.offsets[1:-1])


def reference(document, vocab_size):
    """ln p of the document's targets from counts in dictionaries, token after token."""
    counts = [defaultdict(lambda: defaultdict(int)) for _ in range(ORDER + 1)]
    history = [vocab_size - 1] * ORDER
    logs = []
    for target in [*document, vocab_size - 1]:
        p, contexts = 1.0 / vocab_size, [tuple(history[len(history) - k :]) for k in range(ORDER + 1)]
        for k, context in enumerate(contexts):
            seen = counts[k][context]
            own = max(seen.get(target, 0) - DISCOUNTS[k], 0.0)
            p = (own + (DISCOUNTS[k] * len(seen) + STRENGTH) * p) / (sum(seen.values()) + STRENGTH)
        logs.append(np.log(p))
        for k in range(ORDER, -1, -1):
            new = target not in counts[k][contexts[k]]
            counts[k][contexts[k]][target] += 1
            if not new:
                break
        history.append(target)
    return np.array(logs)


@pytest.mark.parametrize("vocab_size", [2, 5, 257, 50257])
def test_equals_the_formula_token_by_token(vocab_size):
    rng = np.random.default_rng(vocab_size)
    documents = [rng.integers(0, min(vocab_size - 1, 4), length) for length in (1, 2, 3, 60, 150)]
    documents.append(np.arange(60) % (vocab_size - 1))
    for found, document in zip(log_probabilities(documents, vocab_size), documents, strict=True):
        assert np.allclose(found, reference(document.tolist(), vocab_size), rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("vocab_size", [4, 257])
def test_sums_to_one_at_every_step(vocab_size):
    """Each prefix of a document followed by every symbol in turn."""
    document = np.random.default_rng(1).integers(0, 3, 40)
    for length in range(0, 41, 5):
        continued = [np.append(document[:length], symbol) for symbol in range(vocab_size)]
        last = [found[length] for found in log_probabilities(continued, vocab_size)]
        assert np.exp(last).sum() == pytest.approx(1.0, abs=1e-12)


def test_starts_anew_with_every_document():
    rng = np.random.default_rng(2)
    documents = [rng.integers(0, 20, length) for length in rng.integers(1, 80, 30)]
    together = log_probabilities(documents, 257)
    for i in (0, 7, 29):
        assert np.array_equal(together[i], log_probabilities([documents[i]], 257)[0])
    copies = log_probabilities([documents[5]] * 3, 257)
    assert np.array_equal(copies[0], copies[2])


def test_first_token_is_a_guess_and_repetition_is_learned():
    (found,) = log_probabilities([np.tile([7, 3, 200, 45], 100)], 257)
    assert found[0] == pytest.approx(-np.log(257))
    assert -found[200:400].mean() / np.log(2.0) < 0.2
