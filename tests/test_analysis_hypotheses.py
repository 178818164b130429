"""The hypotheses table: what is compared, corrected and concluded, on data with known effects."""

import math

import numpy as np
import pandas as pd
import pytest
from analysis_data import SMALL, write_results
from scipy import stats

from sublora.analysis.hypotheses import hypothesis_table, inference
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


def row_of(table: pd.DataFrame, comparison: str, metric: str = "", budget: str = "all", role: str = "") -> pd.Series:
    (index,) = table.index[
        table["comparison"].str.contains(comparison, regex=False)
        & table["metric"].str.startswith(metric)
        & (table["budget"] == budget)
        & (table["role"] == role if role else table["role"] != "check")
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
    by_seed = (differences[:3] + differences[3:]) / 2.0
    table = hypothesis_table(set_difference(demo, "bound_value", differences))
    row = row_of(table, "fixed-0.2 - fixed-0.5", "bound_value", role="record")
    expected = stats.ttest_1samp(by_seed, 0.0).confidence_interval(0.95)
    assert row["estimate"] == pytest.approx(-0.15)
    assert (row["interval_low"], row["interval_high"]) == pytest.approx((expected.low, expected.high))
    assert row["p"] == 1 / 8  # three seeds, one-sided
    assert row["p_holm"] == 2 / 8  # two splits are compared with the equal one
    assert row["p_holm_if_budgets_independent"] == 2 / 64
    assert row["effect_size"] == pytest.approx(-0.15 / by_seed.std(ddof=1))
    assert row["n_seeds"] == 3
    assert math.isnan(row["gain_at_most"])
    assert row["verdict"] == "undecided"
    assert "so few seeds cannot decide: smallest attainable p_holm 0.25" in row["note"]
    single = row_of(table, "fixed-0.2 - fixed-0.5", "bound_value", "1000")
    assert (single["estimate"], single["p"], single["verdict"]) == (pytest.approx(-0.2), 1 / 8, "exploratory")


def test_only_rows_of_record_are_decided(tmp_path):
    runs = grid_of(tmp_path, budgets=(1000, 2000))
    for metric in ("bound_value", "empirical_bpd", "kl_divergence"):
        runs = set_difference(runs, metric, -np.linspace(0.1, 0.2, 24))
    table = hypothesis_table(runs)
    assert set(table["role"]) == {"record", "check", "exploratory"}
    for role, rows in table.groupby("role"):
        assert role == "record" or (rows["verdict"] == role).all()
    record = table[(table["role"] == "record") & (table["hypothesis"] == "H1")]
    assert list(record["metric"].unique()) == ["bound_value"]
    assert list(record["budget"].unique()) == ["all"]


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        (-np.linspace(0.1, 0.2, 12), "fixed-0.2 beats fixed-0.5"),
        (np.linspace(0.1, 0.2, 12), "gains less than 0.01 bits/token"),
        (np.linspace(-0.004, 0.004, 12), "gains less than 0.01 bits/token"),
        (np.linspace(-0.1, 0.08, 12), "undecided"),
    ],
)
def test_the_three_verdicts_of_h1(tmp_path, differences, verdict):
    runs = set_difference(grid_of(tmp_path), "bound_value", differences)
    row = row_of(hypothesis_table(runs), "fixed-0.2 - fixed-0.5", "bound_value", "1000")
    assert row["verdict"] == verdict
    assert (row["gain_at_most"] < 0.01) == verdict.startswith("gains less")


def test_the_mixed_model_agrees_with_differences_of_a_balanced_design(demo):
    """With complete blocks the fixed effect is the mean difference, whatever the intercepts."""
    table = hypothesis_table(demo)
    for arm in ("fixed-0.2", "fixed-0.8"):
        check = row_of(table, f"{arm} - fixed-0.5", "bound_value", role="check")
        record = row_of(table, f"{arm} - fixed-0.5", "bound_value", role="record")
        assert check["estimate"] == pytest.approx(record["estimate"], abs=1e-9)
        assert check["interval_low"] < check["estimate"] < check["interval_high"]


def test_the_mixed_model_agrees_with_the_analysis_of_variance(tmp_path):
    """One budget, two arms, intercepts that vary: the Wald interval is the paired one with a normal quantile."""
    differences = np.linspace(-0.05, 0.2, 12)
    runs = set_difference(grid_of(tmp_path, allocations=("fixed-0.2", "fixed-0.5")), "bound_value", differences)
    runs["bound_value"] += runs["seed"]  # intercepts far larger than the noise
    row = row_of(hypothesis_table(runs), "fixed-0.2 - fixed-0.5", "bound_value", role="check")
    half = stats.norm.ppf(0.975) * differences.std(ddof=1) / math.sqrt(12)
    assert row["interval_high"] - row["estimate"] == pytest.approx(half, rel=0.02)


def test_holm_is_applied_within_a_family_and_never_lowers_p(demo):
    table = hypothesis_table(demo)
    tested = table[table["p"].notna()]
    assert (tested["p_holm"] >= tested["p"]).all()
    gates = tested[tested["comparison"].str.startswith("gamma of") & tested["metric"].str.startswith("gamma_")]
    pooled = gates[gates["budget"] == "all"]
    assert len(pooled) == 5
    np.testing.assert_allclose(pooled["p_holm"], inference.holm(pooled["p"].to_numpy()))


@pytest.mark.parametrize(("kl", "bpd", "share"), [(-1.0, -0.1, 1.0), (1.0, 0.1, 0.0), (-1.0, 0.1, 0.0)])
def test_pareto_domination_needs_both_measures(tmp_path, kl, bpd, share):
    scale = np.linspace(1.0, 2.0, len(MANY))
    runs = set_difference(grid_of(tmp_path), "kl_divergence", kl * scale)
    runs = set_difference(runs, "empirical_bpd", bpd * scale)
    row = row_of(hypothesis_table(runs), "fixed-0.2 Pareto-dominates", budget="1000")
    assert (row["verdict"], row["estimate"]) == ("exploratory", share)
    assert (row["p"] < 0.05) == (share == 1.0)
    assert ("a trade-off" in row["note"]) == (kl * bpd < 0.0)


def test_gates_away_from_half_and_rising_are_found(tmp_path):
    table = hypothesis_table(grid_of(tmp_path, layers=6))
    assert row_of(table, "jointly", budget="1000")["verdict"] == "some gamma differs from 0.5"
    assert row_of(table, "the head against", budget="1000")["verdict"] == "the head gives more to B"
    assert row_of(table, "layer 0 against", budget="1000")["verdict"] == "layer 0 gives more to A"
    assert row_of(table, "Page", budget="1000")["verdict"] == "gamma rises with depth"
    assert row_of(table, "Spearman", budget="1000")["verdict"] == "exploratory"


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
    assert row["n_seeds"] == 3
    assert row["p"] == inference.page_p(means.to_numpy())


def test_one_seed_decides_no_difference_and_has_no_spread(tmp_path):
    table = hypothesis_table(grid_of(tmp_path, seeds=(7,)))
    flips = table[table["hypothesis"].isin(["H1", "H2"]) & (table["role"] != "check")]
    assert flips["p"].isin([0.5, 1.0]).all()
    assert (flips.loc[flips["role"] == "record", "verdict"] == "undecided").all()
    assert (table.loc[table["role"] == "check", "verdict"] == "not testable").all()
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


def test_what_gates_are_worth_is_said_in_bits(demo):
    table = hypothesis_table(demo)
    runs = demo.set_index(["allocation", "budget", "seed"])["bound_value"]
    for reference in ("uniform", "fixed-0.5"):
        row = row_of(table, f"learned - {reference}")
        assert row["estimate"] == pytest.approx((runs["learned"] - runs[reference]).mean())
        assert (row["unit"], row["verdict"]) == ("bits/token", "exploratory")
