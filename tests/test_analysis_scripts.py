"""The workflow's scripts of figures and tables, run as Snakemake runs them."""

import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from analysis_data import write_results, write_yardsticks_of
from conftest import REPOSITORY
from snakemake.iocontainers import Namedlist

from sublora.analysis.runs_table import collect_runs, write_runs_csv
from sublora.analysis.scripting import user_errors_to
from sublora.config import Grid
from sublora.system.errors import UserError

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


def files(**named: object) -> Namedlist:
    """Named and by position, as Snakemake hands them to a script."""
    return Namedlist(fromdict=named)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("results")
    folders = write_results(folder / "runs", GRID)
    write_runs_csv(runs := collect_runs(folders), folder / "runs.csv")
    write_runs_csv(runs[runs["budget"] == 1000], folder / "runs_d1000.csv")
    return SimpleNamespace(
        runs=str(folder / "runs.csv"),
        runs_of_budget=str(folder / "runs_d1000.csv"),
        bounds=[str(run / "bounds.json") for run in folders],
        read={
            "yardsticks": str(write_yardsticks_of(folder)),
            "test_losses_U": [str(run / "losses.npz") for run in folders],
            "traces": [str(run / "gating_trace.csv") for run in folders if "learned" in run.name],
            "metrics": [str(run / "metrics.csv") for run in folders],
        },
    )


def run(script: str, inputs: Namedlist, outputs: Namedlist, log: Path, function: str = "", **wildcards: str) -> None:
    """Run a script of the workflow; `function`: of a figure or a table, below sublora.analysis."""
    job = SimpleNamespace(
        input=inputs,
        output=outputs,
        log=[str(log)],
        wildcards=files(**wildcards),
        params=SimpleNamespace(steps=STEPS, function=function),
    )
    runpy.run_path(str(SCRIPTS / f"{script}.py"), init_globals={"snakemake": job})


def run_figure(name: str, inputs: SimpleNamespace, outputs: Namedlist, log: Path, budget: str = "1000") -> None:
    function, reads, of_budget = FIGURES[name]
    read = files(**{key: inputs.read[key] for key in reads}, runs=inputs.runs_of_budget if of_budget else inputs.runs)
    run("figure", read, outputs, log, function, **({"budget": budget} if of_budget else {}))


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


def test_the_scripts_of_tables(inputs, tmp_path):
    log = tmp_path / "job.log"
    runs = files(runs=inputs.runs)
    run("runs", files(bounds=inputs.bounds), files(csv=str(tmp_path / "runs.csv")), log)
    assert (tmp_path / "runs.csv").read_bytes() == Path(inputs.runs).read_bytes()
    summary = files(tex=str(tmp_path / "summary.tex"), csv=str(tmp_path / "summary.csv"))
    run("table", runs, summary, log, "tables.summary_table")
    assert len(pd.read_csv(tmp_path / "summary.csv")) == 6
    assert (tmp_path / "summary.tex").read_text().count("\\\\") >= 6
    read = {key: inputs.read[key] for key in ("yardsticks", "test_losses_U")}
    yardsticks = files(**read, runs=inputs.runs)
    run("table", yardsticks, files(csv=str(tmp_path / "yardsticks.csv")), log, "yardsticks.yardstick_table")
    assert list(pd.read_csv(tmp_path / "yardsticks.csv")["model"])[-3:] == [
        "best_run",
        "best_run_alone",
        "best_run_held_out",
    ]
    run("table", runs, files(csv=str(tmp_path / "hypotheses.csv")), log, "hypotheses.hypothesis_table")
    assert set(pd.read_csv(tmp_path / "hypotheses.csv")["hypothesis"]) == {"H1", "H2", "H3"}


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
    assert log.read_text() == ""
