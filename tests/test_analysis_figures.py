"""Figures: what they show, that nothing overlaps at printed size, and that equal data give equal files."""

import itertools
import os
import subprocess
import sys
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
from analysis_data import LARGE, SMALL, YARDSTICKS, write_results, write_yardsticks_of
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from sublora.analysis.arms import Arm, arms_of, configurations, improvement_over_uniform
from sublora.analysis.figures import allocation, bounds, style, tradeoff, training
from sublora.analysis.figures.reference_lines import Level, mark_levels, spread
from sublora.analysis.histories import read_gating_traces, read_metrics
from sublora.analysis.hypotheses import inference
from sublora.analysis.runs_table import collect_runs, write_runs_csv
from sublora.analysis.yardsticks import load_yardsticks
from sublora.config import Grid
from sublora.system.errors import UserError

ONE_SEED = Grid(budgets=(1000,), allocations=("uniform", "fixed-0.5", "learned"), seeds=(7,))
CLOSE = {"unigram": (5.42, 5.17), "bigram": (4.98, 5.14), "order3": (4.97, 5.16), "frozen_base": (5.13, 5.15)}
FAR = {"unigram": (6.42, 6.55), "bigram": (5.68, 5.75), "order3": (2.47, 2.53), "frozen_base": (2.13, 2.2)}
GRIDS = {"small": (SMALL, 4, YARDSTICKS), "large": (LARGE, 12, CLOSE), "one seed": (ONE_SEED, 24, FAR)}
FIGURES = {
    "pareto": lambda data: tradeoff.pareto(data.runs, data.budget, data.yardsticks),
    "compression": lambda data: tradeoff.compression(data.runs, data.budget),
    "allocation_grid": lambda data: allocation.allocation_grid(data.runs),
    "bound_decomposition": lambda data: allocation.bound_decomposition(data.runs, data.budget, data.yardsticks),
    "bound_by_inequality": lambda data: bounds.bound_by_inequality(data.runs),
    "bound_against_budget": lambda data: bounds.bound_against_budget(data.runs, data.yardsticks),
    "gating_heatmap": lambda data: training.gating_heatmap(data.runs, data.budget),
    "gating_trend": lambda data: training.gating_trend(data.runs),
    "gating_traces": lambda data: training.gating_traces(data.runs, data.traces),
    "loss_curves": lambda data: training.loss_curves(data.runs, data.metrics),
}
SMALLEST_POINTS = 5.5


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    found = {}
    for name, (grid, layers, losses_and_bounds) in GRIDS.items():
        folder = tmp_path_factory.mktemp(name.replace(" ", ""))
        folders = write_results(folder, grid, layers=layers, all_scored=name == "large")
        runs = collect_runs(folders)
        yardsticks = load_yardsticks(write_yardsticks_of(folder, losses_and_bounds), runs)
        traces = read_gating_traces([folder / "gating_trace.csv" for folder in folders], runs)
        metrics = read_metrics([folder / "metrics.csv" for folder in folders], runs)
        facts = {"runs": runs, "traces": traces, "metrics": metrics, "yardsticks": yardsticks}
        found[name] = SimpleNamespace(**facts, budget=max(grid.budgets))
    return found


def drawn_texts(figure: Figure) -> list[Text]:
    """The texts that reach the paper: visible, in visible panels, tick labels only within the axis."""
    figure.draw_without_rendering()
    hidden = set()
    for axes in figure.axes:
        if not axes.get_visible():
            hidden.update(axes.findobj(Text))
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            low, high = sorted(limits)
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                if not low <= tick.get_loc() <= high:
                    hidden.update(tick.findobj(Text))
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    return [text for text in texts if text not in hidden]


def clashes(figure: Figure) -> list[str]:
    """Pairs of texts that overlap, and texts that leave the figure."""
    boxes = [(text.get_text(), text.get_window_extent()) for text in drawn_texts(figure)]
    found = [
        f"{first!r} overlaps {second!r}"
        for (first, a), (second, b) in itertools.combinations(boxes, 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 0.5 and min(a.y1, b.y1) - max(a.y0, b.y0) > 0.5
    ]
    page = figure.bbox.padded(0.5)
    outside = [text for text, box in boxes if not (page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0)]
    return found + [f"{text!r} leaves the figure" for text in outside]


@pytest.mark.parametrize("grid", ["small", pytest.param("large", marks=pytest.mark.slow), "one seed"])
@pytest.mark.parametrize("name", FIGURES)
def test_texts_are_legible_and_apart_at_printed_size(results, name, grid):
    figure = FIGURES[name](results[grid])
    assert figure.get_figwidth() in (style.COLUMN_INCHES, style.PAGE_INCHES)
    assert clashes(figure) == []
    assert min(text.get_fontsize() for text in drawn_texts(figure)) >= SMALLEST_POINTS


@pytest.mark.parametrize(("count", "most", "block"), [(1, 5, (1, 1)), (5, 5, (1, 5)), (6, 5, (2, 3)), (11, 5, (3, 4))])
def test_panels_wrap_into_even_rows(count, most, block):
    assert style.wrapped(count, most) == block


def test_the_overlap_check_finds_overlaps():
    figure, (axes,) = style.panels_in(3.3, 2.0)
    axes.text(0.5, 0.5, "one")
    axes.text(0.52, 0.5, "two")
    figure.text(0.95, 0.5, "a text too long for its place")
    assert clashes(figure) == ["'one' overlaps 'two'", "'a text too long for its place' leaves the figure"]


def test_pareto_points_are_means_and_the_frontier_is_their_lower_left_edge(results):
    runs, budget = results["small"].runs, 1000
    (axes,) = tradeoff.pareto(runs, budget, results["small"].yardsticks).axes
    table = configurations(runs[runs["budget"] == budget], ["kl_divergence", "empirical_bpd"]).droplevel("budget")
    means = [("kl_divergence", "mean"), ("empirical_bpd", "mean")]
    for arm, container in zip(arms_of(runs), axes.containers, strict=True):
        line, _, bars = container.lines
        assert tuple(line.get_xydata()[0]) == pytest.approx(tuple(table.loc[arm.allocation, means]))
        (left, _), (right, _) = bars[0].get_segments()[0]
        assert (right - left) / 2 == pytest.approx(table.loc[arm.allocation, ("kl_divergence", "std")])
    (frontier,) = [line for line in axes.lines if line.get_linestyle() == "--"]
    corners = frontier.get_xydata()[1:-1]
    assert (np.diff(corners[:, 0]) > 0).all() and (np.diff(corners[:, 1]) < 0).all()
    for point in table[means].to_numpy():
        assert any((corner <= point).all() for corner in corners)


def test_points_of_the_grid_stand_at_the_means_with_their_intervals(results):
    runs = results["small"].runs
    panels = allocation.allocation_grid(runs).axes
    bound = configurations(runs, ["bound_value"])["bound_value"]
    improved = improvement_over_uniform(runs, "bound_value").groupby(["budget", "allocation"])["improvement_percent"]
    half = [np.ptp(inference.t_interval(seeds.to_numpy())) / 2 for _, seeds in improved]
    order = [(budget, arm.allocation) for budget in SMALL.budgets for arm in arms_of(runs)]
    compared = [place for place in order if place[1] != "uniform"]
    half = dict(zip(improved.groups, half, strict=True))
    for axes, places, means, halves in (
        (panels[1], order, bound["mean"], bound["std"]),
        (panels[3], compared, improved.mean(), half),
    ):
        assert len(axes.containers) == len(places)
        for container, place in zip(axes.containers, places, strict=True):
            line, _, (whisker,) = container.lines
            assert line.get_ydata()[0] == pytest.approx(means[place])
            (_, low), (_, high) = whisker.get_segments()[0]
            assert (low, high) == pytest.approx((means[place] - halves[place], means[place] + halves[place]))
    low, high = panels[1].get_ylim()
    assert high - low < 0.5  # not from zero


def test_decomposition_adds_up_even_where_quantization_helps(results):
    runs = results["small"].runs.copy()
    runs["val_loss_unquantized_bits"] = runs["val_loss_bits"] + 0.05
    parts = allocation.with_decomposition(runs)
    np.testing.assert_allclose(parts[["loss_before", "loss_added", "complexity"]].sum(axis=1), runs["bound_value"])
    np.testing.assert_allclose(parts["loss_before"] + parts["loss_added"], runs["empirical_bpd"])
    np.testing.assert_allclose(parts["loss_added"], -0.05)
    figure = allocation.bound_decomposition(runs, 1000, results["small"].yardsticks)
    assert clashes(figure) == []
    bounds = configurations(runs, ["bound_value"])[("bound_value", "mean")].loc[1000]
    ends = {}
    for bar in figure.axes[0].patches:
        assert bar.get_width() >= 0.0
        ends[round(bar.get_y(), 3)] = max(ends.get(round(bar.get_y(), 3), 0.0), bar.get_x() + bar.get_width())
    np.testing.assert_allclose(sorted(ends.values()), sorted(bounds))


@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_an_anchored_bound_is_the_bases_loss_and_three_steps(results, tmp_path, shift):
    """shift: added to the excess, so that adapting raises the loss."""
    runs = collect_runs(write_results(tmp_path, SMALL, anchored=True))
    for column in ("bound_value", "anchor_excess", "anchor_excess_bound"):
        runs[column] += shift
    parts = allocation.with_anchored_decomposition(runs)
    steps = ["anchor_base_loss", "anchor_excess", "base_margin", "excess_margin"]
    np.testing.assert_allclose(parts[steps].sum(axis=1), runs["bound_value"])
    figure = allocation.bound_decomposition(runs, 1000, results["small"].yardsticks)
    assert clashes(figure) == []
    bars = sorted(figure.axes[0].patches, key=lambda bar: (bar.get_y(), bar.get_x()))
    bounds = configurations(runs, ["bound_value"])[("bound_value", "mean")].loc[1000]
    for bound, (change, base, own) in zip(bounds, zip(*[iter(bars)] * 3, strict=True), strict=True):
        ends = change.get_x(), change.get_x() + change.get_width()
        before, after = ends if shift else reversed(ends)
        assert before == pytest.approx(5.13) and base.get_x() == pytest.approx(after)
        assert own.get_x() == pytest.approx(base.get_x() + base.get_width())
        assert own.get_x() + own.get_width() == pytest.approx(bound)


def test_the_headline_among_the_inequalities_is_the_anchored_bound_where_there_is_one(tmp_path):
    figure = bounds.bound_by_inequality(collect_runs(write_results(tmp_path, SMALL, anchored=True)))
    texts = [text.get_text() for text in drawn_texts(figure)]
    assert "Anchored (headline)" in texts and "Betting" in texts
    assert clashes(figure) == []


def test_heatmap_shows_every_gate(results):
    runs = results["small"].runs
    axes = training.gating_heatmap(runs, 2000).axes[0]
    rows = runs[(runs["mode"] == "learned") & (runs["budget"] == 2000)].sort_values("seed")
    gamma = rows[["gamma_0", "gamma_1", "gamma_2", "gamma_3", "gamma_head"]].to_numpy()
    assert [text.get_text() for text in axes.texts] == [f"{value:.2f}" for value in gamma.ravel()]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["42", "123", "999"]
    assert axes.collections[0].get_clim() == (0.0, 1.0)


def test_trend_sets_the_head_apart(results):
    axes = training.gating_trend(results["small"].runs).axes[0]
    lines = [container.lines[0] for container in axes.containers]
    assert [len(line.get_xdata()) for line in lines] == [4, 1, 4, 1]
    assert lines[1].get_linestyle() == "None"


def test_vacuous_level_is_drawn_near_the_data_and_only_named_far_from_it():
    figure, (near, far) = style.panels_in(3.3, 2.0, columns=2)
    near.plot([0, 1], [4.0, 7.0])
    far.plot([0, 1], [4.5, 4.6])
    extent = far.get_ylim()
    handle = style.mark_vacuous([near, far], 8.0)
    assert near.get_ylim()[1] > 8.0
    assert far.get_ylim() == extent
    assert handle.get_label() == "Vacuous: 8.00"
    assert style.mark_vacuous([far], 8.0).get_label() == "Vacuous: 8.00 (off scale)"
    low, high = near.get_ylim()
    style.mark_vacuous([near], low - 1.0)  # all bounds are vacuous
    assert near.get_ylim()[0] < low - 1.0
    assert near.get_ylim()[1] == high


def labels_of(figure: Figure, levels: list[Level]) -> dict[str, str]:
    """What follows the name of each level in its label."""
    texts = [text.get_text() for text in drawn_texts(figure)]
    return {
        level.label: text.removeprefix(level.label).strip()
        for level in levels
        for text in texts
        if text.startswith(level.label)
    }


LEVELS = [
    Level("far above", 9.0),
    Level("above", 5.3),
    Level("just above", 5.29),
    Level("in", 4.9),
    Level("below", -3.0),
]


def test_levels_are_drawn_where_they_do_not_squash_the_data_and_point_away_elsewhere():
    figure, (axes,) = style.panels_in(3.3, 2.0)
    axes.plot([0, 1], [4.5, 5.0])
    low, high = axes.get_ylim()
    mark_levels(axes, LEVELS)
    drawn = sorted(line.get_ydata()[0] for line in axes.lines[1:])
    assert drawn == [4.9, 5.29, 5.3]
    assert axes.get_ylim()[0] == low
    assert 5.3 < axes.get_ylim()[1] < low + 2.2 * (high - low)
    up, down = "\N{UPWARDS ARROW}", "\N{DOWNWARDS ARROW}"
    assert labels_of(figure, LEVELS) == {
        "far above": f"9.00 {up}",
        "above": "5.30",
        "just above": "5.29",
        "in": "4.90",
        "below": f"-3.00 {down}",
    }
    assert clashes(figure) == []
    heights = {text.get_text().split()[0]: text.get_window_extent().y0 for text in drawn_texts(figure)}
    assert heights["far"] > heights["above"] > heights["just"] > heights["in"] > heights["below"]


def test_levels_of_an_x_axis_stand_above_it_and_the_figure_makes_room():
    figure, (axes,) = style.panels_in(3.3, 2.0)
    axes.barh([0, 1], [4.5, 5.0])
    axes.set_title("a title at the left", loc="left")
    figure.draw_without_rendering()
    height = axes.get_window_extent().height
    mark_levels(axes, [*LEVELS[:-1], Level("under the title", 0.2)], along="x")
    assert clashes(figure) == []
    assert axes.get_window_extent().height == pytest.approx(height, rel=0.12)
    (text,) = [text for text in drawn_texts(figure) if text.get_text().startswith("far")]
    assert text.get_text().endswith("\N{DOWNWARDS ARROW}") == (axes.get_xlim()[1] < 9.0)


@pytest.mark.parametrize("targets", [[0.1, 0.5, 0.9], [0.5, 0.5, 0.5], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], []])
def test_labels_are_spread_in_order_within_the_axis(targets):
    places = spread(targets, 0.1, 0.05, 0.95)
    assert len(places) == len(targets)
    assert all(later - earlier >= 0.1 - 1e-12 for earlier, later in zip(places, places[1:], strict=False))
    assert all(0.05 <= place <= 0.95 + 1e-12 for place in places)
    assert spread([0.2, 0.5], 0.1, 0.0, 1.0) == [0.2, 0.5]


@pytest.mark.parametrize("name", ["pareto", "bound_against_budget", "bound_decomposition"])
def test_every_yardstick_is_named_with_its_own_number(results, name):
    data = results["small"]
    texts = " ".join(text.get_text() for text in drawn_texts(FIGURES[name](data)))
    for yardstick, label in zip(
        data.yardsticks, ("Vacuous", "Unigram", "Bigram", "Order 3", "Frozen base"), strict=True
    ):
        bits = yardstick.scored_loss_bits if name == "pareto" else yardstick.bound_bits
        assert f"{label} {bits:.2f}" in texts


def test_figures_of_absent_arms_and_budgets_are_refused(tmp_path):
    grid = Grid(budgets=(100,), allocations=("fixed-0.2", "fixed-0.5"), seeds=(1, 2))
    runs = collect_runs(write_results(tmp_path, grid))
    for draw in (lambda: training.gating_heatmap(runs, 100), lambda: training.gating_trend(runs)):
        with pytest.raises(UserError, match="no learned allocation"):
            draw()
    with pytest.raises(UserError, match="no run with budget 7; it has 100"):
        tradeoff.pareto(runs, 7, [])
    assert "no uniform arm" in " ".join(text.get_text() for text in drawn_texts(allocation.allocation_grid(runs)))


def test_a_ratio_has_one_colour_and_arms_differ_in_marker(results):
    small, large = (arms_of(results[name].runs) for name in ("small", "large"))
    colours = {arm.allocation: style.colour_of(arm) for arm in large}
    assert all(style.colour_of(arm) == colours[arm.allocation] for arm in small)
    assert len(set(colours.values())) == len(large)
    assert len({style.marker_of(arm, large) for arm in large}) == len(large)


# Machado, Oliveira and Fernandes (2009), severity 1, for linear RGB
COLOUR_VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def lab(colour: str, vision: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of an sRGB colour as seen by an observer."""
    srgb = np.array(to_rgb(colour))
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.asarray(vision) @ linear, 0.0, 1.0)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
    ratio = np.array(to_xyz) @ seen / [0.95047, 1.0, 1.08883]
    f = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("vision", COLOUR_VISION)
def test_arms_stay_apart_for_every_colour_vision(vision):
    """A difference of 20 in CIE L*a*b* is far above what is just noticeable (2.3); paper counts as a colour too."""
    arms = [Arm("uniform", "uniform", None), Arm("learned", "learned", None)]
    arms += [Arm(f"fixed-{ratio}", "fixed", ratio) for ratio in (0.2, 0.5, 0.8)]
    seen = [lab(colour, COLOUR_VISION[vision]) for colour in ("white", *(style.colour_of(arm) for arm in arms))]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 20.0


def test_users_own_matplotlib_settings_change_nothing(results, tmp_path):
    data = results["one seed"]
    style.save_figure(FIGURES["pareto"](data), png=tmp_path / "a.png", pdf=tmp_path / "a.pdf")
    with matplotlib.rc_context({"font.size": 20.0, "axes.facecolor": "red", "savefig.bbox": "tight"}):
        style.save_figure(FIGURES["pareto"](data), png=tmp_path / "b.png", pdf=tmp_path / "b.pdf")
        assert matplotlib.rcParams["font.size"] == 20.0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()


def test_png_has_the_printed_width_at_300_dpi(results, tmp_path):
    style.save_figure(FIGURES["pareto"](results["small"]), png=tmp_path / "a.png", pdf=tmp_path / "a.pdf")
    with Image.open(tmp_path / "a.png") as image:
        assert image.width == round(300 * style.COLUMN_INCHES)
        assert image.info["dpi"][0] == pytest.approx(300.0, abs=0.1)
    assert b"Type3" not in (tmp_path / "a.pdf").read_bytes()  # journals refuse these fonts


PROGRAM = """
import sys
from sublora.analysis.figures.allocation import bound_decomposition
from sublora.analysis.runs_table import read_runs_csv
from sublora.analysis.figures.style import save_figure
from sublora.analysis.yardsticks import load_yardsticks
runs = read_runs_csv(sys.argv[1])
yardsticks = load_yardsticks(sys.argv[2], runs)
save_figure(bound_decomposition(runs, 1000, yardsticks), png=sys.argv[3], pdf=sys.argv[4])
"""


@pytest.mark.slow
def test_another_process_writes_equal_bytes(results, tmp_path):
    """Another hash seed, another date, numbers that went through the file."""
    runs = results["small"].runs
    write_runs_csv(runs, tmp_path / "runs.csv")
    figure = allocation.bound_decomposition(runs, 1000, results["small"].yardsticks)
    style.save_figure(figure, png=tmp_path / "a.png", pdf=tmp_path / "a.pdf")
    write_yardsticks_of(tmp_path)
    files = [str(tmp_path / name) for name in ("runs.csv", "yardsticks.json", "b.png", "b.pdf")]
    environment = os.environ | {"PYTHONHASHSEED": "1", "SOURCE_DATE_EPOCH": "1"}
    subprocess.run([sys.executable, "-c", PROGRAM, *files], check=True, env=environment)
    for kind in ("png", "pdf"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()
