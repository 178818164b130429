"""runs.csv: exact round trip, order, and every defect named by run and key."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from analysis_data import INDEPENDENCE, LARGE, SMALL, write_results

from sublora.analysis.arms import arms_of
from sublora.analysis.histories import read_gating_traces, read_metrics
from sublora.analysis.report.facts import best_run
from sublora.analysis.runs_table import (
    at_budget,
    collect_runs,
    gate_groups,
    inequality_columns,
    learned_runs,
    read_runs_csv,
    write_runs_csv,
)
from sublora.config import Grid
from sublora.system.errors import UserError

TINY = Grid(budgets=(30,), allocations=("uniform", "learned"), seeds=(1, 2))
NAME = "d30_learned_seed2"


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return write_results(tmp_path, TINY)


def edit(folders: list[Path], change) -> None:
    """Change the record of run NAME; `change` gets the decoded JSON."""
    (path,) = (folder / "bounds.json" for folder in folders if folder.name == NAME)
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def test_csv_round_trip_is_exact(folders, tmp_path):
    runs = collect_runs(folders)
    write_runs_csv(runs, tmp_path / "runs.csv")
    pd.testing.assert_frame_equal(read_runs_csv(tmp_path / "runs.csv"), runs, check_exact=True, check_dtype=False)


def test_record_values_arrive_in_their_columns(folders):
    runs = collect_runs(folders).set_index("name")
    record = json.loads((folders[-1] / "bounds.json").read_text())
    row = runs.loc[folders[-1].name]
    assert row["bound_value"] == record["bound_value"] == row["bound_by_betting_subsampled"]
    assert row["bound_held_out_all_runs"] == record["bound_held_out_all_runs"]
    assert row["smoothing"] == record["smoothing"] == "document(8)"
    assert row["bits_symbols"] == record["code_items"]["symbols"]
    assert row["gamma_head"] == record["gamma"]["head"]
    assert row["seconds_train"] == record["seconds"]["train"]
    assert row["version_python"] == "3.11"
    assert math.isnan(row["ratio"])


def test_files_and_folders_give_the_same_table_in_any_order(folders):
    expected = collect_runs(folders)
    files = [folder / "bounds.json" for folder in reversed(folders)]
    pd.testing.assert_frame_equal(collect_runs(files), expected)


def test_arms_and_groups_are_in_order(tmp_path):
    runs = collect_runs(reversed(write_results(tmp_path, LARGE, layers=12)))
    labels = ["Uniform", *(f"Fixed {ratio}" for ratio in (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9)), "Learned"]
    assert [arm.label for arm in arms_of(runs.sample(frac=1.0, random_state=1))] == labels
    assert list(runs["allocation"].unique()) == list(LARGE.allocations)
    assert list(runs["budget"].unique()) == [500, 1000, 2000, 8000]
    assert gate_groups(runs) == [*(str(layer) for layer in range(12)), "head"]


def test_inequalities_leave_out_what_is_none(folders):
    columns = inequality_columns(collect_runs(folders))
    assert columns == [f"bound_by_{name}_subsampled" for name in ("hoeffding", "kl_inverse", "betting")]


def test_bounds_from_all_documents_have_inequalities_of_their_own(tmp_path):
    folders = write_results(tmp_path / "runs", TINY, all_scored=True)
    runs = collect_runs(folders)
    names = ("hoeffding", "kl_inverse", "empirical_bernstein", "betting", "betting_closed_form")
    assert inequality_columns(runs) == [f"bound_by_{name}" for name in names]
    assert (runs["bound_hoeffding"] == runs["bound_by_hoeffding"]).all()
    assert (runs["bound_value"] == runs["bound_by_betting"]).all()
    assert (runs["m_documents"] == runs["n_documents"]).all() and (runs["delta_sample"] == 0.0).all()
    write_runs_csv(runs, tmp_path / "runs.csv")
    pd.testing.assert_frame_equal(read_runs_csv(tmp_path / "runs.csv"), runs, check_exact=True, check_dtype=False)


def test_a_bound_over_sources_has_columns_where_there_is_one(folders, tmp_path):
    assert not [column for column in collect_runs(folders).columns if column.startswith("by_source")]
    for folder in folders:
        record = json.loads((folder / "bounds.json").read_text())
        record["by_source"] = {"bound": 5.0, "bound_all_runs": 5.25, "loss": 4.5, "n": 300, "m": 40}
        (folder / "bounds.json").write_text(json.dumps(record))
    runs = collect_runs(folders)
    assert (runs["by_source_bound"] == 5.0).all() and (runs["by_source_n"] == 300).all()
    levels = {level["what"]: level for level in best_run(runs)["levels"]}
    found = levels["Bound by source file, best of all runs"]
    assert found["bits"] == 5.25 and "n = 300" in found["remark"]


GAINS = ("certified_gain_bits", "certified_gain_all_runs_bits")


def test_an_anchor_adds_its_numbers_to_the_table(folders, tmp_path):
    plain = collect_runs(folders)
    anchored = write_results(tmp_path / "anchored", TINY, anchored=True)
    runs = collect_runs(anchored)
    record = json.loads((anchored[-1] / "bounds.json").read_text())
    expected = {key: record[key] for key in ("bound_direct", *GAINS)}
    expected |= {f"anchor_{key}": value for key, value in record["anchor"].items()}
    assert set(runs.columns) - set(plain.columns) == set(expected)
    row = runs.set_index("name").loc[anchored[-1].name]
    assert {key: row[key] for key in expected} == expected
    assert row["bound_direct"] == row["bound_by_betting_subsampled"] != row["bound_value"]
    write_runs_csv(runs, tmp_path / "runs.csv")
    pd.testing.assert_frame_equal(read_runs_csv(tmp_path / "runs.csv"), runs, check_exact=True, check_dtype=False)


def test_a_record_that_says_it_has_no_anchor_is_as_before(folders):
    before = collect_runs(folders)
    for folder in folders:
        record = json.loads((folder / "bounds.json").read_text())
        record |= {"bound_direct": record["bound_value"], "anchor": {}} | dict.fromkeys(GAINS)
        (folder / "bounds.json").write_text(json.dumps(record))
    pd.testing.assert_frame_equal(collect_runs(folders), before)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda r: r.update(bound_direct=1.0), "bounds.json: bound_direct is 1, but bounds.betting_subsampled is"),
        (lambda r: r.update(bound_value=1.0), "bounds.json: bound_value is 1, but the bounds on the base's loss and"),
        (lambda r: r["anchor"].pop("excess_bound"), "bounds.json: bound_value is .* sum to nan"),
        (lambda r: r["anchor"].update(excess=None), "bounds.json: key anchor.excess of bounds.json is None"),
        (lambda r: r.update(certified_gain_bits=None), "bounds.json: key certified_gain_bits of bounds.json is None"),
        (lambda r: r["anchor"].update(delta_base=0.02), "anchor_delta_base is .* runs of different settings"),
        (lambda r: r["anchor"].pop("k0"), f"run {NAME} has no value for anchor_k0"),
    ],
)
def test_an_anchored_record_that_does_not_add_up_is_refused(tmp_path, change, complaint):
    folders = write_results(tmp_path, TINY, anchored=True)
    edit(folders, change)
    with pytest.raises(UserError, match=complaint):
        collect_runs(folders)


def test_runs_with_drawn_and_with_all_documents_do_not_mix(tmp_path):
    drawn = write_results(tmp_path / "drawn", TINY)
    all_scored = write_results(tmp_path / "all", TINY, all_scored=True)
    with pytest.raises(UserError, match="which other runs have|cannot be compared"):
        collect_runs([*drawn[:-1], all_scored[-1]])


def with_base(folders: list[Path], **base: object) -> None:
    """Give every record this base; `sha256` may be a function of the run."""
    for folder in folders:
        path = folder / "bounds.json"
        record = json.loads(path.read_text())
        record["base"] |= {key: value(record["run"]) if callable(value) else value for key, value in base.items()}
        path.write_text(json.dumps(record))


def test_the_base_is_part_of_the_table(folders, tmp_path):
    runs = collect_runs(folders)
    assert (runs["base_kind"] == "random").all()
    assert (runs.groupby("seed")["base_sha256"].nunique() == 1).all() and runs["base_sha256"].nunique() == 2
    assert "base_how_checked" not in runs
    with_base(folders, kind="pretrained", sha256="ab" * 32, independence=INDEPENDENCE)
    runs = collect_runs(folders)
    assert {key: set(runs[f"base_{key}"]) for key in INDEPENDENCE} == {k: {text} for k, text in INDEPENDENCE.items()}
    write_runs_csv(runs, tmp_path / "runs.csv")
    pd.testing.assert_frame_equal(read_runs_csv(tmp_path / "runs.csv"), runs, check_exact=True, check_dtype=False)


@pytest.mark.parametrize(
    ("base", "complaint"),
    [
        ({"kind": "guessed"}, "key base.kind of bounds.json is guessed, expected one of random, trained, pretrained"),
        ({"sha256": None}, "key base.sha256 of bounds.json is missing"),
        ({"kind": "pretrained"}, "key base.independence of bounds.json is missing"),
        (
            {"kind": "pretrained", "independence": INDEPENDENCE | {"how_checked": None}},
            "key base.independence.how_checked of bounds.json is missing",
        ),
        ({"kind": "trained", "sha256": lambda run: run["name"]}, "base_sha256 is d30_.* but d30_.* in run"),
        (
            {"kind": lambda run: "trained" if run["name"] == NAME else "random"},
            f"base_kind is .* trained in run {NAME}",
        ),
    ],
)
def test_a_base_that_is_incomplete_or_not_the_same_is_refused(folders, base, complaint):
    with_base(folders, **base)
    with pytest.raises(UserError, match=complaint):
        collect_runs(folders)


DEFECTS = {
    "empirical_bpd": lambda r: r.update(empirical_bpd=math.nan),
    "kl_divergence": lambda r: r.update(kl_divergence=math.inf),
    "bound_value": lambda r: r.update(bound_value=r["bound_value"] - 0.1),
    "compressed_size_bits": lambda r: r.pop("compressed_size_bits"),
    "val_loss_bits": lambda r: r.update(val_loss_bits=None),
    "test_loss_bits": lambda r: r.update(test_loss_bits="4.5"),
    "smoothing": lambda r: r.update(smoothing=0.01),
    "bound_held_out": lambda r: r.pop("bound_held_out"),
    "min_targets": lambda r: r.update(min_targets=None),
    "key base": lambda r: r.pop("base"),
    "code_items.symbols": lambda r: r["code_items"].update(symbols=math.nan),
    "code_items sum": lambda r: r["code_items"].update(symbols=1.0),
    "code_bits x ln 2": lambda r: r.update(kl_divergence=r["kl_divergence"] * 1.01),
    "gamma_1": lambda r: r["gamma"].pop("1"),
    "bound_by_kl_inverse_subsampled": lambda r: r["bounds"].pop("kl_inverse_subsampled"),
    "versions": lambda r: r.pop("versions"),
    "n_units": lambda r: r.update(n_units=5),
    "format 1": lambda r: r.update(format=1),
    "mode fixed": lambda r: r["run"].update(mode="fixed"),
    "d30_learned_seed1": lambda r: r["run"].update(name="d30_learned_seed1"),
}


@pytest.mark.parametrize("key", DEFECTS)
def test_a_defect_is_named_by_run_and_key(folders, key):
    edit(folders, DEFECTS[key])
    with pytest.raises(UserError) as error:
        collect_runs(folders)
    assert NAME in str(error.value)
    assert key in str(error.value)
    assert "\n" not in str(error.value)


def test_a_run_without_record_is_named(folders):
    (folders[-1] / "bounds.json").unlink()
    with pytest.raises(UserError, match=f"{NAME}/bounds.json: no such file; compute it first"):
        collect_runs(folders)
    (folders[-1] / "bounds.json").write_text('{"format": 1,')
    with pytest.raises(UserError, match=f"{NAME}/bounds.json: not valid JSON"):
        collect_runs(folders)
    with pytest.raises(UserError, match="no runs given"):
        collect_runs([])


def test_grid_must_be_whole_and_without_repetition(folders):
    with pytest.raises(UserError, match="budget 30, allocation learned, seed 2 is missing"):
        collect_runs(folders[:-1])
    with pytest.raises(UserError, match=f"run {NAME} occurs twice"):
        collect_runs([*folders, folders[-1]])


def cell(text: str, name: str, column: str, value: str) -> str:
    header, *rows = [line.split(",") for line in text.splitlines()]
    for row in rows:
        if row[0] == name:
            row[header.index(column)] = value
    return "\n".join(",".join(row) for row in [header, *rows]) + "\n"


@pytest.mark.parametrize(
    ("column", "value", "complaint"),
    [
        ("empirical_bpd", "", "no value for empirical_bpd"),
        ("empirical_bpd", "nan", "no value for empirical_bpd"),
        ("bound_value", "inf", "bound_value is inf"),
        ("bound_value", "low", "bound_value is low"),
        ("gamma_0", "", "no value for gamma_0"),
        ("seed", "7", "is missing"),
        ("ratio", "0.3", "do not belong together"),
        ("delta", "0.1", "delta is 0.05"),
        ("base_kind", "trained", "base_kind is random"),
        ("min_targets", "5", "min_targets is 201"),
    ],
)
def test_a_damaged_table_is_refused(folders, tmp_path, column, value, complaint):
    path = tmp_path / "runs.csv"
    write_runs_csv(collect_runs(folders), path)
    path.write_text(cell(path.read_text(), NAME, column, value))
    with pytest.raises(UserError, match=complaint) as error:
        read_runs_csv(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_and_empty_tables_are_refused(tmp_path):
    path = tmp_path / "runs.csv"
    with pytest.raises(UserError, match="no such runs table"):
        read_runs_csv(path)
    cases = {"": "not a runs table", "name,budget\n": "holds no runs", "name\nx\n": "column budget is missing"}
    for text, complaint in cases.items():
        path.write_text(text)
        with pytest.raises(UserError, match=complaint):
            read_runs_csv(path)


def test_selections_that_find_nothing_are_refused(tmp_path):
    runs = collect_runs(write_results(tmp_path, Grid(budgets=(30,), allocations=("uniform",), seeds=(1,))))
    with pytest.raises(UserError, match="no run with budget 40; it has 30"):
        at_budget(runs, 40)
    with pytest.raises(UserError, match="no learned allocation"):
        learned_runs(runs)


def test_histories_are_joined_with_their_runs(tmp_path):
    folders = write_results(tmp_path, SMALL)
    runs = collect_runs(folders)
    traces = read_gating_traces([folder / "gating_trace.csv" for folder in reversed(folders)], runs)
    assert set(traces["allocation"]) == {"learned"}
    last = traces[(traces["name"] == "d2000_learned_seed123") & (traces["step"] == 600)].set_index("group")["gamma"]
    final = runs.set_index("name").loc["d2000_learned_seed123"]
    np.testing.assert_allclose(last["head"], final["gamma_head"], atol=1e-3)
    metrics = read_metrics([folder / "metrics.csv" for folder in folders], runs)
    assert metrics.groupby("name").size().to_dict() == {name: 12 for name in runs["name"]}


def test_a_history_that_is_missing_or_damaged_is_named(folders):
    runs = collect_runs(folders)
    paths = [folder / "gating_trace.csv" for folder in folders]
    with pytest.raises(UserError, match=f"run {NAME}: its gating_trace.csv is not among"):
        read_gating_traces(paths[:-1], runs)
    for text, complaint in (
        ("step,mask_width,group,gamma,gradient_snr\n", "holds no rows"),
        ("step,mask_width,group,gamma,gradient_snr\n1,0,head,nan,\n", "gamma is not a finite number"),
        ("step,mask_width,group,gamma,gradient_snr\n1,wide,head,0.5,\n", "mask_width is not a finite number"),
        ("step,mask_width,group,gamma,gradient_snr\n1,3,head,0.5,inf\n", "gradient_snr is not a finite number"),
        ("step,group\n1,head\n", "not a table with columns"),
    ):
        paths[-1].write_text(text)
        with pytest.raises(UserError, match=complaint) as error:
            read_gating_traces(paths, runs)
        assert NAME in str(error.value)
    paths[-1].unlink()
    with pytest.raises(UserError, match=f"{NAME}.* does not exist"):
        read_gating_traces(paths, runs)
