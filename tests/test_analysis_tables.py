"""summary.csv and summary.tex against means computed here."""

import re

import numpy as np
import pandas as pd
import pytest
from analysis_data import LARGE, MANY_ARMS, SMALL, write_results

from sublora.analysis.arms import configurations, improvement_over_uniform, pareto_optimal
from sublora.analysis.hypotheses import hypothesis_table
from sublora.analysis.runs_table import collect_runs
from sublora.analysis.tables import among_best, summary_latex, summary_table, write_latex, write_table_csv
from sublora.config import Grid
from sublora.system.errors import UserError
from sublora.system.streams import generator
from sublora.system.versions import NUMERICS_VERSIONS


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> pd.DataFrame:
    return collect_runs(write_results(tmp_path_factory.mktemp("demo"), SMALL))


def test_summary_has_one_row_per_configuration_in_arm_order(runs):
    table = summary_table(runs)
    assert list(table["Budget"]) == [1000] * 5 + [2000] * 5
    assert list(table["Mode"]) == ["uniform", "fixed", "fixed", "fixed", "learned"] * 2
    np.testing.assert_array_equal(table["Ratio"], [np.nan, 0.2, 0.5, 0.8, np.nan] * 2)
    assert (table["Seeds"] == 3).all()


def test_summary_means_and_spreads(runs):
    row = summary_table(runs).iloc[7]
    values = runs[(runs["budget"] == 2000) & (runs["allocation"] == "fixed-0.5")]
    for heading, expected in (
        ("BPD", values["empirical_bpd"]),
        ("KL", values["kl_divergence"]),
        ("Bound", values["bound_value"]),
        ("Size", values["compressed_size_bits"] / 8 / 1000),
    ):
        assert row[heading] == pytest.approx(sum(expected) / 3)
        assert row[f"{heading}_std"] == pytest.approx(np.std(expected, ddof=1))


def test_large_grids_and_single_seeds(tmp_path):
    large = summary_table(collect_runs(write_results(tmp_path / "large", LARGE)))
    assert len(large) == 4 * 9
    single = Grid(budgets=(30,), allocations=("fixed-0.3",), seeds=(1,))
    alone = summary_table(collect_runs(write_results(tmp_path / "single", single)))
    assert alone[["BPD_std", "KL_std", "Bound_std", "Size_std"]].isna().all(axis=None)
    assert r"\pm" not in summary_latex(alone)


def test_latex_table_is_well_formed_and_agrees_with_the_csv(runs, tmp_path):
    write_table_csv(summary_table(runs), tmp_path / "summary.csv")
    write_latex(summary_table(runs), tmp_path / "summary.tex")
    table = pd.read_csv(tmp_path / "summary.csv")
    text = (tmp_path / "summary.tex").read_text()
    rows = [line for line in text.splitlines() if line.endswith(r"\\") and r"\pm" in line]
    assert len(rows) == len(table) == 10
    assert {row.count("&") for row in rows} == {4}
    assert [line for line in text.splitlines() if "multicolumn" in line] == [
        rf"\multicolumn{{5}}{{@{{}}l}}{{$d = {budget}$, 3 seeds}} \\" for budget in (1000, 2000)
    ]
    assert text.count("$") % 2 == 0 and text.count("{") == text.count("}")
    for row, (_, expected) in zip(rows, table.iterrows(), strict=True):
        cells = [re.sub(r"\\mathbf\{(.*?)\}|\$", r"\1", cell) for cell in row.removesuffix(r" \\").split(" & ")]
        ratio = "" if np.isnan(expected["Ratio"]) else f" {expected['Ratio']:g}"
        assert cells[0] == expected["Mode"] + ratio
        assert float(cells[1].split(r"{\pm}")[0]) == pytest.approx(expected["BPD"], abs=5e-4)
        assert float(cells[3].split(r"{\pm}")[1]) == pytest.approx(expected["Bound_std"], abs=5e-4)
    assert ["mathbf" in row for row in rows] == list(table["Among_best"])


def with_bounds(runs: pd.DataFrame, added: dict[str, list[float]]) -> pd.DataFrame:
    """Bounds of one budget: a seed's are all equal, plus what is added to an allocation, seed by seed."""
    runs = runs[runs["budget"] == 1000].sort_values("seed").copy()
    runs["bound_value"] = runs["seed"] / 100.0
    for allocation, differences in added.items():
        runs.loc[runs["allocation"] == allocation, "bound_value"] += differences
    return runs


def test_bold_are_all_bounds_that_no_paired_test_tells_from_the_smallest(runs):
    """Seeds differ by far more than allocations, so that only pairing tells them apart."""
    added = {
        "fixed-0.2": [0.010, 0.011, 0.012],  # t = 19, p = 0.003
        "fixed-0.5": [-0.010, 0.020, 0.005],  # t = 0.6
        "fixed-0.8": [0.008, 0.012, 0.016],  # t = 5.2, p = 0.035: only below 0.05 before Holm
        "learned": [0.300, 0.301, 0.302],
    }
    changed = with_bounds(runs, added)
    expected = {"uniform": True, "fixed-0.2": False, "fixed-0.5": True, "fixed-0.8": True, "learned": False}
    assert among_best(changed) == {(1000, name): best for name, best in expected.items()}
    table = summary_table(changed)
    assert list(table["Among_best"]) == list(expected.values())
    bold = [line for line in summary_latex(table).splitlines() if "mathbf" in line]
    assert [line.split(" & ")[0] for line in bold] == ["uniform", "fixed 0.5", "fixed 0.8"]
    assert all(line.count("mathbf") == 1 and line.split(" & ")[3].startswith(r"$\mathbf") for line in bold)


def test_one_seed_tells_no_bound_from_the_smallest(runs):
    assert all(among_best(runs[runs["seed"] == 42]).values())


def test_hypotheses_csv_round_trip(runs, tmp_path):
    table = hypothesis_table(runs)
    write_table_csv(table, tmp_path / "hypotheses.csv")
    read = pd.read_csv(tmp_path / "hypotheses.csv", dtype={"budget": str})
    assert list(read.columns) == list(table.columns)
    np.testing.assert_allclose(read["p"], table["p"], rtol=1e-5)
    assert list(read["verdict"]) == list(table["verdict"])


@pytest.mark.parametrize("grid", [SMALL, Grid(budgets=(30,), allocations=("uniform",), seeds=(1,)), MANY_ARMS])
def test_no_value_of_the_tables_holds_a_quotation_mark(tmp_path, grid):
    """R's read.table takes an apostrophe for the beginning of a quotation."""
    made = collect_runs(write_results(tmp_path, grid))
    for table in (hypothesis_table(made), summary_table(made)):
        values = [str(value) for value in table.to_numpy().ravel()]
        assert [value for value in values if "'" in value or '"' in value] == []


GOLDEN = {
    # version: (summary of d2000 learned, fixed-0.2 against fixed-0.5 over all budgets, Page's test over all budgets)
    5: (
        {"BPD": 4.557343, "KL": 3623.542, "Bound": 5.463512, "Size": 0.653},
        {
            "estimate": 0.1114665,
            "interval_low": 0.01981815,
            "p_holm": 1.0,
            "p_holm_if_budgets_independent": 1.0,
            "effect_size": 3.021311,
        },
        {"estimate": 0.9333333, "interval_low": 0.6464898, "p_holm": 0.001446759},
    )
}


def test_numbers_change_only_with_the_numerics_version(runs):
    """If this fails and the change is meant, raise NUMERICS_VERSIONS["figures"] and write the new numbers here."""
    summary, paired, trend = GOLDEN[NUMERICS_VERSIONS["figures"]]
    table = hypothesis_table(runs)
    pooled = table[table["role"] == "record"]
    rows = (
        (summary, summary_table(runs).iloc[9]),
        (paired, pooled[pooled["comparison"] == "fixed-0.2 - fixed-0.5"].iloc[0]),
        (trend, pooled[pooled["comparison"].str.contains("Page")].iloc[0]),
    )
    for expected, row in rows:
        assert row[list(expected)].to_dict() == pytest.approx(expected, rel=1e-6)


def test_improvement_is_paired_with_the_uniform_run_of_the_same_seed(runs):
    shuffled = runs.sample(frac=1.0, random_state=2)
    table = improvement_over_uniform(shuffled, "bound_value").set_index("name")["improvement_percent"]
    value = runs.set_index("name")["bound_value"]
    uniform = value["d2000_uniform_seed123"]
    expected = 100 * (uniform - value["d2000_fixed-0.8_seed123"]) / uniform
    assert table["d2000_fixed-0.8_seed123"] == pytest.approx(expected)
    with pytest.raises(UserError, match="no uniform allocation"):
        improvement_over_uniform(runs[runs["mode"] != "uniform"], "bound_value")


def test_pareto_optimal_against_the_definition():
    points = pd.DataFrame(generator("pareto").integers(0, 6, size=(30, 2)))
    found = pareto_optimal(points)
    for i, p in points.iterrows():
        dominated = any((q <= p).all() and (q < p).any() for _, q in points.iterrows())
        assert found[i] == (not dominated)
    assert found.any() and not found.all()


def test_configurations_do_not_depend_on_row_order(runs):
    shuffled = runs.sample(frac=1.0, random_state=1)
    pd.testing.assert_frame_equal(configurations(runs, ["bound_value"]), configurations(shuffled, ["bound_value"]))
