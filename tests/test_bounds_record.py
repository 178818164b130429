"""A run's bounds and the record of them: what it holds, what it adds up, what it refuses."""

import dataclasses
import json
import math

import numpy as np
import pytest

from sublora.bounds import inequalities
from sublora.bounds.premises import BoundedLoss, Premises, all_bounds, headline_bound, held_out_bound
from sublora.bounds.record import (
    BaseFacts,
    BoundRecord,
    Environment,
    JobIds,
    PeakMemory,
    RunFacts,
    StageSeconds,
    parse_record,
)
from sublora.bounds.run_bounds import ChargedMessage, HeldOutLosses, ScoredDocuments, SettingsCharge, run_bounds
from sublora.bounds.smoothing import SCORE_TOLERANCE_BITS, DocumentMixture, LossRange, TokenSmoothing, with_tolerance

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
CODE_BITS = 2169.5
DRAWN = Premises(n_units=17_000, delta=0.05, m_units=500, delta_sample=0.045, sweep_size=30)
ALL = dataclasses.replace(DRAWN, n_units=500, m_units=None, delta_sample=None)
SHARED = {"code_bits": CODE_BITS, "n": 17_000, "delta": 0.05, "delta_sample": 0.045}
RUN = RunFacts(name="d1000_learned_seed42", budget=1000, allocation="learned", mode="learned", ratio=None, seed=42)
ENVIRONMENT = Environment(
    seconds=StageSeconds(train=11.0, encode=0.1, score=4.0, bound=0.2),
    peak_memory_mib=PeakMemory(train=300, score=310),
    versions={"sublora": "0.1.0"},
    gpu=None,
    commit=None,
    slurm_job_ids=JobIds(train=None, score="17"),
)
COMPARED = ("trained", "size", "model_parameters")
PARTS = {"message": ChargedMessage, "scored": ScoredDocuments, "held_out": HeldOutLosses}


def inputs(**changes):
    """Arguments of run_bounds; a change goes to the part that has a field of this name."""
    smoothing, premises = changes.pop("smoothing", TokenSmoothing(0.1)), changes.pop("premises", DRAWN)
    random = np.random.default_rng(2)
    values = {
        "run": RUN,
    }
    fields = {
        "message": {
            "smoothing": smoothing,
            "items": ITEMS,
            "gates": {"0": 250, "head": 300},
            "gate_sizes": {"0": 1000, "head": 400},
        },
        "scored": {
            "losses_D": random.normal(4.8, 0.5, size=500),
            "topk_errors_DK": random.uniform([0.6, 0.1, 0.0], [0.9, 0.3, 0.02], size=(500, 3)),
            "top_k": (1, 10, 100),
        },
        "held_out": {
            "val_D": random.normal(4.9, 0.5, size=60),
            "val_unquantized_D": random.normal(4.8, 0.5, size=60),
            "test_D": random.normal(4.85, 0.5, size=200),
        },
    }
    for name, part in PARTS.items():
        values[name] = part(**{field: changes.pop(field, value) for field, value in fields[name].items()})
    return values | {"loss": BoundedLoss((smoothing,), 257, 17, premises)} | changes


def computed(**given):
    """The bounds as the plain values of bounds.json."""
    return run_bounds(**given).as_json()


def test_every_number_of_the_record():
    given = inputs()
    record = computed(**given)
    loss_range = TokenSmoothing(0.1).loss_range_bits(257, 17)
    losses = given["scored"].losses_D
    pure = all_bounds(losses, loss_range, CODE_BITS, DRAWN)
    expected = {name: with_tolerance(bound, loss_range) for name, bound in pure.items()}
    assert record["run"] == {key: value for key, value in RUN.model_dump().items() if key not in COMPARED}
    arguments = loss_range._asdict() | SHARED
    assert record["bounds"] == expected
    assert pure == {each.__name__: each(losses, **arguments) for each in inequalities.SUBSAMPLED}
    assert record["bound_inequality"] == "betting_subsampled"
    assert record["bound_value"] == expected["betting_subsampled"]
    assert record["bound_hoeffding"] == expected["hoeffding_subsampled"]
    assert record["code_bits"] == CODE_BITS == sum(record["code_items"].values())
    assert record["compressed_size_bits"] == 2162
    assert record["kl_divergence"] == pytest.approx(CODE_BITS * math.log(2), rel=1e-15)
    assert record["empirical_bpd"] == pytest.approx(losses.mean(), rel=1e-15)
    assert record["smoothing"] == "token(0.1)"
    assert (record["lower_bits"], record["upper_bits"]) == loss_range
    assert (record["vacuous_bits"], record["vocab_size"]) == (math.log2(257), 257)
    assert (record["min_targets"], record["n_documents"], record["m_documents"]) == (17, 17_000, 500)
    assert (record["delta"], record["delta_sample"], record["sweep_size"]) == (0.05, 0.045, 30)
    assert record["gamma"] == {"0": 0.25, "head": 0.75}
    held_out = given["held_out"]
    assert record["val_loss_bits"] == pytest.approx(held_out.val_D.mean(), rel=1e-15)
    assert record["val_loss_unquantized_bits"] == pytest.approx(held_out.val_unquantized_D.mean(), rel=1e-15)
    assert record["test_loss_bits"] == pytest.approx(held_out.test_D.mean(), rel=1e-15)
    assert record["empirical_bpd"] < record["bound_value"] < record["bound_hoeffding"]


def test_with_all_documents_scored_the_full_sample_inequalities_hold_at_the_whole_delta():
    given = inputs(premises=ALL, items=ITEMS | {"symbols": 100})
    record = computed(**given)
    loss_range = TokenSmoothing(0.1).loss_range_bits(257, 17)
    arguments = loss_range._asdict() | {"code_bits": CODE_BITS - 1700, "n": 500, "delta": 0.05}
    losses = given["scored"].losses_D
    pure = {each.__name__: each(losses, **arguments) for each in inequalities.FULL_SAMPLE}
    assert record["bounds"] == {name: with_tolerance(bound, loss_range) for name, bound in pure.items()}
    assert (record["bound_inequality"], record["bound_value"]) == ("betting", record["bounds"]["betting"])
    assert record["bound_hoeffding"] == record["bounds"]["hoeffding"]
    # Nothing was drawn, so the arm's bits pay for naming the best.
    assert record["bound_all_runs"] == record["bound_value"]
    assert (record["n_documents"], record["m_documents"], record["delta_sample"]) == (500, 500, 0.0)
    errors = given["scored"].topk_errors_DK[:, 0]
    rates = arguments | {"lower": 0.0, "upper": 1.0}
    assert record["topk_bounds"]["1"] == inequalities.betting(errors, **rates)
    with pytest.raises(ValueError, match="500 losses for n = 501"):
        computed(**inputs(premises=dataclasses.replace(ALL, n_units=501)))


@pytest.mark.parametrize("premises", [DRAWN, ALL])
def test_the_range_is_that_of_the_smoothing_and_the_population(premises):
    mixture = DocumentMixture(8)
    given = inputs(premises=premises, smoothing=mixture)
    record = computed(**given)
    assert record["smoothing"] == "document(8)"
    assert (record["lower_bits"], record["upper_bits"]) == mixture.loss_range_bits(257, 17)
    longer = computed(**given | {"loss": dataclasses.replace(given["loss"], min_targets=100)})
    assert longer["upper_bits"] < record["upper_bits"]
    assert longer["bound_value"] < record["bound_value"]
    assert record["topk_bounds"] == longer["topk_bounds"]


def test_the_held_out_bound_costs_no_message_and_a_share_of_delta_for_naming_the_best():
    given = inputs()
    record = computed(**given)
    loss_range, test = TokenSmoothing(0.1).loss_range_bits(257, 17), given["held_out"].test_D
    for key, delta in (("bound_held_out", 0.05), ("bound_held_out_all_runs", 0.05 / 30)):
        expected = inequalities.betting(test, **loss_range._asdict(), code_bits=0.0, n=200, delta=delta)
        assert held_out_bound(test, loss_range, delta=delta) == expected
        assert record[key] == expected + SCORE_TOLERANCE_BITS
    assert test.mean() < record["bound_held_out"] < record["bound_held_out_all_runs"]
    assert computed(**inputs(items=ITEMS | {"symbols": 5000}))["bound_held_out"] == record["bound_held_out"]


def test_topk_bounds_are_bounds_on_rates():
    given = inputs()
    record = computed(**given)
    for column, k in enumerate(("1", "10", "100")):
        errors = given["scored"].topk_errors_DK[:, column]
        assert record["topk_errors"][k] == pytest.approx(errors.mean(), rel=1e-15)
        assert record["topk_bounds"][k] == inequalities.betting_subsampled(errors, lower=0.0, upper=1.0, **SHARED)
        assert record["topk_errors"][k] < record["topk_bounds"][k] < 1.0


def test_the_bound_for_the_best_of_all_alternatives_shares_delta_sample_among_their_draws():
    given = inputs()
    loss_range = TokenSmoothing(0.1).loss_range_bits(257, 17)
    share = 0.045 / (30 * 2**2.5)
    expected = inequalities.betting_subsampled(
        given["scored"].losses_D,
        **loss_range._asdict(),
        code_bits=CODE_BITS,
        n=17_000,
        delta=0.05 - 0.045 + share,
        delta_sample=share,
    )
    record = computed(**given)
    assert record["bound_all_runs"] == pytest.approx(expected + SCORE_TOLERANCE_BITS, abs=1e-12)
    assert record["bound_all_runs"] > record["bound_value"]
    untuned = computed(**inputs(items=ITEMS | {"extra": 0.0, "symbols": ITEMS["symbols"] + 2.5}))
    assert untuned["bound_value"] == record["bound_value"]
    assert untuned["bound_all_runs"] < record["bound_all_runs"]
    alone = dataclasses.replace(DRAWN, sweep_size=1)
    record = computed(**inputs(premises=alone, items=ITEMS | {"extra": 0.0}))
    assert record["bound_all_runs"] == pytest.approx(record["bound_value"], abs=1e-12)


def whole_record(**changes):
    return BoundRecord(
        **dict(run_bounds(**inputs(**changes))),
        **dict(ENVIRONMENT),
        base=BaseFacts(kind="random", sha256="ab" * 32, independence=None),
        data_hash="cd" * 32,
        certificate_sha256="ef" * 32,
    )


@pytest.mark.parametrize("premises", [DRAWN, ALL])
def test_the_record_is_json_and_read_back_with_the_same_bytes(premises):
    record = whole_record(premises=premises)
    text = json.dumps(record.as_json(), allow_nan=False)
    assert list(json.loads(text))[-9:] == [*Environment.model_fields, "base", "data_hash", "certificate_sha256"]
    read = parse_record(json.loads(text))
    assert read == record and json.dumps(read.as_json()) == text


def test_what_the_grid_does_not_compare_is_not_in_the_record():
    assert not computed(**inputs())["run"].keys() & set(COMPARED)
    compared = RUN.model_copy(update={"size": "2x2x16", "model_parameters": 8_800})
    assert computed(**inputs(run=compared))["run"] == computed(**inputs())["run"] | {
        "size": "2x2x16",
        "model_parameters": 8_800,
    }


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda r: r.pop("gpu"), "key gpu of bounds.json is missing"),
        (lambda r: r.update(unit=3), "key unit of bounds.json is missing or no text"),
        (lambda r: r.update(base=[]), "key base of bounds.json is missing or no mapping"),
        (
            lambda r: r["seconds"].update(train=None),
            "key seconds.train of bounds.json is None, expected a finite number",
        ),
        (
            lambda r: r["bounds"].update(betting=True),
            "key bounds.betting of bounds.json is True, expected a finite number",
        ),
        (lambda r: r.update(delta=math.nan), "key delta of bounds.json is nan, expected a finite number"),
        (lambda r: r.update(n_units=1.5), "key n_units of bounds.json is 1.5, expected a whole number"),
        (
            lambda r: r["base"].update(kind="guessed"),
            "key base.kind of bounds.json is guessed, expected one of random, trained, pretrained",
        ),
        (lambda r: r["base"].update(kind="pretrained"), "key base.independence of bounds.json is missing"),
        (lambda r: r.update(code_bits=1.0), "code_items sum to 2169.5 bits, but code_bits is 1"),
        (lambda r: r.update(bound_value=1.0), "bound_value is 1, but bounds.betting_subsampled is"),
        (lambda r: r.update(kl_divergence=1.0), "kl_divergence is 1, but code_bits x ln 2 is"),
    ],
)
def test_a_damaged_record_is_refused_in_one_line(damage, complaint):
    found = json.loads(json.dumps(whole_record().as_json()))
    damage(found)
    with pytest.raises(ValueError, match=complaint) as error:
        parse_record(found)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("item", ITEMS)
def test_every_item_of_the_message_costs(item):
    base = computed(**inputs())
    longer = computed(**inputs(items=ITEMS | {item: ITEMS[item] + 100}))
    assert longer["code_bits"] == base["code_bits"] + 100
    for name in base["bounds"]:
        assert longer["bounds"][name] > base["bounds"][name]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"topk_errors_DK": np.zeros((500, 2))}, "top-k errors of shape"),
        ({"topk_errors_DK": np.zeros((499, 3))}, "top-k errors of shape"),
        ({"topk_errors_DK": np.full((500, 3), 1.5)}, "outside the stated range"),
        ({"losses_D": np.full(500, 99.0)}, "outside the stated range"),
        ({"items": {"symbols": 10}}, "items lack"),
        ({"items": ITEMS | {"symbols": -1}}, "not negative"),
        ({"items": ITEMS | {"symbols": math.nan}}, "not negative"),
        ({"gates": {"0": 1001, "head": 0}}, "gates must lie"),
        ({"gates": {"0": 0, "head": 401}}, "gates must lie"),
        ({"gates": {"0": 0}}, "but sizes of"),
        ({"test_D": np.full(5, math.nan)}, "not finite"),
        ({"test_D": np.full(5, 99.0)}, "outside the stated range"),
        ({"test_D": np.empty(0)}, "not empty"),
        ({"val_D": np.full(5, math.nan)}, "mean of the val losses must be finite"),
        ({"items": ITEMS | {"extra": 5000.0}}, "delta_sample must lie"),
    ],
)
def test_what_does_not_fit_is_refused(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        computed(**inputs(**changes))


def test_every_bound_on_a_loss_allows_for_rounding_once():
    """From the same losses and C: exactly the constant more than the inequality, or the upper end of the range."""
    given = inputs(settings=SettingsCharge("full", 20.0, None))
    record, loss_range = computed(**given), TokenSmoothing(0.1).loss_range_bits(257, 17)
    losses, alternatives = given["scored"].losses_D, DRAWN.for_all_alternatives(2.5)
    strict = headline_bound(losses, loss_range, CODE_BITS + 20.0, DRAWN.for_all_alternatives(22.5))
    assert record["bound_value"] - headline_bound(losses, loss_range, CODE_BITS, DRAWN) == pytest.approx(1e-5, rel=1e-8)
    assert record["bound_all_runs"] == headline_bound(losses, loss_range, CODE_BITS, alternatives) + 1e-5
    assert record["bound_strict"] == strict + 1e-5
    assert record["score_tolerance_bits"] == SCORE_TOLERANCE_BITS == 1e-5
    vacuous = computed(**inputs(items=ITEMS | {"symbols": 1e6}))
    assert vacuous["bound_value"] == vacuous["bound_hoeffding"] == vacuous["upper_bits"]


def test_the_allowance_for_rounding_ends_at_the_range():
    loss_range = LossRange(0.5, 9.0)
    assert with_tolerance(3.0, loss_range) == 3.0 + SCORE_TOLERANCE_BITS
    assert with_tolerance(9.0 - SCORE_TOLERANCE_BITS / 2, loss_range) == with_tolerance(9.0, loss_range) == 9.0


@pytest.mark.parametrize("premises", [DRAWN, ALL])
def test_exact_losses_within_the_tolerance_stay_below_the_bound(premises):
    """A bound on one machine's mean loss, raised, bounds the mean of exact losses that are larger by the tolerance."""
    losses, loss_range = inputs()["scored"].losses_D, TokenSmoothing(0.1).loss_range_bits(257, 17)
    exact = losses + SCORE_TOLERANCE_BITS
    here = with_tolerance(headline_bound(losses, loss_range, 200.0, premises), loss_range)
    assert headline_bound(exact, loss_range, 200.0, premises) == pytest.approx(here, abs=SCORE_TOLERANCE_BITS)
