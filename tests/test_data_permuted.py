"""The control of permuted documents: the same words in another order, and a bound that is worse for it."""

import json

import numpy as np
import pytest
from conftest import TINY, TRAINED, demo_values, merged, write_settings

from sublora import config
from sublora.data.base_and_target import base_data
from sublora.data.corpora.markov import MarkovSource
from sublora.data.dataset import TokenDataset
from sublora.data.prepare import prepare_dataset
from sublora.data.tokenize import WORD, permuted_tokens, permuted_words
from sublora.runs.bound import bound_run
from sublora.runs.score import score_run
from sublora.runs.train import train_run
from sublora.system.errors import UserError

TEXT = "def f(x):\n    return x + one  # the sum\n\n\ttwo three four five six seven"


CHAIN = {
    "grid": {"budgets": [300], "allocations": ["uniform"], "seeds": [1]},
    "subspace": {"adapt": "weights"},
    "data": {
        "corpus": {
            "kind": "markov",
            "symbols": 8,
            "concentration": 0.2,
            "documents": 8400,
            "min_length": 110,
            "max_length": 130,
            "seed": 3,
        },
        "min_characters": 110,
        "min_tokens": 110,
        "val_documents": 200,
        "test_documents": 200,
    },
    "model": {"n_layer": 1},
    "training": {"steps": 150, "tokens_per_step": 512, "micro_batch_sequences": 32, "learning_rate": 0.3},
    "message": {"quantizer": "entropy"},
    "rate_phase": {"smoothing": "token(0.25)"},
    "scoring": {"documents": 1000, "sliding_window": 16, "val_documents": 50, "test_documents": 50},
}


def tiny_data(**changes: object) -> config.Data:
    values = merged(merged(demo_values(), TINY), {"data": changes})
    return config.parse_settings(values, source="test").data


def test_words_change_places_and_white_space_does_not():
    permuted = permuted_words(TEXT, 1)
    assert permuted != TEXT and sorted(WORD.findall(permuted)) == sorted(WORD.findall(TEXT))
    # Where one word stood another stands: white space is what it was.
    assert WORD.sub("", permuted) == WORD.sub("", TEXT) and WORD.split(permuted) == WORD.split(TEXT)


def test_the_order_hangs_on_the_key_and_the_text_alone():
    tokens = np.arange(50)
    assert permuted_words(TEXT, 1) == permuted_words(TEXT, 1) != permuted_words(TEXT, 2)
    first, again = permuted_tokens(tokens, "a", 1), permuted_tokens(tokens, "a", 1)
    assert np.array_equal(first, again) and np.array_equal(np.sort(first), tokens)
    assert not np.array_equal(first, permuted_tokens(tokens, "a", 2))
    assert not np.array_equal(first, permuted_tokens(tokens, "b", 1))
    assert permuted_words("", 1) == "" and permuted_words("one", 1) == "one"


@pytest.mark.parametrize("permute", ["words", "tokens"])
def test_every_document_stays_in_its_split(tmp_path, permute):
    """The folder's texts share no word, so each document must hold the words of one text."""
    (tmp_path / "text").mkdir()
    texts = [" ".join(f"w{i}x{j}" for j in range(30)) for i in range(70)]
    for i, text in enumerate(texts):
        (tmp_path / "text" / f"{i}.txt").write_text(text)
    corpus = {"kind": "folder", "path": "text", "text_field": "text", "unit_field": None}
    found = {}
    for name in (None, permute):
        data = tiny_data(name=f"data-{name}", corpus=corpus, permute=name, val_documents=20, test_documents=20)
        prepare_dataset(data, tmp_path)
        dataset = TokenDataset.open(tmp_path, data)
        found[name] = {
            split: [dataset.document(split, i) for i in range(len(dataset.document_lengths(split)))]
            for split in ("train", "val", "test")
        }
    for split, documents in found[None].items():
        for plain, other in zip(documents, found[permute][split], strict=True):
            assert not np.array_equal(plain, other) and np.array_equal(np.sort(plain), np.sort(other))


def test_a_permuted_dataset_is_another_one(tmp_path):
    """Settings without the control refuse its files, and the other way round; without it nothing has changed."""
    plain, permuted = tiny_data(), tiny_data(permute="tokens")
    assert "permute" not in config.data_settings(plain)
    hashes = []
    for data, other in ((plain, permuted), (permuted, plain)):
        prepare_dataset(data, tmp_path)
        hashes.append(TokenDataset.open(tmp_path, data).data_hash)
        with pytest.raises(UserError, match=r"made with data.permute .*, the settings say"):
            TokenDataset.open(tmp_path, other)
    assert hashes[0] != hashes[1]


def test_the_base_is_trained_on_text_in_order(tmp_path):
    values = merged(merged(demo_values(), TINY), {"data": {"permute": "words"}}) | {"base": TRAINED}
    settings = config.parse_settings(values, source="test")
    assert settings.data.permute == "words" and base_data(settings).permute is None


@pytest.mark.slow
def test_a_bound_is_worse_on_permuted_documents(tmp_path):
    """One training on a chain, where each symbol depends on the one before, and on its documents permuted.

    In order the bound lies below the entropy of a single symbol, which no model of the permuted documents can beat.
    """
    bounds, source = {}, None
    for permute in (None, "tokens"):
        root = tmp_path / str(permute)
        root.mkdir()
        settings = config.load_settings(write_settings(root, CHAIN | {"data": CHAIN["data"] | {"permute": permute}}))
        prepare_dataset(settings.data, root)
        spec = settings.grid.runs()[0]
        out = train_run(settings, spec, root=root, out=root / "results/runs" / spec.name).parent
        score_run(out, root=root)
        bounds[permute] = json.loads(bound_run(out).read_text(encoding="utf-8"))
        source = MarkovSource(settings.data.corpus)
    plain, permuted = bounds[None], bounds["tokens"]
    assert plain["bound_value"] < source.symbol_entropy_bits < permuted["empirical_bpd"] < permuted["bound_value"]
    assert abs(plain["code_bits"] - permuted["code_bits"]) < 0.5 * plain["code_bits"]
