"""Coded unigram and bigram: decoders, probabilities, pruning."""

import itertools

import numpy as np
import pytest

from sublora.yardsticks import unigram
from sublora.yardsticks.adaptive_code import AdaptiveModel, BitCounter, MessageReader, MessageWriter
from sublora.yardsticks.bigram import LARGEST_TILT, Bigram, BigramSearch, Tables
from sublora.yardsticks.compute import frozen_message
from sublora.yardsticks.targets import PairShares, TargetBatch
from sublora.yardsticks.unigram import FLOOR_DEPTHS, LEVEL_COUNTS, STEPS_OCTAVES, Unigram

RANDOM_BITS = np.random.default_rng(5).integers(0, 2, 200).astype(np.uint8)


def message_of(model):
    writer = MessageWriter()
    model.write(writer)
    return writer.finish()


def bits_of(model):
    counter = BitCounter()
    model.write(counter)
    return counter.bits


def zipf(vocab_size, seed=0):
    shares = 1.0 / np.random.default_rng(seed).permutation(vocab_size).astype(float).clip(1)
    return shares / shares.sum()


def random_unigram(vocab_size, rng):
    levels_index = int(rng.integers(len(LEVEL_COUNTS)))
    levels_V = rng.integers(0, LEVEL_COUNTS[levels_index] + 1, vocab_size)
    return Unigram(int(rng.integers(len(STEPS_OCTAVES))), levels_index, int(rng.integers(FLOOR_DEPTHS)), levels_V)


def random_bigram(vocab_size, rng, density=0.1):
    contexts_E, successors_E = np.nonzero(rng.random((vocab_size, vocab_size)) < density * rng.random((vocab_size, 1)))
    tilts_E = rng.integers(1, LARGEST_TILT + 1, len(contexts_E)) * rng.choice([-1, 1], len(contexts_E))
    return Bigram(random_unigram(vocab_size, rng), int(rng.integers(4)), Tables(contexts_E, successors_E, tilts_E))


def every_pair(vocab_size):
    """A batch whose target t of context c is at place c V + t."""
    contexts_S, targets_S = (part.ravel() for part in np.indices((vocab_size, vocab_size)))
    return TargetBatch(targets_S, contexts_S, np.array([0, vocab_size**2]))


def markov_pairs(transitions_VV, documents=1000, targets=1_000_000):
    """Exact statistics of a Markov chain's stationary pairs."""
    values, vectors = np.linalg.eig(transitions_VV.T)
    stationary_V = np.real(vectors[:, np.argmax(np.real(values))])
    stationary_V = stationary_V / stationary_V.sum()
    tokens = np.arange(len(stationary_V))
    return stationary_V, PairShares(tokens, tokens, stationary_V[:, None] * transitions_VV, stationary_V, targets)


def loss_of(model, shares_VV):
    log_p_VV = model.log_probabilities(every_pair(len(shares_VV))).reshape(shares_VV.shape)
    return -(shares_VV * log_p_VV).sum() / np.log(2.0)


def test_adaptive_code_round_trip_and_end():
    rng = np.random.default_rng(1)
    symbols, sizes = rng.integers(0, 9, 1500) // 2, [1, 2, 255, 256, 257, 50257, 1 << 20]
    writer, counter, model, other = MessageWriter(), BitCounter(), AdaptiveModel(5), AdaptiveModel(5)
    for sink, learner in ((writer, model), (counter, other)):
        for symbol in symbols.tolist():
            sink.put(learner, symbol)
        for size in sizes:
            sink.put_uniform(size - 1, size)
    message = writer.finish()
    assert counter.bits <= len(message) <= counter.bits + 4.0
    reader, model = MessageReader(np.concatenate([message, RANDOM_BITS])), AdaptiveModel(5)
    assert [reader.get(model) for _ in symbols] == symbols.tolist()
    assert [reader.get_uniform(size) for size in sizes] == [size - 1 for size in sizes]
    assert reader.finish() == len(message)


def test_adaptive_models_follow_a_drift():
    counter, model = BitCounter(), AdaptiveModel(2)
    for symbol in [0] * 2000 + [1] * 2000:
        counter.put(model, symbol)
    assert counter.bits < 1000  # with counts that only grow: 4,000


@pytest.mark.parametrize("vocab_size", [1, 2, 257, 3000])
def test_unigram_is_what_its_message_says(vocab_size):
    rng = np.random.default_rng(vocab_size)
    model = random_unigram(vocab_size, rng)
    message = message_of(model)
    reader = MessageReader(np.concatenate([message, RANDOM_BITS]))
    decoded = Unigram.read(reader, vocab_size)
    assert reader.finish() == len(message)
    assert np.array_equal(decoded.log_p_V, model.log_p_V)
    assert np.array_equal(message_of(decoded), message)
    assert np.exp(decoded.log_p_V).sum() == pytest.approx(1.0, abs=1e-12)
    assert bits_of(model) <= len(message) + 0.1


@pytest.mark.parametrize("vocab_size", [2, 12, 40])
def test_bigram_is_what_its_message_says(vocab_size):
    rng = np.random.default_rng(vocab_size)
    model = random_bigram(vocab_size, rng)
    message = message_of(model)
    reader = MessageReader(np.concatenate([message, RANDOM_BITS]))
    decoded = Bigram.read(reader, vocab_size)
    assert reader.finish() == len(message)
    batch = every_pair(vocab_size)
    assert np.array_equal(decoded.log_probabilities(batch), model.log_probabilities(batch))
    assert np.array_equal(message_of(decoded), message)


def test_bigram_sums_to_one_in_every_context_and_backs_off():
    rng = np.random.default_rng(3)
    model = random_bigram(30, rng, density=0.02)
    p_VV = np.exp(model.log_probabilities(every_pair(30))).reshape(30, 30)
    assert np.allclose(p_VV.sum(axis=1), 1.0, rtol=0.0, atol=1e-12)
    listed = set(model.unigram.ranking[model.tables.context_ranks_E].tolist())
    assert 0 < len(listed) < 30
    for context in set(range(30)) - listed:
        assert np.allclose(p_VV[context], np.exp(model.unigram.log_p_V), rtol=1e-12)


def test_no_message_is_the_beginning_of_another():
    rng = np.random.default_rng(4)
    models = [random_bigram(3, rng, 0.5) for _ in range(40)] + [random_bigram(3, rng, 0.0) for _ in range(5)]
    messages = {tuple(frozen_message(model, 2, 5).tolist()) for model in models}
    for one, other in itertools.permutations(messages, 2):
        assert other[: len(one)] != one


def test_bits_that_are_no_message_are_refused():
    message = message_of(random_bigram(20, np.random.default_rng(6)))
    for bits in (message[: len(message) // 2], message[:-1], np.ones(300, dtype=np.uint8), message[:0]):
        with pytest.raises(ValueError):  # noqa: PT012
            reader = MessageReader(bits)
            Bigram.read(reader, 20)
            reader.finish()


def test_unigram_comes_near_the_entropy_of_a_large_sample():
    shares_V = zipf(257)
    entropy = -(shares_V * np.log2(shares_V)).sum()
    losses = [-(shares_V * model.log_p_V).sum() / np.log(2.0) for model in unigram.candidates(shares_V, 10**6)]
    assert min(losses) >= entropy - 1e-12
    assert min(losses) == pytest.approx(entropy, abs=0.003)


def test_unseen_tokens_keep_some_probability():
    shares_V = np.zeros(257)
    shares_V[:3] = 0.5, 0.3, 0.2
    for model in unigram.candidates(shares_V, 100):
        p_V = np.exp(model.log_p_V)
        assert p_V.min() > 1e-7
        assert p_V.sum() == pytest.approx(1.0, abs=1e-12)


def test_pruning_pays_its_bits_and_a_high_price_leaves_the_unigram():
    transitions_VV = np.random.default_rng(8).dirichlet(np.full(20, 0.1), size=20)
    shares_V, pairs = markov_pairs(transitions_VV)
    base = unigram.quantized(shares_V, 1, LEVEL_COUNTS.index(32), 1e-6)
    before = loss_of(base, pairs.shares_KL)
    table_bits = []
    for price in (1e-5, 1e-4, 1e-3, 1e-2, 1.0):
        model = BigramSearch(pairs, base, price).bigram(1, price)
        after = loss_of(model, pairs.shares_KL)
        table_bits.append(bits_of(model) - bits_of(base))
        # 6 bits: what an empty list costs, and a prune's reckoning.
        assert after + price * table_bits[-1] <= before + 6 * price
    assert table_bits == sorted(table_bits, reverse=True)
    assert len(model.tables.tilts_E) == 0


def test_cheap_bits_bring_the_bigram_to_the_conditional_entropy():
    transitions_VV = np.random.default_rng(9).dirichlet(np.full(12, 0.5), size=12)
    shares_V, pairs = markov_pairs(transitions_VV)
    entropy = -(pairs.shares_KL * np.log2(transitions_VV)).sum()
    model = BigramSearch(pairs, unigram.quantized(shares_V, 0, LEVEL_COUNTS.index(64), 1e-6), 1e-8).bigram(0, 1e-8)
    assert loss_of(model, pairs.shares_KL) == pytest.approx(entropy, abs=0.02)


def test_a_sure_successor_is_listed():
    transitions_VV = np.full((26, 26), 1 / 26)
    transitions_VV[16] = 1e-6 / 25
    transitions_VV[16, 20] = 1.0 - 1e-6
    shares_V, pairs = markov_pairs(transitions_VV)
    model = BigramSearch(pairs, unigram.quantized(shares_V, 1, 5, 1e-6), 1e-3).bigram(1, 1e-3)
    ranking = model.unigram.ranking
    assert ranking[model.tables.context_ranks_E].tolist() == [16]
    assert ranking[model.tables.successor_ranks_E].tolist() == [20]
    pair = TargetBatch(np.array([20]), np.array([16]), np.array([0, 1]))
    assert np.exp(model.log_probabilities(pair)[0]) > 0.9
