"""From a prepared dataset to yardsticks.json."""

import hashlib
import json
from collections import Counter

import numpy as np
import pytest

from sublora.bounds.inequalities import betting, betting_subsampled
from sublora.bounds.premises import BoundedLoss, Premises
from sublora.bounds.smoothing import SCORE_TOLERANCE_BITS, DocumentMixture, TokenSmoothing
from sublora.data.dataset import TokenDataset
from sublora.data.dataset_files import FILES, Meta
from sublora.system.errors import UserError
from sublora.yardsticks import targets
from sublora.yardsticks.compute import compute_yardsticks
from sublora.yardsticks.order3 import Order3
from sublora.yardsticks.record import (
    YARDSTICKS_FORMAT,
    Scored,
    Yardsticks,
    drawn_units,
    guessing_row,
    read_yardsticks,
    write_yardsticks,
    yardstick_row,
)
from sublora.yardsticks.targets import TargetBatch, batches, losses_bits

SMOOTHING = (TokenSmoothing(0.1), TokenSmoothing(0.3), DocumentMixture(4), DocumentMixture(16))
VOCAB_SIZE = 12
EOT = VOCAB_SIZE - 1
TRANSITIONS = np.random.default_rng(0).dirichlet(np.full(EOT, 0.2), size=VOCAB_SIZE)
MIN_LENGTH = 30


def sample_documents(count, rng, longest=60):
    """Documents of a Markov chain that starts from the end-of-text token, with lengths drawn uniformly."""
    lengths, cumulative = rng.integers(MIN_LENGTH, longest, count), np.cumsum(TRANSITIONS, axis=1)
    tokens, uniform = np.full((count, longest), EOT), rng.random((count, longest))
    before = np.full(count, EOT)
    for t in range(longest):
        before = tokens[:, t] = np.minimum((cumulative[before] < uniform[:, t, None]).sum(axis=1), EOT - 1)
    return [row[:length] for row, length in zip(tokens, lengths, strict=True)]


def make_dataset(folder, splits, vocab_size=VOCAB_SIZE):
    """A dataset's files from documents by split."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = {}
    for split, documents in splits.items():
        targets_S = TargetBatch.of(documents, vocab_size - 1).targets_S
        targets_S.astype("<u2").tofile(folder / f"{split}.bin")
        counts[split] = {"documents": len(documents), "tokens": len(targets_S)}
    lengths = np.array([len(document) for document in splits["train"]])
    np.save(folder / "doc_lengths.npy", lengths)
    np.save(folder / "eot_indices.npy", np.cumsum(lengths + 1) - 1)
    shortest = min(len(document) for documents in splits.values() for document in documents)
    meta = {
        "tokenizer": "bytes",
        "vocab_size": vocab_size,
        "eot_id": vocab_size - 1,
        "splits": counts,
        "files": {
            name: {"bytes": 0, "sha256": hashlib.sha256(f"{folder.name} {name}".encode()).hexdigest()} for name in FILES
        },
        "documents": {},
        "excluded_texts": None,
        "provenance": {},
        "settings": {"min_tokens": shortest, "unit": "document"},
    }
    return TokenDataset(folder, Meta.model_validate(meta))


def markov_dataset(folder, seed=1, documents=1500):
    rng = np.random.default_rng(seed)
    sizes = {"train": documents, "val": 60, "test": 60}
    return make_dataset(folder, {split: sample_documents(size, rng) for split, size in sizes.items()})


def loss_of(dataset, *, min_targets=MIN_LENGTH + 1, **changes):
    values = {"n_units": dataset.n_units, "delta": 0.05, "m_units": 300, "delta_sample": 0.04}
    return BoundedLoss(SMOOTHING, dataset.vocab_size, min_targets, Premises(**(values | changes)))


def computed(dataset, loss=None, test_documents=40):
    rows = compute_yardsticks(dataset, loss or loss_of(dataset), val_documents=50, test_documents=test_documents)
    facts = {"format": YARDSTICKS_FORMAT, "data_hash": dataset.data_hash, "base_sha256": "b5" * 32, "settings": {}}
    return Yardsticks(**facts, rows=rows)


def without_seconds(contents):
    return {name: row.model_dump(exclude={"seconds"}) for name, row in contents.rows.items()}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return markov_dataset(tmp_path_factory.mktemp("data") / "markov")


@pytest.fixture(scope="module")
def contents(dataset):
    return computed(dataset)


@pytest.mark.parametrize("block", [1, 37, 1 << 20])
def test_statistics_equal_a_count_by_hand(tmp_path, monkeypatch, block):
    monkeypatch.setattr(targets, "BLOCK_TOKENS", block)
    documents = sample_documents(25, np.random.default_rng(3))
    dataset = make_dataset(tmp_path, {"train": documents, "val": documents[:1], "test": documents[:1]})
    tokens, pairs = Counter(), Counter()
    for document in documents:
        own = [*document.tolist(), EOT]
        for before, target in zip([EOT, *own], own, strict=False):
            tokens[target] += 1 / len(own) / len(documents)
            pairs[before, target] += 1 / len(own) / len(documents)
    shares_V = targets.target_shares(dataset)
    assert np.allclose(shares_V, [tokens[j] for j in range(VOCAB_SIZE)], rtol=1e-12)
    contexts, successors = np.array([EOT, 2, 5]), np.array([0, EOT, 3, 2])
    found = targets.pair_shares(dataset, contexts, successors)
    assert found.targets == sum(len(document) + 1 for document in documents)
    assert np.allclose(found.shares_KL, [[pairs[c, s] for s in successors] for c in contexts], rtol=1e-12)
    expected = [sum(share for (before, _), share in pairs.items() if before == c) for c in contexts]
    assert np.allclose(found.context_shares_K, expected, rtol=1e-12)


def test_the_table_of_pairs_has_a_largest_size(monkeypatch):
    shares_V = 1.0 / np.arange(1.0, 50258.0)
    contexts, successors = targets.pair_candidates(shares_V / shares_V.sum())
    assert len(successors) == targets.MAX_SUCCESSORS
    assert len(contexts) > 2000 and 8 * len(contexts) * len(successors) <= targets.PAIR_TABLE_BYTES == 128 << 20
    assert contexts.tolist() == list(range(len(contexts)))
    every = targets.pair_candidates(np.full(257, 1 / 257))
    assert [len(part) for part in every] == [257, 257]
    monkeypatch.setattr(targets, "PAIR_TABLE_BYTES", 8 * 6)
    monkeypatch.setattr(targets, "MAX_SUCCESSORS", 3)
    few = targets.pair_candidates(np.array([0.1, 0.0, 0.4, 0.2, 0.3]))
    assert [part.tolist() for part in few] == [[2, 4], [2, 4, 3]]


def test_a_large_vocabulary_needs_no_square_table(tmp_path):
    rng = np.random.default_rng(4)
    documents = [(50256 * rng.random(100) ** 4).astype(int) for _ in range(60)]
    dataset = make_dataset(tmp_path, {"train": documents, "val": documents[:5], "test": documents[:5]}, 50257)
    shares_V = targets.target_shares(dataset)
    assert shares_V.shape == (50257,) and shares_V.sum() == pytest.approx(1.0)
    contexts, successors = targets.pair_candidates(shares_V)
    assert max(len(contexts), len(successors)) == np.count_nonzero(shares_V) < 6000
    (batch,) = batches(documents, 50256)
    loss = losses_bits(Order3(50257), [batch], [DocumentMixture(8)], 50257)
    assert loss.shape == (60, 1) and (loss <= np.log2(50257) + 8 / 101 + 1e-9).all()


def test_rows_add_up(contents):
    rows = contents.rows
    assert list(rows) == ["guessing", "unigram", "bigram", "order3"]
    for name in ("unigram", "bigram"):
        row = rows[name]
        assert set(row.code_bits_items) == {"model", "smoothing"}
        assert row.code_bits == sum(row.code_bits_items.values()) == int(row.code_bits)
        assert row.code_bits_items["smoothing"] == 2.0
        assert row.empirical_loss_bits < row.bound_bits < rows["guessing"].bound_bits
    assert rows["guessing"].bound_bits == rows["guessing"].test_loss_bits == pytest.approx(np.log2(12))
    assert rows["order3"].code_bits == 0.0 and rows["order3"].smoothing == "document(4)"
    assert rows["bigram"].test_loss_bits < rows["unigram"].test_loss_bits - 0.3
    json.dumps(contents.model_dump(), allow_nan=False)


def test_same_data_same_rows(dataset, contents):
    again = computed(dataset)
    assert without_seconds(again) == without_seconds(contents)


def test_each_message_has_its_own_draw(dataset):
    premises, data_hash = loss_of(dataset).premises, dataset.data_hash
    message = np.array([1, 0, 1], dtype=np.uint8)
    draw = drawn_units("unigram", message, premises, data_hash)
    assert draw.shape == (300,) and 0 <= draw.min() <= draw.max() < 1500
    assert np.array_equal(draw, drawn_units("unigram", message, premises, data_hash))
    others = [
        drawn_units("bigram", message, premises, data_hash),
        drawn_units("unigram", np.append(message, np.uint8(0)), premises, data_hash),
        drawn_units("unigram", message, premises, "another"),
    ]
    assert not any(np.array_equal(draw, other) for other in others)
    everything = drawn_units("unigram", message, Premises(1500, 0.05), data_hash)
    assert np.array_equal(everything, np.arange(1500))


def test_all_documents_scored_with_the_full_sample_inequality(dataset):
    row = computed(dataset, loss_of(dataset, m_units=None, delta_sample=None)).rows["order3"]
    assert (row.inequality, row.m, row.n, row.delta_sample) == ("betting", 1500, 1500, None)
    documents = batches((dataset.document("train", i) for i in range(1500)), EOT)
    losses_D = losses_bits(Order3(VOCAB_SIZE), documents, [SMOOTHING[2]], VOCAB_SIZE)[:, 0]
    lower, upper = SMOOTHING[2].loss_range_bits(VOCAB_SIZE, MIN_LENGTH + 1)
    expected = betting(losses_D, lower=lower, upper=upper, code_bits=0.0, n=1500, delta=0.05)
    assert row.bound_bits == expected + SCORE_TOLERANCE_BITS


@pytest.mark.parametrize("seed", [11, 12, 13])
def test_bounds_hold_for_fresh_documents(tmp_path, seed):
    """The mean over 4,000 fresh documents stands for the population's; all bounds together fail rarely."""
    dataset = markov_dataset(tmp_path / "data", seed, documents=800)
    test = sample_documents(4000, np.random.default_rng(seed + 1000))
    fresh = make_dataset(
        tmp_path / "fresh",
        {
            "train": [dataset.document("train", i) for i in range(800)],
            "val": sample_documents(50, np.random.default_rng(seed)),
            "test": test,
        },
    )
    rows = computed(fresh, test_documents=4000).rows
    for row in rows.values():
        assert row.test_loss_bits <= row.bound_bits
    assert rows["bigram"].bound_bits < rows["unigram"].bound_bits


def test_rows_of_given_losses(dataset):
    loss = loss_of(dataset)
    losses_D = np.random.default_rng(5).uniform(1.0, 3.0, 300)
    scored = Scored(DocumentMixture(16), losses_D, np.array([1.0, 2.0]), np.array([2.0, 4.0]))
    row = yardstick_row(scored, loss, code_bits={"smoothing": 2.0, "extra": 3.5}, seconds=1.0)
    lower, upper = DocumentMixture(16).loss_range_bits(VOCAB_SIZE, MIN_LENGTH + 1)
    expected = {"lower": lower, "upper": upper, "code_bits": 5.5, "n": 1500, "delta": 0.05, "delta_sample": 0.04}
    assert row.bound_bits == betting_subsampled(losses_D, **expected) + SCORE_TOLERANCE_BITS
    assert (row.code_bits, row.val_loss_bits, row.test_loss_bits) == (5.5, 1.5, 3.0)
    assert guessing_row(loss).bound_bits == np.log2(VOCAB_SIZE)
    with pytest.raises(ValueError, match="expected those of 300 documents"):
        yardstick_row(Scored(DocumentMixture(16), losses_D[1:], losses_D, losses_D), loss, code_bits={}, seconds=1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_units": 1400}, "n_units 1400"),
        ({"min_targets": 32}, "31 targets, the premises admit none below 32"),
    ],
)
def test_premises_of_another_dataset_are_refused(dataset, changes, message):
    with pytest.raises(ValueError, match=message):
        computed(dataset, loss_of(dataset, **changes))


def test_there_must_be_documents_to_score(dataset):
    with pytest.raises(ValueError, match="one test document"):
        computed(dataset, test_documents=0)


def test_file_round_trip(tmp_path, contents):
    path = tmp_path / "data" / "yardsticks.json"
    write_yardsticks(path, contents)
    assert read_yardsticks(path, contents.data_hash) == contents
    assert [file.name for file in path.parent.iterdir()] == ["yardsticks.json"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-9], "not valid JSON"),
        (lambda text: "[]", "no 'format'"),
        (lambda text: text.replace('"format": 3', '"format": 2'), "format 2, this version reads 3"),
        (lambda text: text.replace('"m": 300', '"m": 301'), "damaged"),
        (lambda text: text.replace('"sha256"', '"md5"'), "damaged"),
    ],
)
def test_damaged_files_are_refused(tmp_path, contents, damage, message):
    path = tmp_path / "yardsticks.json"
    write_yardsticks(path, contents)
    text = path.read_text()
    assert damage(text) != text
    path.write_text(damage(text))
    with pytest.raises(UserError, match=message) as error:
        read_yardsticks(path, contents.data_hash)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_missing_and_foreign_files_are_refused(tmp_path, contents):
    path = tmp_path / "yardsticks.json"
    with pytest.raises(UserError, match="no such file"):
        read_yardsticks(path, contents.data_hash)
    write_yardsticks(path, contents)
    with pytest.raises(UserError, match="expected those of another"):
        read_yardsticks(path, "another")
