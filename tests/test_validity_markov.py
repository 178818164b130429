"""End to end on a source with computable risk: the bound holds, and says something."""

import importlib.util
from pathlib import Path

import pytest

from sublora import config
from sublora.data.prepare import prepare_dataset

# test_anchor_pipeline.py compares a bound with the true risk in every test run.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def validity():
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "validity.py"
    spec = importlib.util.spec_from_file_location("validity", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def outcome(validity, tmp_path_factory):
    root = tmp_path_factory.mktemp("markov")
    settings = validity.markov_settings(
        {
            "grid": {"budgets": [60], "allocations": ["uniform"], "seeds": [1]},
            "data": {
                "corpus": {
                    "kind": "markov",
                    "symbols": 8,
                    "concentration": 0.3,
                    "documents": 6400,
                    "min_length": 120,
                    "max_length": 160,
                    "seed": 7,
                },
                "min_characters": 1,
                "min_tokens": 1,
                "val_documents": 200,
                "test_documents": 200,
            },
            "model": {"n_layer": 1, "n_head": 2, "n_embd": 16, "context_length": 32},
            "lora": {"rank": 2},
            "training": {"steps": 150, "micro_batch_sequences": 16, "tokens_per_step": 512, "learning_rate": 0.1},
            "scoring": {"documents": 1000, "sliding_window": 32, "val_documents": 50, "test_documents": 50},
        }
    )
    prepare_dataset(settings.data, root)
    run = config.RunSpec(budget=60, allocation="uniform", seed=1)
    return validity.measure(root, settings, run, fresh_documents=1000)


def test_true_risk_is_below_the_bound(outcome):
    assert outcome.risk_high_bits < outcome.bound_bits < outcome.hoeffding_bits


def test_bound_says_something(outcome):
    assert outcome.bound_bits < outcome.vacuous_bits - 1.0
    assert outcome.bound_bits - outcome.risk_bits < 1.0


def test_drawn_documents_are_ordinary_ones(outcome):
    """The risk on the drawn training documents and on fresh ones agree: nothing was memorized, nothing leaks."""
    width = outcome.risk_high_bits - outcome.risk_low_bits
    assert abs(outcome.empirical_loss_bits - outcome.risk_bits) < 2 * width


def test_no_model_beats_the_entropy_rate(outcome):
    assert outcome.risk_low_bits > outcome.entropy_rate_bits
