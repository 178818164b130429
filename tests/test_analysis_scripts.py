"""The workflow's scripts of figures and tables, run as Snakemake runs them."""

import itertools
import json
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from analysis_data import certify_results, settings_of, write_results, write_yardsticks_of
from conftest import REPOSITORY
from snakemake.iocontainers import Namedlist

from sublora.analysis.figures import style
from sublora.analysis.runs_table import collect_runs, write_runs_csv
from sublora.analysis.scripting import user_errors_to
from sublora.config import Grid, write_resolved
from sublora.system.errors import UserError
from sublora.system.versions import LIBRARY_VARIABLE, NUMERICS_VERSIONS

STEPS = 600
"""Of the histories in analysis_data."""
GRID = Grid(budgets=(1000, 2000), allocations=("fixed-0.5", "fixed-0.8", "learned"), seeds=(1, 2))
SCRIPTS = REPOSITORY / "workflow" / "scripts"
TABLE = (REPOSITORY / "workflow/rules/figures.smk").read_text()
ROW = re.compile(r'    Figure\("(\w+)", "[^"]+", "(\w+)", "(\w*)", "(\w+)", (ALLOCATIONS|GATES)\),')
FIGURES = {
    name: (f"figures.{module}.{name}", reads.split(), per == "budget")
    for name, module, reads, per, _ in ROW.findall(TABLE)
}
"""As the workflow's table has them: the function, what it reads beside the runs, and whether it is of one budget."""
TABLE_ROW = re.compile(r'    Table\("(\w+)", "\w+", "[^"]+", (\S+), "([\w ]*)", (?:ALLOCATIONS|True)\),')
TABLES = {
    name: (function.strip('"').replace("YARDSTICK_TABLE", "yardsticks.yardstick_table"), reads.split())
    for name, function, reads in TABLE_ROW.findall(TABLE)
}


def files(**named: object) -> Namedlist:
    """Named and by position, as Snakemake hands them to a script."""
    return Namedlist(fromdict=named)


def results_in(folder: Path, grid: Grid, *, anchored: bool = False) -> SimpleNamespace:
    """Write the results of a grid; return what the scripts read."""
    folders, settings = write_results(folder / "runs", grid, anchored=anchored), settings_of(grid)
    certify_results(folders, settings)
    write_resolved(settings, folder / "settings.yaml")
    write_runs_csv(runs := collect_runs(folders), folder / "runs.csv")
    write_runs_csv(runs[runs["budget"] == 1000], folder / "runs_d1000.csv")
    return SimpleNamespace(
        settings_file=str(folder / "settings.yaml"),
        runs=str(folder / "runs.csv"),
        runs_of_budget=str(folder / "runs_d1000.csv"),
        bounds=[str(run / "bounds.json") for run in folders],
        read={
            "yardsticks": str(write_yardsticks_of(folder, settings=settings)),
            "test_losses_U": [str(run / "losses.npz") for run in folders],
            "traces": [str(run / "gating_trace.csv") for run in folders if "learned" in run.name],
            "metrics": [str(run / "metrics.csv") for run in folders],
        },
    )


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> SimpleNamespace:
    return results_in(tmp_path_factory.mktemp("results"), GRID)


def run(
    script: str,
    inputs: Namedlist,
    outputs: Namedlist,
    log: Path,
    settings_file: str,
    function: str = "",
    **wildcards: str,
) -> None:
    """Run a script of the workflow; `function`: of a figure or a table, below sublora.analysis."""
    job = SimpleNamespace(
        input=inputs,
        output=outputs,
        log=[str(log)],
        wildcards=files(**wildcards),
        params=SimpleNamespace(steps=STEPS, function=function, settings_file=settings_file),
    )
    runpy.run_path(str(SCRIPTS / f"{script}.py"), init_globals={"snakemake": job})


def run_figure(name: str, inputs: SimpleNamespace, outputs: Namedlist, log: Path, budget: str = "1000") -> None:
    function, reads, of_budget = FIGURES[name]
    read = files(**{key: inputs.read[key] for key in reads}, runs=inputs.runs_of_budget if of_budget else inputs.runs)
    run("figure", read, outputs, log, inputs.settings_file, function, **({"budget": budget} if of_budget else {}))


def figure_files(folder: Path) -> Namedlist:
    return files(png=str(folder / "figure.png"), pdf=str(folder / "figure.pdf"))


def test_the_table_of_figures_was_read():
    of_networks = re.findall(r'Figure\("(\w+)", .*, (?:TRAINED|SIZES)\),', TABLE)
    names = re.findall(r'Figure\("(\w+)"', TABLE)
    assert list(FIGURES) == [name for name in names if name not in of_networks] and set(of_networks) < set(names)
    assert FIGURES["pareto"] == ("figures.tradeoff.pareto", ["yardsticks"], True)


@pytest.mark.parametrize("name", FIGURES)
def test_the_script_of_figures_writes_both_files(name, inputs, tmp_path):
    outputs = figure_files(tmp_path)
    run_figure(name, inputs, outputs, tmp_path / "logs" / "job.log")
    assert Path(outputs.png).read_bytes().startswith(b"\x89PNG")
    assert Path(outputs.pdf).read_bytes().startswith(b"%PDF")
    assert (tmp_path / "logs" / "job.log").read_text() == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figure.pdf", "figure.png", "logs"]


def run_table(name: str, inputs: SimpleNamespace, outputs: Namedlist, log: Path) -> None:
    function, reads = TABLES[name]
    read = files(**{key: inputs.read[key] for key in reads}, runs=inputs.runs)
    run("table", read, outputs, log, inputs.settings_file, function)


def run_runs(inputs: SimpleNamespace, log: Path, out: Path) -> None:
    run("runs", files(bounds=inputs.bounds), files(csv=str(out)), log, inputs.settings_file)


def test_the_scripts_of_tables(inputs, tmp_path):
    log = tmp_path / "job.log"
    run_runs(inputs, log, tmp_path / "runs.csv")
    assert (tmp_path / "runs.csv").read_bytes() == Path(inputs.runs).read_bytes()
    run_table("summary", inputs, files(tex=str(tmp_path / "summary.tex"), csv=str(tmp_path / "summary.csv")), log)
    assert len(pd.read_csv(tmp_path / "summary.csv")) == 6
    assert (tmp_path / "summary.tex").read_text().count("\\\\") >= 6
    run_table("yardsticks_table", inputs, files(csv=str(tmp_path / "yardsticks.csv")), log)
    assert list(pd.read_csv(tmp_path / "yardsticks.csv")["model"])[-3:] == [
        "best_run",
        "best_run_alone",
        "best_run_held_out",
    ]
    run_table("hypotheses", inputs, files(csv=str(tmp_path / "hypotheses.csv")), log)
    assert set(pd.read_csv(tmp_path / "hypotheses.csv")["hypothesis"]) == {"H1", "H2", "H3"}


KINDS = (("uniform",), ("fixed-0.5", "fixed-0.8"), ("learned",))
SUBSETS = [tuple(itertools.chain(*kinds)) for size in (1, 2, 3) for kinds in itertools.combinations(KINDS, size)]
WITHOUT_A_FIXED_SPLIT = [kinds for kinds in SUBSETS if "fixed-0.5" not in kinds]


def check_figures_and_tables(folder: Path, monkeypatch: pytest.MonkeyPatch, grid: Grid, *, anchored: bool) -> None:
    """Run every script of figures and tables that the workflow runs for a grid."""
    # The layout is what can fail; colouring the pixels takes seconds.
    monkeypatch.setattr(style, "save_figure", lambda figure, png, pdf: figure.draw_without_rendering())
    inputs, log = results_in(folder, grid, anchored=anchored), folder / "job.log"
    run_runs(inputs, log, folder / "runs.csv")
    for name in FIGURES:
        if "learned" in grid.allocations or not name.startswith("gating"):
            run_figure(name, inputs, figure_files(folder), log)
    for name in TABLES:
        latex = {"tex": str(folder / "table.tex")} if name == "summary" else {}
        run_table(name, inputs, files(csv=str(folder / f"{name}.csv"), **latex), log)
        assert len(pd.read_csv(folder / f"{name}.csv")) > 0
    assert len(pd.read_csv(folder / "summary.csv")) == len(grid.allocations) * len(grid.budgets)


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("kinds", WITHOUT_A_FIXED_SPLIT, ids="+".join)
def test_grids_without_a_fixed_split_have_their_figures_and_tables(kinds, tmp_path, monkeypatch):
    grid = Grid(budgets=(1000,), allocations=kinds, seeds=(1, 2))
    check_figures_and_tables(tmp_path, monkeypatch, grid, anchored=False)


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [*SUBSETS, ("fixed-0.5",), ("uniform", "fixed-0.5")], ids="+".join)
@pytest.mark.parametrize("seeds", [(1,), (1, 2)], ids=len)
def test_every_subset_of_allocations_has_its_figures_and_tables(kinds, seeds, tmp_path, monkeypatch):
    """With a single seed as well, where nothing has a spread."""
    grid = Grid(budgets=(1000, 2000)[: len(seeds)], allocations=kinds, seeds=seeds)
    check_figures_and_tables(tmp_path, monkeypatch, grid, anchored=len(seeds) == 1)


def complaint(log: Path, action: Callable[[], None]) -> str:
    """The one line that a script leaves in its log when it stops."""
    with pytest.raises(SystemExit) as stop:
        action()
    assert stop.value.code == 2
    (line,) = log.read_text().splitlines()
    return line


def test_runs_of_other_settings_are_no_rows_of_the_table(tmp_path):
    """One new seed beside runs from before the learning rate was changed, which Snakemake may not know."""
    grid, log = Grid(budgets=(1000,), allocations=("uniform", "learned"), seeds=(1, 2)), tmp_path / "job.log"
    inputs = results_in(tmp_path, grid)
    folders, settings = [Path(bounds).parent for bounds in inputs.bounds], settings_of(grid)
    old = [folder for folder in folders if folder.name.endswith("seed1")]
    for changes, difference in (
        ({"training": {"learning_rate": 0.123}}, "training.learning_rate: 0.123 there"),
        ({"message": {"extra_bits": 3.0}}, "message.extra_bits: 3.0 there, 0.0 here"),
        ({"bound": {"delta": 0.06}}, "bound.delta: 0.06 there, 0.05 here"),
    ):
        certify_results(old, settings_of(grid, **changes))
        line = complaint(log, lambda: run_runs(inputs, log, tmp_path / "new.csv"))
        assert line.startswith(f"error: {old[0]}: made with other settings than those in force ({difference}")
        assert not (tmp_path / "new.csv").exists()
    # Other numerics of a stage, too, are another experiment.
    certify_results(old, settings, NUMERICS_VERSIONS | {"train": 1})
    line = complaint(log, lambda: run_runs(inputs, log, tmp_path / "new.csv"))
    assert "of the numerics of train" in line and str(folders[0]) in line
    # A bound of another certificate than the one that shows the settings.
    certify_results(old, settings)
    record = json.loads((old[0] / "bounds.json").read_text())
    (old[0] / "bounds.json").write_text(json.dumps(record | {"certificate_sha256": "0" * 64}))
    assert "bounds.json: not the bound of" in complaint(log, lambda: run_runs(inputs, log, tmp_path / "new.csv"))
    # No certificate, nothing that says how the run was made.
    (old[0] / "certificate.bin").unlink()
    assert "no such certificate" in complaint(log, lambda: run_runs(inputs, log, tmp_path / "new.csv"))


def test_yardsticks_of_other_settings_stop_figure_table_and_report(inputs, tmp_path):
    other, log = settings_of(GRID, bound={"delta": 0.06}), tmp_path / "job.log"
    write_resolved(other, tmp_path / "settings.yaml")
    changed = SimpleNamespace(**{**vars(inputs), "settings_file": str(tmp_path / "settings.yaml")})
    for action in (
        lambda: run_figure("pareto", changed, figure_files(tmp_path), log),
        lambda: run_table("yardsticks_table", changed, files(csv=str(tmp_path / "table.csv")), log),
    ):
        assert "yardsticks.json: made with other settings than those in force (bound.delta" in complaint(log, action)


def test_a_users_error_is_one_line_in_log_and_on_stderr(inputs, tmp_path, capsys):
    log, outputs = tmp_path / "job.log", figure_files(tmp_path)
    with pytest.raises(SystemExit) as stop:
        run_figure("pareto", inputs, outputs, log, budget="7")
    assert stop.value.code == 2
    assert re.fullmatch(r"error: the runs table has no run with budget 7; it has 1000\n", log.read_text())
    assert capsys.readouterr().err == log.read_text()
    assert not Path(outputs.png).exists()


def test_other_errors_keep_their_traceback_and_old_messages_go(tmp_path):
    log = tmp_path / "job.log"
    with pytest.raises(SystemExit), user_errors_to(log):
        raise UserError("something to fix")
    with pytest.raises(ZeroDivisionError), user_errors_to(log):
        _ = 1 / 0
    assert log.read_text().startswith("Traceback") and log.read_text().endswith("ZeroDivisionError: division by zero\n")
    with user_errors_to(log):
        pass
    assert log.read_text() == ""


def test_a_script_of_another_copy_of_the_library_stops(tmp_path, monkeypatch):
    monkeypatch.setenv(LIBRARY_VARIABLE, "/elsewhere/sublora")
    log = tmp_path / "job.log"
    with pytest.raises(SystemExit), user_errors_to(log):
        raise AssertionError("not reached")
    assert re.fullmatch(r"error: .*/sublora: this job runs this copy .* /elsewhere/sublora; .*\n", log.read_text())
