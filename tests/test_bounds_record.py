"""The record of a run's bounds: what it holds, what it adds up, what it refuses."""

import json
import math

import numpy as np
import pytest

from sublora.bounds import inequalities
from sublora.bounds.record import ENVIRONMENT_KEYS, all_bounds, bound_record
from sublora.bounds.selection import loss_range
from sublora.config import RunSpec

ITEMS = {
    "codebook": 176,
    "counts": 110,
    "symbols": 1800,
    "gates": 50,
    "smoothing": 3,
    "length": 23,
    "arm": 5,
    "extra": 2.5,
}
SHARED = {"n": 17_000, "delta": 0.05, "delta_sample": 0.045}


def inputs(**changes):
    random = np.random.default_rng(2)
    values = {
        "run": RunSpec(budget=1000, allocation="learned", seed=42),
        "losses": random.normal(4.8, 0.5, size=500),
        "topk_errors_DK": random.uniform([0.6, 0.1, 0.0], [0.9, 0.3, 0.02], size=(500, 3)),
        "top_k": (1, 10, 100),
        "smoothing": 0.1,
        "vocab_size": 257,
        "code_items": ITEMS,
        "n_documents": 17_000,
        "delta": 0.05,
        "delta_sample": 0.045,
        "sweep_size": 30,
        "val_loss_bits": 4.9,
        "val_loss_unquantized_bits": 4.8,
        "test_loss_bits": 4.85,
        "gates": {"0": 250, "head": 300},
        "gate_sizes": {"0": 1000, "head": 400},
        "environment": {
            "seconds": {"train": 11.0, "encode": 0.1, "score": 4.0, "bound": 0.2},
            "peak_memory_mib": {"train": 300, "score": 310},
            "versions": {"sublora": "0.1.0"},
            "gpu": None,
            "commit": None,
            "slurm_job_ids": {},
        },
    }
    return values | changes


def test_every_number_of_the_record():
    given = inputs()
    record = bound_record(**given)
    lower, upper = loss_range(0.1, 257)
    code_bits = 2169.5
    expected = all_bounds(given["losses"], lower=lower, upper=upper, code_bits=code_bits, **SHARED)
    assert record["run"] == {
        "name": "d1000_learned_seed42",
        "budget": 1000,
        "allocation": "learned",
        "mode": "learned",
        "ratio": None,
        "seed": 42,
    }
    assert set(expected) == {"hoeffding_subsampled", "kl_inverse_subsampled", "betting_subsampled"}
    assert record["bounds"] == expected
    assert record["bound_value"] == expected["betting_subsampled"]
    assert record["bound_hoeffding"] == expected["hoeffding_subsampled"]
    assert record["code_bits"] == code_bits == sum(record["code_items"].values())
    assert record["compressed_size_bits"] == 2162
    assert record["kl_divergence"] == pytest.approx(code_bits * math.log(2), rel=1e-15)
    assert record["empirical_bpd"] == pytest.approx(given["losses"].mean(), rel=1e-15)
    assert (record["lower_bits"], record["upper_bits"]) == (lower, upper)
    assert record["vacuous_bits"] == math.log2(257)
    assert record["m_documents"] == 500
    assert record["gamma"] == {"0": 0.25, "head": 0.75}
    assert {key: record[key] for key in ENVIRONMENT_KEYS} == given["environment"]
    assert record["empirical_bpd"] < record["bound_value"] < record["bound_hoeffding"]


def test_topk_bounds_are_bounds_on_rates():
    given = inputs()
    record = bound_record(**given)
    for column, k in enumerate(("1", "10", "100")):
        errors = given["topk_errors_DK"][:, column]
        assert record["topk_errors"][k] == pytest.approx(errors.mean(), rel=1e-15)
        assert record["topk_bounds"][k] == inequalities.betting_subsampled(
            errors, lower=0.0, upper=1.0, code_bits=2169.5, **SHARED
        )
        assert record["topk_errors"][k] < record["topk_bounds"][k] < 1.0


def test_the_bound_for_the_best_of_the_sweep_shares_delta_sample_among_its_runs():
    given = inputs()
    lower, upper = loss_range(0.1, 257)
    share = 0.045 / 30
    expected = inequalities.betting_subsampled(
        given["losses"],
        lower=lower,
        upper=upper,
        code_bits=2169.5,
        n=17_000,
        delta=0.05 - 0.045 + share,
        delta_sample=share,
    )
    record = bound_record(**given)
    assert record["bound_all_runs"] == pytest.approx(expected, abs=1e-12)
    assert record["bound_all_runs"] > record["bound_value"]
    alone = bound_record(**inputs(sweep_size=1))
    assert alone["bound_all_runs"] == pytest.approx(alone["bound_value"], abs=1e-12)


def test_the_record_is_json():
    record = bound_record(**inputs())
    assert json.loads(json.dumps(record, allow_nan=False)) == record


@pytest.mark.parametrize("item", ITEMS)
def test_every_item_of_the_message_costs(item):
    base = bound_record(**inputs())
    longer = bound_record(**inputs(code_items=ITEMS | {item: ITEMS[item] + 100}))
    assert longer["code_bits"] == base["code_bits"] + 100
    for name in base["bounds"]:
        assert longer["bounds"][name] > base["bounds"][name]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"topk_errors_DK": np.zeros((500, 2))}, "top-k errors of shape"),
        ({"topk_errors_DK": np.zeros((499, 3))}, "top-k errors of shape"),
        ({"topk_errors_DK": np.full((500, 3), 1.5)}, "outside the stated range"),
        ({"losses": np.full(500, 99.0)}, "outside the stated range"),
        ({"code_items": {"symbols": 10}}, "lacks"),
        ({"code_items": ITEMS | {"symbols": -1}}, "not negative"),
        ({"code_items": ITEMS | {"symbols": math.nan}}, "not negative"),
        ({"gates": {"0": 1001, "head": 0}}, "gates must lie"),
        ({"gates": {"0": 0, "head": 401}}, "gates must lie"),
        ({"gates": {"0": 0}}, "but sizes of"),
        ({"environment": {}}, "environment must have"),
        ({"test_loss_bits": math.nan}, "test_loss_bits"),
        ({"sweep_size": 0}, "sweep_size"),
    ],
)
def test_what_does_not_fit_is_refused(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        bound_record(**inputs(**changes))
