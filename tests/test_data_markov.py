import itertools
import math

import numpy as np
import pytest
from data_samples import markov_corpus
from pydantic import ValidationError

from sublora import config
from sublora.data.corpora.markov import FIRST_SYMBOL, MarkovReader, MarkovSource
from sublora.system.errors import UserError


def symbols_of(documents):
    return [np.frombuffer(document.encode("ascii"), dtype=np.uint8) - FIRST_SYMBOL for document in documents]


def probability(source, word):
    value = source.stationary_K[word[0]]
    for before, after in itertools.pairwise(word):
        value *= source.transition_KK[before, after]
    return value


def words(source, length):
    return [probability(source, word) for word in itertools.product(range(source.settings.symbols), repeat=length)]


@pytest.mark.parametrize("symbols", [2, 5, 94])
def test_stationary_distribution(symbols):
    source = MarkovSource(markov_corpus(symbols=symbols))
    np.testing.assert_allclose(source.transition_KK.sum(axis=1), 1.0, rtol=1e-12)
    np.testing.assert_allclose(source.stationary_K @ source.transition_KK, source.stationary_K, atol=1e-13)
    far = np.linalg.matrix_power(source.transition_KK, 1 << 20)  # any start forgets itself
    np.testing.assert_allclose(far, np.tile(source.stationary_K, (symbols, 1)), atol=1e-8)


def test_entropy_rate_equals_the_growth_of_block_entropies():
    source = MarkovSource(markov_corpus(symbols=3))
    entropies = [-sum(p * math.log2(p) for p in words(source, length)) for length in range(1, 7)]
    assert entropies[0] == pytest.approx(source.symbol_entropy_bits, abs=1e-12)
    np.testing.assert_allclose(np.diff(entropies), source.entropy_rate_bits, atol=1e-10)


def test_entropy_rate_of_uniform_rows_is_log2_of_the_alphabet():
    source = MarkovSource(markov_corpus(symbols=8, concentration=1e12))
    assert source.entropy_rate_bits == pytest.approx(3.0, abs=1e-6)


def test_coincidence_equals_enumeration():
    source = MarkovSource(markov_corpus(symbols=3))
    for length in (1, 2, 6):
        expected = math.log2(sum(p * p for p in words(source, length)))
        assert source.log2_coincidence(length) == pytest.approx(expected, abs=1e-9)


def test_documents_follow_the_chain():
    source = MarkovSource(markov_corpus(symbols=5))
    documents = symbols_of(source.fresh_documents(1000, seed=1))
    observed = np.zeros((5, 5))
    for document in documents:
        np.add.at(observed, (document[:-1], document[1:]), 1)
    rows = observed.sum(axis=1, keepdims=True)
    spread = np.sqrt(source.transition_KK * (1 - source.transition_KK) / rows)
    assert np.all(np.abs(observed / rows - source.transition_KK) <= 5 * spread + 1e-12)
    for position in (0, 199):
        shares = np.bincount([document[position] for document in documents], minlength=5) / 1000
        spread = np.sqrt(source.stationary_K * (1 - source.stationary_K) / 1000)
        assert np.all(np.abs(shares - source.stationary_K) <= 5 * spread)


def test_log_likelihood_of_fresh_documents_is_the_entropy_rate():
    source = MarkovSource(markov_corpus(symbols=6))
    logs = -np.log2(source.transition_KK)
    means = np.array([logs[d[:-1], d[1:]].mean() for d in symbols_of(source.fresh_documents(1000, seed=2))])
    error = means.std(ddof=1) / math.sqrt(len(means))
    assert abs(means.mean() - source.entropy_rate_bits) < 4 * error
    assert error < 0.01 * source.entropy_rate_bits


def test_lengths_are_uniform_on_the_stated_range():
    source = MarkovSource(markov_corpus(min_length=200, max_length=204))
    counts = np.bincount([len(d) for d in source.fresh_documents(5000, seed=1)], minlength=205)
    assert counts[:200].sum() == 0
    assert ((counts[200:] - 1000) ** 2 / 1000).sum() < 18.5  # chi-square, 4 degrees, 0.1 %


def test_corpus_is_determined_by_its_seed_and_fresh_documents_are_others():
    settings = markov_corpus(documents=600)
    corpus = [d for batch in MarkovReader(settings).batches() for d in batch.read().documents]
    assert len(corpus) == 600
    assert corpus == [d for batch in MarkovReader(settings).batches() for d in batch.read().documents]
    other = [d for b in MarkovReader(markov_corpus(documents=600, seed=4)).batches() for d in b.read().documents]
    source = MarkovSource(settings)
    fresh, fresher = source.fresh_documents(600, seed=0), source.fresh_documents(600, seed=1)
    assert len(set(corpus) | set(fresh) | set(fresher) | set(other)) == 4 * 600
    assert source.fresh_documents(520, seed=0) == fresh[:520]


def test_units_of_batches_add_up():
    reader = MarkovReader(markov_corpus(documents=1030))
    assert sum(map(len, reader.batches())) == reader.total == 1030


def test_documents_that_could_coincide_are_refused():
    with pytest.raises(UserError, match=r"min_length 10: two of 50 documents may coincide .* raise min_length"):
        MarkovReader(markov_corpus(min_length=10))


@pytest.mark.parametrize(
    ("corpus", "data", "message"),
    [
        ({"min_length": 301}, {}, "min_length 301 exceeds max_length 300"),
        ({"symbols": 95}, {}, "less than or equal to 94"),
        ({}, {"tokenizer": "gpt2"}, "a markov corpus needs tokenizer 'bytes', found 'gpt2'"),
        ({}, {"min_characters": 201}, "min_characters 201 exceeds corpus.min_length 200"),
        ({}, {"min_tokens": 201}, "min_tokens 201 exceeds corpus.min_length 200"),
    ],
)
def test_settings_that_make_no_sense_are_refused(corpus, data, message):
    values = {
        "name": "x",
        "unit": "document",
        "tokenizer": "bytes",
        "min_characters": 1,
        "max_characters": None,
        "min_tokens": 1,
        "val_documents": 1,
        "test_documents": 1,
        "shuffle_seed": 0,
        "workers": 1,
        "near_duplicates": False,
    }
    with pytest.raises(ValidationError, match=message):
        config.Data(corpus=markov_corpus(**corpus), **(values | data))
