"""Figures: what they show can be told apart without colour, and nothing hides anything else."""

import itertools

import pytest
import yaml
from analysis_data import LARGE, SMALL, write_results
from conftest import REPOSITORY
from matplotlib.figure import Figure

from sublora.analysis.figures import allocation, bounds, tradeoff, training
from sublora.analysis.histories import read_gating_traces, read_metrics
from sublora.analysis.runs_table import collect_runs, inequality_columns


def marks_of(figure: Figure) -> list[tuple[float, float, float, str]]:
    """Middle (pixels), radius and shape of the markers that stand at one point or more of the first panel."""
    figure.draw_without_rendering()
    axes = figure.axes[0]
    return [
        (x, y, line.get_markersize() / 144.0 * figure.dpi, str(line.get_marker()))
        for line in axes.lines
        if line.get_marker() != "None"
        for x, y in axes.transData.transform(line.get_xydata())
    ]


@pytest.mark.parametrize("all_scored", [False, True])
def test_no_inequality_hides_another(tmp_path, all_scored):
    """Even where all of them are equal."""
    runs = collect_runs(write_results(tmp_path, SMALL, all_scored=all_scored))
    names = inequality_columns(runs)
    for name in names:
        runs[name] = runs["empirical_bpd"] + 0.5
    marks = marks_of(bounds.bound_by_inequality(runs[runs["budget"] == 1000]))
    assert len(marks) == len(names) * 5
    for (_, y, radius, _), (_, other, _, _) in itertools.combinations(marks, 2):
        assert abs(y - other) > 1.5 * radius


def test_arms_of_the_loss_curves_differ_in_marker(tmp_path):
    folders = write_results(tmp_path, LARGE)
    runs = collect_runs(folders)
    figure = training.loss_curves(runs, read_metrics([folder / "metrics.csv" for folder in folders], runs))
    lines = figure.axes[0].lines
    assert len({line.get_marker() for line in lines}) == len(lines) == 9


def test_the_caption_of_the_loss_curves_gives_the_sequences_of_the_settings():
    caption = (REPOSITORY / "workflow/report/loss_curves.rst").read_text()
    demo, full = (
        yaml.safe_load((REPOSITORY / name).read_text())["training"]["eval_sequences"]
        for name in ("demo/config/config.yaml", "config/config.yaml")
    )
    assert f"{demo} in the demo and {full} in the full reproduction" in caption


def test_compression_joins_no_points(tmp_path):
    for axes in tradeoff.compression(collect_runs(write_results(tmp_path, SMALL)), 1000).axes:
        assert all(len(line.get_xdata()) == 1 for line in axes.lines if line.get_linestyle() != ":")


@pytest.mark.parametrize(("layers", "numbers"), [(4, "0 1 2 3 head"), (12, "0 2 4 6 8 10 head")])
def test_layers_are_numbered_where_their_lines_end(tmp_path, layers, numbers):
    folders = write_results(tmp_path, SMALL, layers=layers)
    runs = collect_runs(folders)
    traces = read_gating_traces([folder / "gating_trace.csv" for folder in folders], runs)
    axes = training.gating_traces(runs, traces).axes[0]
    named = [text.get_text() for text in axes.texts if text.get_text()]
    assert sorted(named) == sorted(numbers.split())
    heights = {text.get_text(): text.get_position()[1] for text in axes.texts if text.get_text()}
    run = traces[(traces["budget"] == 1000) & (traces["seed"] == 42)]
    last = run[run["step"] == run["step"].max()].set_index("group")["gamma"]
    assert sorted(named, key=heights.get) == sorted(named, key=last.get)


@pytest.mark.parametrize(
    ("value", "number", "text"),
    [(-0.04, "{:+.1f}", "0.0"), (0.04, "{:+.1f}", "0.0"), (-0.06, "{:+.1f}", "−0.1"), (2.0, "{:+.1f}", "+2.0")],
)
def test_what_rounds_to_zero_has_no_sign(value, number, text):
    assert allocation.rounded(value, number) == text


def test_sums_are_printed_without_a_negative_zero():
    assert allocation.sum_of([2.88, -0.0004, 0.19], 3.0696) == "2.880 + 0.000 + 0.190 = 3.070"
    assert allocation.sum_of([2.88, -0.004, 0.19], 3.066) == "2.880 − 0.004 + 0.190 = 3.066"
