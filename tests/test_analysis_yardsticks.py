"""The yardsticks' table, and that the words say no more than the numbers show."""

import math
import re

import numpy as np
import pandas as pd
import pytest
from analysis_data import (
    DATA_HASH,
    SMALL,
    TEST_DOCUMENTS,
    YARDSTICKS,
    losses_of_test,
    settings_of,
    write_results,
    write_yardsticks_of,
)

from sublora.analysis.runs_table import collect_runs
from sublora.analysis.yardsticks import (
    FROZEN_BASE,
    LABELS,
    Yardstick,
    YardstickVerdict,
    certified_gain_sentence,
    conclusion,
    load_test_losses,
    load_yardsticks,
    verdicts,
    yardstick_table,
)
from sublora.bounds.smoothing import LossRange
from sublora.system.errors import UserError
from sublora.yardsticks.record import read_yardsticks, write_yardsticks

TRIVIAL = [name for name in LABELS if name != FROZEN_BASE]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> pd.DataFrame:
    return collect_runs(write_results(tmp_path_factory.mktemp("runs"), SMALL))


def losses_of_best(runs: pd.DataFrame) -> np.ndarray:
    best = runs.loc[runs["bound_all_runs"].idxmin()]
    return losses_of_test(best["name"], best["test_loss_bits"])


def test_an_anchored_run_is_compared_with_its_anchor_on_the_range_of_the_excess(tmp_path):
    """What it cannot lose above the anchor is not paid for; losses that do are of other files."""
    folders = write_results(tmp_path, SMALL, anchored=True)
    anchored = collect_runs(folders)
    losses = load_test_losses([folder / "losses.npz" for folder in folders], anchored)
    yardsticks = load_yardsticks(write_yardsticks_of(tmp_path), anchored)
    of_base = verdicts(anchored, losses, yardsticks)[-1]
    wide = verdicts(anchored.drop(columns="bound_direct"), losses, yardsticks)[-1]
    assert of_base.yardstick.name == FROZEN_BASE and of_base.outcome == "better"
    assert of_base.comparison.high < wide.comparison.high - 0.05
    with pytest.raises(UserError, match="results/yardsticks.json: the frozen base: losses span"):
        verdicts(anchored, losses + 2.0, yardsticks)


@pytest.fixture(scope="module")
def best(runs) -> pd.DataFrame:
    """The table of a single run, which nobody picked."""
    return runs.iloc[[0]].assign(sweep_size=1)


def beside(best: pd.DataFrame, gains: dict[str, float], units: int = TEST_DOCUMENTS) -> list[YardstickVerdict]:
    """What is shown of a run whose loss is smaller by so much than those of the yardsticks, on average."""
    losses = losses_of_test("network", 3.0)[:units]
    yardsticks = [
        Yardstick(
            name=name,
            test_loss_bits=float(losses.mean()) + gain,
            scored_loss_bits=3.0,
            bound_bits=4.0,
            message_bits=0.0,
            smoothing=None,
            n=10,
            m=None,
            loss_range=LossRange(0.0, 8.1),
            test_losses_U=losses_of_test(name, 3.0 + gain)[:units],
        )
        for name, gain in gains.items()
    ]
    return verdicts(best, losses, yardsticks)


def test_a_verdict_says_what_the_paired_losses_show(best):
    found = beside(best, {"unigram": 0.5, "bigram": 0.0, "order3": -0.5, FROZEN_BASE: 0.25})
    assert [each.outcome for each in found] == ["better", "not decided", "worse", "better"]
    for each in found:
        low, high = each.comparison.low, each.comparison.high
        assert low < each.comparison.mean < high
    better, undecided, worse, base = (each.sentence for each in found)
    assert (
        better == f"The network is better than the unigram by at least {-found[0].comparison.high:.3f} bits per token."
    )
    assert (
        worse
        == f"The network is worse than the order-3 model by at least {found[2].comparison.low:.3f} bits per token."
    )
    assert undecided.startswith("Not decided against the bigram: the difference of the losses lies between -0.")
    text = conclusion(found, best)
    assert "The network is worse than the order-3 model. The network is not shown to be better than the bigram." in text
    assert base in text and text.endswith(
        "(From 900 test documents, paired; with probability 95 % all verdicts hold, and with the same probability all "
        "differences.)"
    )
    assert "learned something" not in text


def test_the_network_learned_something_only_where_it_is_better_than_every_trivial_model(best):
    gains = dict.fromkeys(TRIVIAL, 0.5) | {FROZEN_BASE: 0.5}
    assert conclusion(beside(best, gains), best).startswith("The network learned something:")
    for name in TRIVIAL:
        for less in (0.0, -0.5) if name != "guessing" else (-0.5,):
            text = conclusion(beside(best, gains | {name: less}), best)
            assert "learned something" not in text and LABELS[name] in text


def test_holm_s_procedure_decides_where_an_interval_does_not(best):
    """Three clear differences leave more of delta to the fourth."""
    gains = dict.fromkeys(("unigram", "bigram", "order3"), 1.0)
    for gain in np.linspace(0.02, 0.2, 60):
        last = beside(best, gains | {FROZEN_BASE: float(gain)})[-1]
        if last.outcome == "better" and last.comparison.high >= 0.0:
            assert last.sentence == "The network is better than the frozen base; by how much at least is not shown."
            return
    pytest.fail("no difference is decided by Holm's procedure alone")


def test_picking_the_best_of_many_runs_widens_the_intervals(best):
    one, many = (beside(best.assign(sweep_size=size), {"bigram": 0.5})[0].comparison for size in (1, 30))
    assert many.low < one.low and one.high < many.high
    picked = conclusion(beside(best.assign(sweep_size=30), {"bigram": 0.5}), best.assign(sweep_size=30))
    assert picked.endswith("differences, which pays for picking the best of 30.)")


def test_the_best_run_s_losses_are_those_of_the_table(runs, tmp_path):
    folders = write_results(tmp_path, SMALL)
    paths = [folder / "losses.npz" for folder in folders]
    best = runs.loc[runs["bound_all_runs"].idxmin()]
    losses = load_test_losses(paths, runs)
    assert losses.shape == (TEST_DOCUMENTS,) and losses.mean() == pytest.approx(best["test_loss_bits"])
    with pytest.raises(UserError, match="is not among the files given"):
        load_test_losses([path for path in paths if path.parent.name != best["name"]], runs)
    np.savez(tmp_path / best["name"] / "losses.npz", test_losses_bits=losses + 0.001)
    with pytest.raises(UserError, match="not the losses behind run"):
        load_test_losses(paths, runs)


def test_the_table_has_one_row_per_model(runs, tmp_path):
    yardsticks = load_yardsticks(write_yardsticks_of(tmp_path), runs)
    table = yardstick_table(runs, yardsticks, losses_of_best(runs)).set_index("model")
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
    trained = yardstick_table(runs.assign(base_kind="trained"), yardsticks, losses_of_best(runs)).set_index("model")
    assert "random" not in trained["description"][FROZEN_BASE]


def test_anchored_runs_have_a_certified_gain_in_the_table_and_in_a_sentence(runs, tmp_path):
    anchored = collect_runs(write_results(tmp_path / "runs", SMALL, anchored=True))
    yardsticks = load_yardsticks(write_yardsticks_of(tmp_path), anchored)
    losses = load_test_losses(tmp_path.glob("runs/*/losses.npz"), anchored)
    best = anchored.loc[anchored["bound_all_runs"].idxmin()]
    table = yardstick_table(anchored, yardsticks, losses).set_index("model")
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
    assert "certified_gain_bits" not in yardstick_table(runs, yardsticks, losses_of_best(runs))


def test_yardsticks_of_other_data_or_without_a_model_are_refused(runs, tmp_path):
    path = write_yardsticks_of(tmp_path)
    with pytest.raises(UserError, match="yardsticks.json: yardsticks of the dataset d2d2"):
        load_yardsticks(path, runs.assign(data_hash="ab" * 32))
    yardsticks = read_yardsticks(path, DATA_HASH)
    rows = {name: row for name, row in yardsticks.rows.items() if name != FROZEN_BASE}
    write_yardsticks(path, yardsticks.model_copy(update={"rows": rows}))
    with pytest.raises(UserError, match="holds the models bigram, guessing, order3, unigram, expected .*frozen_base"):
        load_yardsticks(path, runs)


def test_yardsticks_of_another_base_or_other_settings_are_refused(runs, tmp_path):
    """As where data/ or results/ of another experiment was copied or linked."""
    settings = settings_of(SMALL)
    path = write_yardsticks_of(tmp_path, settings=settings)
    assert [each.name for each in load_yardsticks(path, runs, settings)] == list(LABELS)
    for changes, difference in (
        ({"model": {"n_layer": 3}}, "model.n_layer: 2 there, 3 here"),
        ({"scoring": {"documents": 49}}, "scoring.documents: 50 there, 49 here"),
        ({"scoring": {"smoothing": ["document(3)"]}}, "scoring.smoothing: "),
        ({"bound": {"delta": 0.06}}, "bound.delta: 0.05 there, 0.06 here"),
    ):
        with pytest.raises(UserError, match=re.escape(difference)) as stopped:
            load_yardsticks(path, runs, settings_of(SMALL, **changes))
        assert str(stopped.value).startswith(f"{path}: made with other settings") and "\n" not in str(stopped.value)
    with pytest.raises(UserError, match=r"the frozen base is [0-9a-f]{12}\.\.\., the runs adapt abababababab"):
        load_yardsticks(path, runs.assign(base_sha256="ab" * 32))
