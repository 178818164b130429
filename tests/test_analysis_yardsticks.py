"""The yardsticks' table, and that the words say no more than the numbers show."""

import math

import pandas as pd
import pytest
from analysis_data import DATA_HASH, SMALL, YARDSTICKS, write_results, write_yardsticks_of

from sublora.analysis.runs_table import collect_runs
from sublora.analysis.yardsticks import (
    FROZEN_BASE,
    LABELS,
    Yardstick,
    certified_gain_sentence,
    conclusion,
    load_yardsticks,
    outcome_against,
    verdicts,
    yardstick_table,
)
from sublora.system.errors import UserError
from sublora.yardsticks.record import read_yardsticks, write_yardsticks

TRIVIAL = [name for name in LABELS if name != FROZEN_BASE]
BOUND = 3.0
BELOW, ABOVE = math.nextafter(BOUND, 0.0), math.nextafter(BOUND, 9.0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> pd.DataFrame:
    return collect_runs(write_results(tmp_path_factory.mktemp("runs"), SMALL))


def yardstick(name: str, test_loss_bits: float, bound: float) -> Yardstick:
    return Yardstick(name, test_loss_bits, test_loss_bits, bound, message_bits=0.0, smoothing=None, n=10, m=None)


def beaten(name: str) -> Yardstick:
    return yardstick(name, BOUND + 0.5, BOUND + 0.75)


def larger_certificate(name: str) -> Yardstick:
    return yardstick(name, BOUND - 0.5, BOUND + 0.25)


def better(name: str) -> Yardstick:
    return yardstick(name, BOUND - 1.0, BOUND - 0.5)


@pytest.mark.parametrize(
    ("test_loss_bits", "bound", "outcome"),
    [
        (ABOVE, 4.0, "beaten"),
        (BOUND, 4.0, "smaller certificate"),  # equal is not below
        (BELOW, ABOVE, "smaller certificate"),
        (BELOW, BOUND, "nothing added"),
        (2.0, 2.5, "nothing added"),
        (BOUND, BOUND, "nothing added"),
        (ABOVE, 2.9, "beaten"),  # a test loss above its own bound: the rule asks for the loss alone
    ],
)
def test_the_outcome_follows_the_rule_and_ties_add_nothing(test_loss_bits, bound, outcome):
    assert outcome_against(BOUND, yardstick("bigram", test_loss_bits, bound)) == outcome


def test_sentences_hold_the_numbers_that_were_compared():
    cases = {
        beaten("bigram"): "The network beats the bigram: the bound, 3.000, lies 0.500 bits per token below the loss of "
        "the bigram on test documents, 3.500.",
        larger_certificate("order3"): "Against the order-3 model, its certificate is smaller: the bound, 3.000, lies "
        "0.250 bits per token below that of the order-3 model, 3.250, but not below the loss of the order-3 model on "
        "test documents, 2.500.",
        better("unigram"): "The network adds nothing over the unigram: the bound, 3.000, lies 0.500 bits per token "
        "above that of the unigram, 2.500.",
        yardstick("guessing", BOUND, BOUND): "The network adds nothing over guessing: the bound, 3.000, equals that of "
        "guessing, 3.000.",
        beaten(FROZEN_BASE): "Adapting beats the frozen base: the bound, 3.000, lies 0.500 bits per token below the "
        "loss of the frozen base on test documents, 3.500.",
        larger_certificate(FROZEN_BASE): "After adapting, its certificate is smaller: the bound, 3.000, lies 0.250 "
        "bits per token below that of the frozen base, 3.250, but not below the loss of the frozen base on test "
        "documents, 2.500.",
        better(FROZEN_BASE): "Adapting adds nothing over the frozen base: the bound, 3.000, lies 0.500 bits per token "
        "above that of the frozen base, 2.500.",
    }
    assert [verdict.sentence for verdict in verdicts(BOUND, list(cases))] == list(cases.values())


def test_a_difference_too_small_to_print_is_not_printed_as_none():
    (verdict,) = verdicts(BOUND, [yardstick("unigram", ABOVE, 4.0)])
    assert "lies less than 0.001 bits per token below" in verdict.sentence


def test_the_network_learned_something_only_where_it_beats_every_trivial_model():
    base = beaten(FROZEN_BASE)
    assert conclusion(verdicts(BOUND, [*map(beaten, TRIVIAL), base])).startswith("The network learned something:")
    for name in TRIVIAL:
        for weaker in (larger_certificate, better, lambda name: yardstick(name, BOUND, BOUND + 1.0)):
            yardsticks = [weaker(name) if other == name else beaten(other) for other in TRIVIAL]
            text = conclusion(verdicts(BOUND, [*yardsticks, base]))
            assert "learned something" not in text
            assert LABELS[name] in text


def test_conclusions_are_as_plain_where_nothing_is_added():
    def text(kinds, base) -> str:
        yardsticks = [kind(name) for kind, name in zip(kinds, TRIVIAL, strict=True)]
        return conclusion(verdicts(BOUND, [*yardsticks, base(FROZEN_BASE)]))

    assert text([beaten] * 4, beaten) == (
        "The network learned something: its bound lies below the test loss of every trivial model. "
        "Adapting beats the frozen base."
    )
    assert text([beaten, beaten, larger_certificate, larger_certificate], larger_certificate) == (
        "All that is shown of the network is that its certificate is smaller than that of every trivial model: its "
        "bound does not lie below the test loss of the bigram and the order-3 model. "
        "After adapting, its certificate is smaller than that of the frozen base."
    )
    assert text([beaten, better, larger_certificate, better], better) == (
        "The network adds nothing over the unigram and the order-3 model. Adapting adds nothing over the frozen base."
    )


def test_the_table_has_one_row_per_model(runs, tmp_path):
    yardsticks = load_yardsticks(write_yardsticks_of(tmp_path), runs)
    table = yardstick_table(runs, yardsticks).set_index("model")
    assert list(table.index) == [*LABELS, "best_run", "best_run_alone", "best_run_held_out"]
    for name, (loss, bound) in YARDSTICKS.items():
        assert tuple(table.loc[name, ["test_loss_bits", "bound_bits"]]) == (loss, bound)
    best = runs.loc[runs["bound_all_runs"].idxmin()]
    own = table.loc[["best_run", "best_run_alone", "best_run_held_out"]]
    assert list(own["bound_bits"]) == [best[f"bound_{key}"] for key in ("all_runs", "value", "held_out_all_runs")]
    assert list(own["message_bits"]) == [best["code_bits"]] * 2 + [0.0]
    assert (own["test_loss_bits"] == best["test_loss_bits"]).all() and (own["smoothing"] == "document(8)").all()
    assert best["name"] in table["description"]["best_run"]
    assert list(own["m"]) == [1000, 1000, 900] and table["m"].isna()["guessing"]
    assert table["bound_bits"]["guessing"] == pytest.approx(math.log2(257))
    assert "random weights of the first seed" in table["description"][FROZEN_BASE]
    trained = yardstick_table(runs.assign(base_kind="trained"), yardsticks).set_index("model")
    assert "random" not in trained["description"][FROZEN_BASE]


def test_anchored_runs_have_a_certified_gain_in_the_table_and_in_a_sentence(runs, tmp_path):
    anchored = collect_runs(write_results(tmp_path / "runs", SMALL, anchored=True))
    yardsticks = load_yardsticks(write_yardsticks_of(tmp_path), anchored)
    best = anchored.loc[anchored["bound_all_runs"].idxmin()]
    table = yardstick_table(anchored, yardsticks).set_index("model")
    gains = table["certified_gain_bits"].dropna().to_dict()
    assert gains == {
        "best_run": best["certified_gain_all_runs_bits"],
        "best_run_alone": best["certified_gain_bits"],
    }
    assert "part of the bound of every run" in table["description"][FROZEN_BASE]
    numbers = {"bound_all_runs": 3.0, "anchor_base_bound": 3.25, "certified_gain_all_runs_bits": 0.125}
    one = anchored.iloc[[0]].assign(**numbers)
    assert certified_gain_sentence(one) == (
        "With probability 95 %, on new documents like these: the best of the 30 networks, mixed with its base, needs "
        "at most 3.000 bits per token, its choice paid for; the frozen base, mixed with guessing, needs at most 3.250; "
        "adapting gains at least 0.125 bits per token over the base alone."
    )
    for gain in (0.0, -0.5):
        sentence = certified_gain_sentence(one.assign(certified_gain_all_runs_bits=gain))
        assert sentence.endswith("; no gain of adapting over the base alone is certified.")
    assert certified_gain_sentence(runs) is None
    assert "certified_gain_bits" not in yardstick_table(runs, yardsticks)


def test_yardsticks_of_other_data_or_without_a_model_are_refused(runs, tmp_path):
    path = write_yardsticks_of(tmp_path)
    with pytest.raises(UserError, match="yardsticks.json: yardsticks of the dataset d2d2"):
        load_yardsticks(path, runs.assign(data_hash="ab" * 32))
    yardsticks = read_yardsticks(path, DATA_HASH)
    rows = {name: row for name, row in yardsticks.rows.items() if name != FROZEN_BASE}
    write_yardsticks(path, yardsticks.model_copy(update={"rows": rows}))
    with pytest.raises(UserError, match="holds the models bigram, guessing, order3, unigram, expected .*frozen_base"):
        load_yardsticks(path, runs)
