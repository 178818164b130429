"""The study of few documents: its cells, what is held out, the gains, and figure and table from made-up rows."""

import csv

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import REPOSITORY
from test_data_units import grouped_data, sample_rows, write_authors

from benchmarks import few_documents as study
from benchmarks import few_documents_figure as figure
from benchmarks.study_rows import read_rows, write_rows
from sublora import config
from sublora.bounds.anchor import AnchoredMixture
from sublora.bounds.full_sample import betting
from sublora.data.dataset import TokenDataset
from sublora.data.prepare import prepare_dataset
from sublora.losses.bounded import bounded_loss
from sublora.system.errors import UserError
from sublora.tools.adapt.plan import choose_budget
from sublora.tools.expected_bound import KnownData

DEMO = yaml.safe_load((REPOSITORY / "demo/config/config.yaml").read_text(encoding="utf-8"))
ALL_CELLS = (*study.CELLS, study.OF_ALL_DOCUMENTS)


def settings_of(cell, arm="message"):
    values = study.cell_values(DEMO, cell, n_train=cell.n, arm=arm)
    return config.parse_settings(values, source="test")


@pytest.mark.parametrize("cell", study.CELLS, ids=lambda cell: cell.name)
@pytest.mark.parametrize("arm", ["message", "held out"])
def test_settings_of_every_cell_are_the_demos_except_for_what_the_plan_changes(cell, arm):
    settings, demo = settings_of(cell, arm), config.parse_settings(DEMO, source="demo")
    assert settings.data.unit == cell.unit and settings.data.train_documents == cell.n
    assert settings.base == demo.base and settings.lora == demo.lora and settings.model == demo.model
    assert settings.message.extra_bits == 7.0 and settings.subspace.scale is None  # the demo's at that time
    assert settings.bound == demo.bound
    assert settings.grid.n_runs == len(study.SEEDS) * (len(cell.budgets) if arm == "message" else 1)
    assert (settings.message.quantizer == "plain") == (arm == "held out")
    # Only texts of fitting lengths are in the file.
    assert settings.data.corpus.path == f"../{study.TEXTS}"


def test_every_run_of_the_plan_is_a_task_once_and_a_seed_is_done_before_the_next():
    tasks = list(study.all_tasks())
    assert len({task.key for task in tasks}) == len(tasks)
    budgets = sum(len(cell.budgets) for cell in study.CELLS)
    assert len(tasks) == 3 * (budgets + len(study.CELLS)) + 9
    first = [task.seed for task in tasks if task.cell in study.CELLS and task.budget != 25]
    assert first[: 2 * len(study.CELLS)] == [study.SEEDS[0]] * 2 * len(study.CELLS)


def test_the_last_units_are_held_out_and_some_documents_of_each(tmp_path, monkeypatch):
    write_authors(tmp_path, sample_rows())
    data = grouped_data(train_documents=20)
    prepare_dataset(data, tmp_path)
    dataset = TokenDataset.open(tmp_path, data)
    whole = dataset.units("train")
    for most, held_out in ((1000, 10), (30, 10), (5, 10)):
        monkeypatch.setattr(study, "HELD_OUT_DOCUMENTS", most)
        documents_D, units = study.held_out_documents(dataset, held_out)
        of_each = max(1, most // held_out)
        assert len(units) == held_out and len(set(documents_D.tolist())) == len(documents_D)
        assert documents_D.min() >= whole.starts_U[len(whole) - held_out]
        assert units.sizes_U.tolist() == np.minimum(whole.sizes_U[-held_out:], of_each).tolist()
        # Documents of a unit stay together.
        of_units = np.searchsorted(whole.starts_U, documents_D, side="right") - 1
        assert of_units.tolist() == np.repeat(np.arange(len(whole) - held_out, len(whole)), units.sizes_U).tolist()


def test_gains_of_held_out_documents_are_the_betting_bound_without_a_message():
    settings = settings_of(study.CELLS[0], "held out")
    loss = bounded_loss(settings, vocab_size=257, n_units=50, n_documents=50)
    mixture = AnchoredMixture(4, 12)
    excess_U = np.linspace(-0.5, -0.1, 50)
    row = study.tested(excess_U, mixture, loss, extra_bits=7.0)
    lower, upper = mixture.excess_range_bits(257, 101)
    bound = betting(excess_U, lower=lower, upper=upper, code_bits=0.0, n=50, delta=0.04)
    assert row["gain_untuned"] == pytest.approx(-bound, abs=1e-4)
    assert 0.0 < row["gain"] < row["gain_untuned"] < 0.3 and row["m"] == 50 and row["smoothing"] == "document(4)"


def test_what_adapt_expects_is_what_the_study_measured():
    """The gain of the d that the plan names, from n and the base's loss alone: the same sign, 0.03 off at most."""
    rows = pd.read_csv(study.CHANGES.parent / "runs.csv")
    named = figure.named_beforehand(rows[rows["arm"] == "message"])
    base_losses_U = np.full(50, 3.2)
    for cell in ALL_CELLS:
        found = named[named["cell"] == cell.name]
        if found.empty:  # not run by the study
            continue
        known = KnownData(int(found["n"].iloc[0]), 257, 430.0, base_losses_U)
        expected = choose_budget(settings_of(cell), known, cell.budgets[:1], base_losses_U).prediction.gain
        measured = found["gain"].mean()
        assert np.sign(expected) == np.sign(measured) and abs(expected - measured) < 0.03, cell.name
    assert {cell.name for cell in ALL_CELLS if cell.unit == "document"} <= set(named["cell"])


def made_up_rows():
    """Rows of every task, with gains that grow with n."""
    rows = []
    for task in study.all_tasks():
        n = task.cell.n or (72_354 if task.cell.unit == "document" else 4_600)
        gain = 0.1 * np.log10(n / 200) + (0.1 if task.arm == "held out" else 0.0)
        row = {"cell": task.cell.name, "unit": task.cell.unit, "n": n, "arm": task.arm, "d": task.budget}
        row |= {"seed": task.seed, "n_trained": n // 2, "m": n // 2, "code_bits": 100.0, "test_gain": 0.3}
        rows.append(row | {"gain": gain + 1e-3 * (task.seed % 10), "gain_untuned": gain + 0.01})
    return pd.DataFrame(rows)


def test_figure_and_table_hold_every_cell():
    rows = made_up_rows()
    drawn = figure.gain_against_n(rows)
    assert len(drawn.axes) == 2
    drawn.draw_without_rendering()
    lines = figure.table(rows).splitlines()
    assert len(lines) == 2 + len(ALL_CELLS)
    assert "| document | 100 | 50, 100 |" in lines[2]
    # Half of the cells suffice, as long as a study runs.
    assert len(figure.table(rows[rows["n"] < 2000]).splitlines()) == 2 + 6


def test_rows_of_another_file_are_refused(tmp_path):
    path = tmp_path / "runs.csv"
    assert read_rows(path, study.COLUMNS, fix="give another") == []
    write_rows(path, study.COLUMNS, [dict.fromkeys(study.COLUMNS, "1")])
    assert read_rows(path, study.COLUMNS, fix="give another") == [dict.fromkeys(study.COLUMNS, "1")]
    with open(path, "w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerow(["cell"])
    with pytest.raises(UserError, match="its columns differ"):
        read_rows(path, study.COLUMNS, fix="give another")
