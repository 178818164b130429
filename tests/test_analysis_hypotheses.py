"""The hypotheses table: what is compared, corrected and concluded, on data with known effects."""

import math

import numpy as np
import pandas as pd
import pytest
from analysis_data import SMALL, write_results
from scipy import stats

from sublora.analysis import inference
from sublora.analysis.hypotheses import hypothesis_table
from sublora.analysis.runs_table import collect_runs
from sublora.config import Grid

MANY = tuple(range(1, 13))


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> pd.DataFrame:
    return collect_runs(write_results(tmp_path_factory.mktemp("demo"), SMALL))


def grid_of(tmp_path, **changes) -> pd.DataFrame:
    grid = {"budgets": (1000,), "allocations": SMALL.allocations, "seeds": MANY} | changes
    layers = grid.pop("layers", 4)
    return collect_runs(write_results(tmp_path, Grid(**grid), layers=layers))


def row_of(table: pd.DataFrame, comparison: str, metric: str = "", budget: str = "all") -> pd.Series:
    (index,) = table.index[
        table["comparison"].str.contains(comparison, regex=False)
        & table["metric"].str.startswith(metric)
        & (table["budget"] == budget)
    ]
    return table.loc[index]


def set_difference(runs: pd.DataFrame, metric: str, differences: np.ndarray) -> pd.DataFrame:
    """fixed-0.2 differs from fixed-0.5 by these amounts, in the order of (budget, seed)."""
    runs = runs.set_index(["allocation", "budget", "seed"]).sort_index()
    reference = runs.loc["fixed-0.5", metric]
    for (budget, seed), difference in zip(reference.index, differences, strict=True):
        runs.loc[("fixed-0.2", budget, seed), metric] = reference[budget, seed] + difference
    return runs.reset_index()


def test_a_row_by_hand(demo):
    differences = np.array([-0.10, -0.20, -0.30, -0.05, -0.15, -0.10])
    table = hypothesis_table(set_difference(demo, "bound_value", differences))
    row = row_of(table, "fixed-0.2 - fixed-0.5", "bound_value")
    expected = stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
    assert row["estimate"] == pytest.approx(-0.15)
    assert (row["interval_low"], row["interval_high"]) == pytest.approx((expected.low, expected.high))
    assert row["p"] == 2 / 64
    assert row["p_holm"] == 4 / 64  # two splits are compared with the equal one
    assert row["effect_size"] == pytest.approx(-0.15 / differences.std(ddof=1))
    assert row["n_pairs"] == 6
    assert row["verdict"] == "undecided"
    assert "flipping whole seeds gives p = 0.25 (smallest attainable 0.25)" in row["note"]
    assert "these data cannot decide: smallest attainable p_holm 0.0625" in row["note"]
    single = row_of(table, "fixed-0.2 - fixed-0.5", "bound_value", "1000")
    assert single["estimate"] == pytest.approx(-0.2)
    assert single["p"] == 2 / 8


def test_planned_seeds_let_both_the_t_test_and_the_exact_test_decide(demo):
    differences = np.array([-0.10, -0.20, -0.30, -0.05, -0.15, -0.10])
    row = row_of(hypothesis_table(set_difference(demo, "bound_value", differences)), "fixed-0.2 - fixed-0.5", "bound")
    seeds, alpha = int(row["seeds_to_decide"]), 0.05 / 2
    needed = inference.pairs_to_decide(differences, alpha=alpha)
    assert 2 * seeds >= needed
    assert inference.smallest_sign_flip_p(2 * seeds) <= alpha
    assert 2 * (seeds - 1) < needed or inference.smallest_sign_flip_p(2 * (seeds - 1)) > alpha


@pytest.mark.parametrize(("sign", "verdict"), [(-1, "fixed-0.2 beats"), (1, "fixed-0.2 is worse than")])
def test_clear_differences_are_decided_both_ways(tmp_path, sign, verdict):
    runs = set_difference(grid_of(tmp_path), "bound_value", sign * np.linspace(0.1, 0.2, len(MANY)))
    row = row_of(hypothesis_table(runs), "fixed-0.2 - fixed-0.5", "bound_value", "1000")
    assert row["p_holm"] <= 0.05
    assert row["verdict"] == f"{verdict} fixed-0.5"


def test_a_verdict_that_rests_on_independent_budgets_says_so(tmp_path):
    runs = grid_of(tmp_path, budgets=(100, 200, 300, 400), seeds=(1, 2, 3))
    runs = set_difference(runs, "bound_value", -np.linspace(0.1, 0.2, 12))
    row = row_of(hypothesis_table(runs), "fixed-0.2 - fixed-0.5", "bound_value")
    assert row["p_holm"] <= 0.05
    assert row["verdict"] == "fixed-0.2 beats fixed-0.5, if budgets of one seed are independent"


def test_holm_is_applied_within_a_family_and_never_lowers_p(demo):
    table = hypothesis_table(demo)
    tested = table[table["p"].notna()]
    assert (tested["p_holm"] >= tested["p"]).all()
    gates = tested[tested["comparison"].str.startswith("gamma of") & tested["metric"].str.startswith("gamma_")]
    pooled = gates[gates["budget"] == "all"]
    assert len(pooled) == 5
    np.testing.assert_allclose(pooled["p_holm"], inference.holm(pooled["p"].to_numpy()))


@pytest.mark.parametrize(
    ("kl", "bpd", "verdict", "share"),
    [
        (-1.0, -0.1, "fixed-0.2 dominates fixed-0.5", 1.0),
        (1.0, 0.1, "fixed-0.2 is dominated by fixed-0.5", 0.0),
        (-1.0, 0.1, "undecided", 0.0),
    ],
)
def test_pareto_domination_needs_both_measures(tmp_path, kl, bpd, verdict, share):
    scale = np.linspace(1.0, 2.0, len(MANY))
    runs = set_difference(grid_of(tmp_path), "kl_divergence", kl * scale)
    runs = set_difference(runs, "empirical_bpd", bpd * scale)
    row = row_of(hypothesis_table(runs), "fixed-0.2 Pareto-dominates", budget="1000")
    assert (row["verdict"], row["estimate"]) == (verdict, share)
    assert ("a trade-off" in row["note"]) == (verdict == "undecided")


def test_pareto_verdict_follows_the_test_and_not_the_share(tmp_path):
    """Seven pairs in one measure and seven others in the second can both fall clearly, and few pairs in both."""
    small, large = 0.01, 1.0
    kl = -np.array([large] * 7 + [-small] * 5)
    bpd = -np.array([-small] * 5 + [large] * 7)
    runs = set_difference(set_difference(grid_of(tmp_path), "kl_divergence", kl), "empirical_bpd", bpd)
    row = row_of(hypothesis_table(runs), "fixed-0.2 Pareto-dominates", budget="1000")
    assert row["estimate"] == pytest.approx(2 / 12)
    assert row["p_holm"] < 0.05
    assert row["verdict"] == "fixed-0.2 dominates fixed-0.5"


def test_gates_away_from_half_and_rising_are_found(tmp_path):
    table = hypothesis_table(grid_of(tmp_path, layers=6))
    assert row_of(table, "jointly", budget="1000")["verdict"] == "some gamma differs from 0.5"
    assert row_of(table, "the head against", budget="1000")["verdict"] == "the head gives more to B"
    assert row_of(table, "layer 0 against", budget="1000")["verdict"] == "layer 0 gives more to A"
    assert row_of(table, "Page", budget="1000")["verdict"] == "gamma rises with depth"
    assert row_of(table, "Spearman", budget="1000")["verdict"] == "gamma rises with depth"


def test_falling_gates_are_called_falling(tmp_path):
    runs = grid_of(tmp_path, layers=6)
    layers = [f"gamma_{layer}" for layer in range(6)]
    runs[layers] = runs[layers[::-1]].to_numpy()
    row = row_of(hypothesis_table(runs), "Page", budget="1000")
    assert row["estimate"] < 0.0
    assert row["verdict"] == "gamma falls with depth"


def test_the_trend_counts_a_seed_once_whatever_its_budgets(tmp_path):
    runs = grid_of(tmp_path, budgets=(1000, 2000), seeds=(1, 2, 3))
    learned = runs[runs["mode"] == "learned"]
    means = learned.groupby("seed")[[f"gamma_{layer}" for layer in range(4)]].mean()
    row = row_of(hypothesis_table(runs), "Page")
    assert row["n_pairs"] == 3
    assert row["p"] == inference.page_p(means.to_numpy())


def test_one_seed_decides_no_difference_and_has_no_spread(tmp_path):
    table = hypothesis_table(grid_of(tmp_path, seeds=(7,)))
    flips = table[table["hypothesis"].isin(["H1", "H2"])]
    assert (flips["p"] == 1.0).all()
    assert (flips["verdict"] == "undecided").all()
    assert flips["seeds_to_decide"].isna().all()
    assert flips.loc[flips["unit"] != "share of pairs", ["interval_low", "interval_high"]].isna().all(axis=None)


@pytest.mark.parametrize(
    ("changes", "hypothesis", "reason"),
    [
        ({"allocations": ("uniform", "fixed-0.2", "learned")}, "H1", "needs fixed-0.5 and another fixed split"),
        ({"allocations": ("fixed-0.5", "learned")}, "H1", "needs fixed-0.5 and another fixed split"),
        ({"allocations": ("fixed-0.5", "fixed-0.2")}, "H2", "no learned allocation"),
        ({"allocations": ("fixed-0.5", "fixed-0.2")}, "H3", "no learned allocation"),
        ({"layers": 2}, "H3", "at least 3 layers, the model has 2"),
    ],
)
def test_what_a_grid_cannot_speak_of_is_said(tmp_path, changes, hypothesis, reason):
    table = hypothesis_table(grid_of(tmp_path, **{"seeds": (1, 2)} | changes))
    (row,) = table[table["hypothesis"] == hypothesis].to_dict("records")
    assert row["verdict"] == "not testable"
    assert reason in row["note"]
    assert math.isnan(row["p"])


def test_same_runs_same_table(demo):
    pd.testing.assert_frame_equal(hypothesis_table(demo), hypothesis_table(demo.sample(frac=1.0, random_state=3)))
