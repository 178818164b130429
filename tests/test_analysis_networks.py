"""Grids that compare what is trained, or sizes of the network: their table and figures."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from analysis_data import MODEL_PARAMETERS, PARAMETERS, SMALL, settings_of, write_results, write_yardsticks_of
from test_analysis_figures import clashes
from test_analysis_scripts import files, run

from sublora.analysis.figures.networks import (
    bound_against_compressed_size,
    bound_against_model_size,
    part_label,
    size_labels,
)
from sublora.analysis.runs_table import collect_runs, read_runs_csv, write_runs_csv
from sublora.analysis.tables import kinds_of_run, network_table
from sublora.analysis.yardsticks import load_yardsticks
from sublora.config import Grid, write_resolved
from sublora.system.errors import UserError

FOUR = ("weights-identity", "lora-kronecker_qr", "weights-kronecker_feistel", "lora-identity")
GRIDS = {
    "four ways": Grid(budgets=(1000, 2000), allocations=("uniform",), seeds=(1, 2), trained=FOUR),
    "one seed": Grid(budgets=(1000,), allocations=("uniform",), seeds=(1,), trained=FOUR),
    "sizes": Grid(budgets=(500, 1000), allocations=("uniform", "learned"), seeds=(1, 2), sizes=("gpt2", "1x2x16")),
    "both": Grid(budgets=(1000,), allocations=("uniform",), seeds=(1, 2), trained=FOUR[:2], sizes=("gpt2", "4x2x64")),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, SimpleNamespace]:
    found = {}
    for name, grid in GRIDS.items():
        folder = tmp_path_factory.mktemp(name.replace(" ", ""))
        folders = write_results(folder, grid)
        write_runs_csv(collect_runs(folders), folder / "runs.csv")
        settings, settings_file = settings_of(SMALL), folder / "settings.yaml"
        write_resolved(settings, settings_file)
        runs, yardsticks = read_runs_csv(folder / "runs.csv"), write_yardsticks_of(folder, settings=settings)
        facts = {"folders": folders, "csv": folder / "runs.csv", "yardsticks_json": yardsticks, "runs": runs}
        facts["settings_file"] = str(settings_file)
        found[name] = SimpleNamespace(**facts, yardsticks=load_yardsticks(yardsticks, runs), grid=grid)
    return found


def test_the_table_of_runs_reads_back_and_is_in_order(results):
    runs = results["four ways"].runs
    assert len(runs) == len(results["four ways"].grid.runs()) == 2 * (2 + 1 + 2 + 1)
    assert list(dict.fromkeys(runs["trained"])) == sorted(
        FOUR, key=lambda name: (name.startswith("weights"), name.endswith("identity"))
    )
    assert set(runs["budget"]) == {1000, 2000, *PARAMETERS.values()}
    sizes = results["sizes"].runs
    assert list(dict.fromkeys(sizes["size"])) == ["1x2x16", "gpt2"]
    assert dict(zip(sizes["size"], sizes["model_parameters"], strict=True)) == {
        size: MODEL_PARAMETERS[size] for size in ("1x2x16", "gpt2")
    }


def test_labels_of_near_sizes_stand_at_two_heights():
    near, apart = [("2x2x64", 120_640), ("4x2x64", 220_608)], ("4x4x128", 8_344_320)
    assert size_labels([*near, apart]) == ["2x2x64\n121k", "\n\n4x2x64\n221k", "4x4x128\n8.34M"]
    assert size_labels([near[0], apart]) == ["2x2x64\n121k", "4x4x128\n8.34M"]


def test_a_comparison_needs_the_same_seeds_everywhere(results):
    folders = [path for path in results["four ways"].folders if path.name != "weights-identity_dall_uniform_seed2"]
    with pytest.raises(UserError, match="weights-identity has no run of seed 2"):
        collect_runs(folders)
    folders = [p for p in results["four ways"].folders if p.name != "lora-kronecker_qr_d2000_uniform_seed2"]
    with pytest.raises(UserError, match="budget 2000, allocation uniform, seed 2 is missing"):
        collect_runs(folders)


def test_the_network_table_averages_over_seeds_alone(results):
    runs, table = results["four ways"].runs, network_table(results["four ways"].runs)
    assert kinds_of_run(runs) == ["trained", "budget", "allocation"]
    assert len(table) == 6 and set(table["seeds"]) == {2}
    for row in table.itertuples():
        own = runs[(runs["trained"] == row.trained) & (runs["budget"] == row.budget)]
        assert row.bound_value == pytest.approx(own["bound_value"].mean())
        assert row.code_bits_std == pytest.approx(own["code_bits"].std())
    assert network_table(results["one seed"].runs)["bound_value_std"].isna().all()


@pytest.mark.parametrize("name", ["four ways", "one seed", "both"])
def test_every_kind_of_training_stands_at_its_size_and_bound(results, name):
    figure = bound_against_compressed_size(results[name].runs, results[name].yardsticks)
    assert clashes(figure) == []
    (axes,) = figure.axes
    table = network_table(results[name].runs)
    points = np.concatenate([c.lines[0].get_xydata() for c in axes.containers])
    wanted = [
        (row.compressed_size_bits / 8000.0, y)
        for row in table.itertuples()
        for y in (row.bound_value, row.empirical_bpd)
    ]
    np.testing.assert_allclose(sorted(points.tolist()), sorted(wanted))
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [*map(part_label, dict.fromkeys(table["trained"])), "Bound", "Empirical BPD"]
    colours = {c.lines[0].get_color() for c in axes.containers}
    assert len(colours) == len(set(table["trained"]))


@pytest.mark.parametrize(("name", "lines"), [("sizes", 4), ("both", 2)])
def test_every_line_has_a_point_for_each_size(results, name, lines):
    figure = bound_against_model_size(results[name].runs, results[name].yardsticks)
    assert clashes(figure) == []
    (axes,) = figure.axes
    sizes = sorted(MODEL_PARAMETERS[size] for size in results[name].grid.sizes)
    assert len(axes.containers) == 2 * lines
    assert all(list(c.lines[0].get_xdata()) == sizes for c in axes.containers)
    labels = [label.get_text().split("\n")[0] for label in axes.get_xticklabels()]
    assert labels == sorted(results[name].grid.sizes, key=MODEL_PARAMETERS.get)


def test_grids_that_compare_nothing_have_no_such_figure(results):
    sizes, four = results["sizes"], results["four ways"]
    with pytest.raises(UserError, match="no column trained; set grid.trained"):
        bound_against_compressed_size(sizes.runs, sizes.yardsticks)
    with pytest.raises(UserError, match=r"no column model_parameters; set grid.sizes"):
        bound_against_model_size(four.runs, four.yardsticks)


def test_labels_say_what_is_trained():
    assert list(map(part_label, sorted(FOUR))) == [
        "LoRA",
        "Subspace of LoRA",
        "All weights",
        "Subspace of all weights",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("figure", "name"), [("bound_against_compressed_size", "four ways"), ("bound_against_model_size", "sizes")]
)
def test_the_script_writes_the_same_figure_each_time(results, tmp_path, figure, name):
    inputs = files(yardsticks=str(results[name].yardsticks_json), runs=str(results[name].csv))
    lines = [f"figures.networks.{figure} yardsticks"]
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for path in paths:
        outputs = {f"{figure}_png": str(path), f"{figure}_pdf": str(path.with_suffix(".pdf"))}
        run("figures", inputs, files(**outputs), tmp_path / "job.log", results[name].settings_file, lines)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_the_table_s_script(results, tmp_path):
    csv = tmp_path / "networks.csv"
    runs = files(runs=str(results["both"].csv))
    settings_file = results["both"].settings_file
    lines = ["networks tables.network_table"]
    run("tables", runs, files(networks_csv=str(csv)), tmp_path / "job.log", settings_file, lines)
    table = pd.read_csv(csv)
    assert (
        list(table.columns[:5]) == ["size", "model_parameters", "trained", "budget", "allocation"] and len(table) == 4
    )


def test_a_record_without_what_is_compared_is_refused(results, tmp_path):
    """Records of two settings files do not mix."""
    source = results["four ways"].folders[0]
    copied = tmp_path / source.name
    copied.mkdir()
    record = json.loads((source / "bounds.json").read_text())
    del record["run"]["trained"]
    (copied / "bounds.json").write_text(json.dumps(record))
    with pytest.raises(UserError):
        collect_runs([copied, *results["four ways"].folders[1:]])
