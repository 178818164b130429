"""The study of subspaces: its learning rates and runs, resumed where it stopped, and its tests on made-up bounds."""

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import subspace_study as study
from benchmarks import subspace_summary as summary
from benchmarks.study_rows import write_rows
from sublora.system.errors import UserError


def read_rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def made_up_bounds(effects: dict[str, float], splits: dict[str, float] | None = None) -> pd.DataFrame:
    """Runs whose bounds are a level for each seed and budget plus an effect for each candidate, and for each split."""
    rng, rows = np.random.default_rng(0), []
    for budget, seeds in study.SEEDS.items():
        for seed in seeds:
            level = 3.0 + rng.normal(0.0, 0.05)
            for candidate, effect in effects.items():
                value = level + effect + rng.normal(0.0, 0.002)
                row = {"candidate": candidate, "budget": budget, "allocation": "uniform", "seed": seed}
                rows.append(row | {"bound_value": value, "code_bits": 3.0 * budget})
                if budget == 500 and candidate in (summary.RANDOM, summary.SCALED):
                    rows += [
                        row | {"allocation": name, "bound_value": value + shift, "code_bits": 3.0 * budget}
                        for name, shift in (splits or {}).items()
                    ]
    return pd.DataFrame(rows)


def test_every_candidate_is_compared_on_the_same_seeds_and_no_seed_is_used_twice():
    rates = {(candidate, budget): 0.05 for candidate in study.CANDIDATES for budget in study.BUDGETS}
    tasks = study.tasks_of_the_study(rates)
    seeds = [seed for each in study.SEEDS.values() for seed in each]
    assert len(set(seeds)) == len(seeds) == 24 and not {42, 123, 999, study.TUNING_SEED} & set(seeds)
    main = [task for task in tasks if task.allocation == "uniform"]
    by_candidate = {c: {(t.budget, t.seed) for t in main if t.candidate == c} for c in study.CANDIDATES}
    assert len({frozenset(each) for each in by_candidate.values()}) == 1 and len(main) == 120 and len(tasks) == 216
    assert len(set(tasks)) == len(tasks)


@pytest.mark.parametrize("candidate", study.CANDIDATES)
def test_the_settings_of_every_run_are_valid_and_its_grids_are_of_equal_length(candidate):
    for allocation in ("uniform", *study.SPLITS):
        if allocation != "uniform" and candidate not in (summary.RANDOM, summary.SCALED):
            continue
        settings = study.settings_of(study.Task(candidate, 500, allocation, study.SEEDS[500][0], 0.2))
        assert 64 < settings.grid.n_runs <= 128
        assert settings.training.learning_rate == 0.2
        assert settings.training.final_learning_rate == pytest.approx(0.0016)
        assert settings.lora.alpha / settings.lora.rank == 4.0


def test_every_candidate_has_as_many_trainings_for_its_learning_rate(tmp_path, monkeypatch):
    """Half and twice the best coarse rate are tried; a second start runs nothing."""
    monkeypatch.setattr(study, "prepare_root", lambda candidate, **_: tmp_path)
    tried: list[study.Task] = []

    def tuned(task: study.Task, *, study: Path) -> dict:
        tried.append(task)
        distance = abs(np.log(task.learning_rate / 0.11))
        facts = {"candidate": task.candidate, "budget": task.budget, "learning_rate": task.learning_rate}
        return facts | {"estimated_bound_bits": 3.0 + distance, "code_bits": 1.0, "seconds": 1.0}

    monkeypatch.setattr(study, "tuned", tuned)
    study.tune(tmp_path / "rates.csv", 1)
    assert len(tried) == 6 * len(study.CANDIDATES) * len(study.BUDGETS)
    rows = read_rows(tmp_path / "rates.csv")
    assert set(study.best_rates(rows).values()) == {0.1}
    study.tune(tmp_path / "rates.csv", 1)
    assert len(tried) == len(rows)


def test_runs_that_are_there_are_not_run_again(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "prepare_root", lambda candidate, **_: tmp_path)
    done: list[study.Task] = []

    def measured(task: study.Task, *, study: Path) -> dict:
        done.append(task)
        if len(done) == 3:
            raise KeyboardInterrupt
        return {name: getattr(task, name, 1.0) for name in columns}

    columns = study.RUN_COLUMNS
    monkeypatch.setattr(study, "measured", measured)
    with pytest.raises(UserError, match="no learning rate of random at d = 25"):
        study.run(tmp_path / "runs.csv", tmp_path / "rates.csv", 1)
    rates = [
        {"candidate": c, "budget": d, "learning_rate": 0.05, "estimated_bound_bits": 3.0, "code_bits": 1, "seconds": 1}
        for c in study.CANDIDATES
        for d in study.BUDGETS
    ]
    with open(tmp_path / "rates.csv", "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, study.RATE_COLUMNS)
        writer.writeheader()
        writer.writerows(rates)
    with pytest.raises(KeyboardInterrupt):
        study.run(tmp_path / "runs.csv", tmp_path / "rates.csv", 1)
    assert len(read_rows(tmp_path / "runs.csv")) == 2
    study.run(tmp_path / "runs.csv", tmp_path / "rates.csv", 1)
    rows = read_rows(tmp_path / "runs.csv")
    assert len(rows) == 216 and len(done) == 217


@pytest.mark.slow
def test_the_plan_s_tests_find_a_gain_and_the_lack_of_one(tmp_path):
    effects = {"random": 0.0, "gradient": -0.03, "fisher": 0.05, "cores": -0.001}
    splits = {"fixed-0.2": 0.05, "fixed-0.5": 0.02, "fixed-0.8": -0.02, "learned": 0.01}
    runs = made_up_bounds(effects, splits)
    runs.to_csv(tmp_path / "runs.csv", index=False)
    gradient, fisher, cores = summary.summarize(tmp_path / "runs.csv", tmp_path)
    assert "gradient: better than random, -0.0" in gradient and "24 seeds" in gradient
    assert "fisher: gains less than 0.01 bits" in fisher
    assert "cores: gains less than 0.01 bits" in cores or "cores: better than random" in cores
    table = pd.read_csv(tmp_path / "table.csv").set_index(["candidate", "budget"])
    assert table.loc[("gradient", "all"), "mean_bits"] == pytest.approx(-0.03, abs=0.002)
    assert table.loc[("gradient", "500"), "p_better"] == pytest.approx(1 / 64)
    # Holm over four candidates, of which one has no runs.
    assert table.loc[("gradient", "all"), "p_holm"] == pytest.approx(4e-5, rel=0.01)
    found = pd.read_csv(tmp_path / "splits.csv").set_index(["candidate", "contrast"])
    assert found.loc[("gradient", "fixed-0.8 - fixed-0.5"), "p_holm"] == pytest.approx(2 / 64)
    assert found.loc[("random", "fixed-0.2 - fixed-0.5"), "mean_bits"] == pytest.approx(0.03)
    assert found.loc[("random", "learned - uniform"), "mean_bits"] == pytest.approx(0.01)
    assert (tmp_path / "subspaces.png").stat().st_size > 10_000


def test_the_gates_of_learned_runs_are_read_from_their_bounds(tmp_path):
    """A line of runs.csv for each, in its order; what others and other seeds hold is left out."""
    runs = [("gradient", "learned", 5202), ("random", "learned", 5201), ("gradient", "fixed-0.2", 5201)]
    found = {"candidate": "", "budget": 500, "allocation": "", "seed": 0}
    rows = [found | {"candidate": c, "allocation": a, "seed": seed} for c, a, seed in runs]
    write_rows(tmp_path / "runs.csv", study.RUN_COLUMNS, rows)
    for candidate, gamma in (("gradient", 0.25), ("random", 0.75)):
        for seed in (5201, 5202):
            folder = tmp_path / candidate / f"results/runs/d500_learned_seed{seed}"
            folder.mkdir(parents=True)
            gates = {"0": gamma, "head": seed / 10_000}
            (folder / "bounds.json").write_text(json.dumps({"gamma": gates}), encoding="utf-8")
    study.write_gates(tmp_path / "gates.csv", tmp_path / "runs.csv", study=tmp_path)
    found = [tuple(row.values()) for row in read_rows(tmp_path / "gates.csv")]
    assert found == [
        ("gradient", "500", "5202", "0", "0.25"),
        ("gradient", "500", "5202", "head", "0.5202"),
        ("random", "500", "5201", "0", "0.75"),
        ("random", "500", "5201", "head", "0.5201"),
    ]


def test_without_runs_there_is_no_summary(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        summary.summarize(tmp_path / "runs.csv", tmp_path)
    made_up_bounds({"random": 0.0}).to_csv(tmp_path / "runs.csv", index=False)
    with pytest.raises(UserError, match="another candidate"):
        summary.summarize(tmp_path / "runs.csv", tmp_path)
