"""The allocation study's differences and intervals, on made-up runs."""

import math
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
from analysis_data import SMALL, write_results
from conftest import REPOSITORY
from scipy import stats

from benchmarks import allocation_study as study
from sublora.config import Grid
from sublora.system.errors import UserError

SEEDS = (1, 2, 3, 4)


def runs_of(bounds: dict[str, list[float]], budget: int = 500) -> pd.DataFrame:
    """Runs with these bounds, one for each seed."""
    return pd.DataFrame(
        {"budget": budget, "seed": seed, "allocation": name, "bound_value": value}
        for name, values in bounds.items()
        for seed, value in zip(SEEDS, values, strict=True)
    )


def test_a_split_is_chosen_on_the_other_seeds():
    """Pure chance makes one split best on each seed: chosen on that seed it would gain 1, chosen elsewhere nothing."""
    lucky = np.zeros((4, 4)) - np.eye(4)
    bounds = {f"fixed-0.{i}": list(lucky[i]) for i in range(4)} | {"uniform": [0.0] * 4, "learned": [0.5] * 4}
    best, learned, against_best = study.contrasts("rank2", runs_of(bounds))
    assert best.values == (0.0,) * 4
    assert learned.values == (0.5,) * 4
    assert against_best.values == (0.5,) * 4


def test_a_split_that_is_better_on_every_seed_is_chosen_on_every_seed():
    bounds = {"fixed-0.2": [1.0, 1.1, 1.2, 1.3], "fixed-0.8": [2.0] * 4, "uniform": [1.5] * 4, "learned": [1.4] * 4}
    best, *_ = study.contrasts("rank2", runs_of(bounds))
    assert best.chosen == ("fixed-0.2",) * 4
    assert best.values == pytest.approx((-0.5, -0.4, -0.3, -0.2))


def test_intervals_are_those_of_one_spread_for_all_cells_of_a_part():
    """As the residual variance of an analysis of variance with a mean for each cell."""
    values = {cell: np.array([0.1, 0.3, -0.2, 0.4]) * (i + 1) for i, cell in enumerate(study.RANKS)}
    found = [study.Differences(cell, 500, study.CONTRASTS[1], tuple(v)) for cell, v in values.items()]
    table = study.with_intervals(found)
    residuals = np.concatenate([v - v.mean() for v in values.values()])
    spread = math.sqrt((residuals**2).sum() / 12)
    np.testing.assert_allclose(table["pooled_std_bits"], spread)
    half = stats.t.ppf(0.975, 12) * spread / 2.0
    np.testing.assert_allclose(table["interval_high_bits"] - table["mean_bits"], half)
    assert list(table["mean_bits"]) == pytest.approx([v.mean() for v in values.values()])


def test_fresh_cells_are_tested_and_corrected():
    seeds = 8
    clear, none = tuple(np.linspace(-0.05, -0.01, seeds)), tuple(np.linspace(-0.05, 0.05, seeds))
    found = [
        study.Differences(cell, 125, study.CONTRASTS[1], v)
        for cell, v in zip(study.FRESH[:2], (clear, none), strict=True)
    ]
    found += [study.Differences("rank2", 125, study.CONTRASTS[1], clear)]
    table = study.with_intervals(found).set_index("cell")
    assert table.loc["fresh_rank2", ["p_less", "p_holm"]].tolist() == [2.0**-seeds, study.FRESH_TESTS * 2.0**-seeds]
    assert table.loc["fresh_rank4", "p_holm"] > 0.3
    assert math.isnan(table.loc["rank2", "p_less"])


def test_what_moving_gates_gains_is_paired_by_seed():
    learned = runs_of({"learned": [1.0, 2.0, 3.0, 4.0], "uniform": [0.0] * 4}).assign(
        mode=["learned"] * 4 + ["uniform"] * 4
    )
    still = runs_of({"learned": [4.5, 3.5, 2.5, 1.5]}).assign(mode="learned")
    (found,) = study.against_still({"fresh_rank16": learned, study.STILL: still})
    assert (found.budget, found.contrast, found.values) == (500, study.GATES_MOVED, (-3.5, -1.5, 0.5, 2.5))
    assert study.against_still({"fresh_rank16": learned}) == []


def test_a_budget_that_diverges_does_not_widen_the_other_intervals():
    found = [study.Differences("rank16", d, study.CONTRASTS[1], v) for d, v in ((500, (0.1, 0.2)), (8000, (-9.0, 9.0)))]
    table = study.with_intervals(found).set_index("budget")
    assert table.loc[500, "pooled_std_bits"] == pytest.approx(0.1 / math.sqrt(2.0))
    assert table.loc[8000, "part"] == study.UNSTABLE


@pytest.mark.slow
def test_finished_cells_become_tables_and_figures(tmp_path, capsys, monkeypatch):
    grid = Grid(budgets=(125, 500), allocations=SMALL.allocations, seeds=SEEDS)
    for cell in ("zero_b", "rank2", "rank4", "random_base", "with_mlp"):
        write_results(tmp_path / "study" / cell / "results" / "runs", grid)
    for unfinished in (tmp_path / "study/with_mlp/results/runs").glob("*seed4"):
        shutil.rmtree(unfinished)
    out = tmp_path / "out"
    out.mkdir()
    study.write_study(tmp_path / "study", out)
    said = capsys.readouterr()
    assert "with_mlp: left out: 30 of 40 runs" in said.err
    assert "both_random: left out" in said.err
    assert "zero_b, H1. Do asymmetric fixed splits beat the equal one?" in said.out
    runs = pd.read_csv(out / "runs.csv")
    assert runs.groupby("cell").size().to_dict() == {"zero_b": 40, "rank2": 40, "rank4": 40, "random_base": 40}
    regime = pd.read_csv(out / "regime.csv")
    assert len(regime) == 3 * 2 * len(study.CONTRASTS)
    assert (out / "regime.png").stat().st_size > 10_000
    figures = {path: path.read_bytes() for path in out.glob("*.p??")}
    assert {path.stem for path in figures} == {"regime", "allocation_grid_zero_b", "gating_trend_zero_b"}
    monkeypatch.setattr(sys, "argv", ["allocation_study", str(out)])
    study.main()
    assert {path: path.read_bytes() for path in figures} == figures


def test_without_a_finished_cell_there_is_nothing_to_write(tmp_path):
    with pytest.raises(UserError, match="no finished cell; run make study"):
        study.write_study(tmp_path, tmp_path)


@pytest.mark.parametrize(
    "path", sorted([*REPOSITORY.glob("docs/**/*.csv"), *REPOSITORY.glob("demo/*.csv")]), ids=lambda p: p.name
)
def test_no_apostrophe_opens_a_quotation_in_a_published_table(path):
    """As R's read.table would read one."""
    assert "'" not in path.read_text(encoding="utf-8")
