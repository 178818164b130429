"""The workflow's scripts of figures and tables, run as Snakemake runs them."""

import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from analysis_data import write_results, write_yardsticks_of

from sublora.analysis.runs_table import collect_runs, write_runs_csv
from sublora.analysis.scripting import user_errors_to
from sublora.config import Grid
from sublora.system.errors import UserError

STEPS = 600
"""Of the histories in analysis_data."""
GRID = Grid(budgets=(1000, 2000), allocations=("fixed-0.5", "fixed-0.8", "learned"), seeds=(1, 2))
REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPTS = REPOSITORY / "workflow" / "scripts"
FIGURES = (
    "pareto",
    "compression",
    "allocation_grid",
    "bound_decomposition",
    "bound_by_inequality",
    "bound_against_budget",
    "gating_heatmap",
    "gating_trend",
    "gating_traces",
    "loss_curves",
)


class Files(SimpleNamespace):
    """Named and by position, as Snakemake's lists of files."""

    def __getitem__(self, index: int) -> str:
        return list(vars(self).values())[index]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Files:
    folder = tmp_path_factory.mktemp("results")
    folders = write_results(folder / "runs", GRID)
    write_runs_csv(collect_runs(folders), folder / "runs.csv")
    return Files(
        runs=str(folder / "runs.csv"),
        yardsticks=str(write_yardsticks_of(folder)),
        bounds=[str(run / "bounds.json") for run in folders],
        gates=[str(run / "gating_trace.csv") for run in folders if "learned" in run.name],
        metrics=[str(run / "metrics.csv") for run in folders],
    )


def run(script: str, inputs: Files, outputs: Files, log: Path, budget: str = "1000") -> None:
    wildcards, params = SimpleNamespace(budget=budget), SimpleNamespace(steps=STEPS)
    job = SimpleNamespace(input=inputs, output=outputs, log=[str(log)], wildcards=wildcards, params=params)
    runpy.run_path(str(SCRIPTS / f"{script}.py"), init_globals={"snakemake": job})


@pytest.mark.parametrize("script", FIGURES)
def test_figure_scripts_write_both_files(script, inputs, tmp_path):
    outputs = Files(png=str(tmp_path / "figure.png"), pdf=str(tmp_path / "figure.pdf"))
    run(script, inputs, outputs, tmp_path / "logs" / "job.log")
    assert Path(outputs.png).read_bytes().startswith(b"\x89PNG")
    assert Path(outputs.pdf).read_bytes().startswith(b"%PDF")
    assert (tmp_path / "logs" / "job.log").read_text() == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figure.pdf", "figure.png", "logs"]


def test_table_scripts(inputs, tmp_path):
    log = tmp_path / "job.log"
    run("runs", inputs, Files(csv=str(tmp_path / "runs.csv")), log)
    assert (tmp_path / "runs.csv").read_bytes() == Path(inputs.runs).read_bytes()
    run("summary", inputs, Files(csv=str(tmp_path / "summary.csv"), tex=str(tmp_path / "summary.tex")), log)
    assert len(pd.read_csv(tmp_path / "summary.csv")) == 6
    run("yardsticks_table", inputs, Files(csv=str(tmp_path / "yardsticks.csv")), log)
    assert list(pd.read_csv(tmp_path / "yardsticks.csv")["model"])[-3:] == [
        "best_run",
        "best_run_alone",
        "best_run_held_out",
    ]
    run("hypotheses", inputs, Files(csv=str(tmp_path / "hypotheses.csv")), log)
    assert set(pd.read_csv(tmp_path / "hypotheses.csv")["hypothesis"]) == {"H1", "H2", "H3"}


def test_a_users_error_is_one_line_in_log_and_on_stderr(inputs, tmp_path, capsys):
    log = tmp_path / "job.log"
    outputs = Files(png=str(tmp_path / "figure.png"), pdf=str(tmp_path / "figure.pdf"))
    with pytest.raises(SystemExit) as stop:
        run("pareto", inputs, outputs, log, budget="7")
    assert stop.value.code == 2
    assert re.fullmatch(r"error: the runs table has no run with budget 7; it has 1000, 2000\n", log.read_text())
    assert capsys.readouterr().err == log.read_text()
    assert not Path(outputs.png).exists()


def test_other_errors_keep_their_traceback_and_old_messages_go(tmp_path):
    log = tmp_path / "job.log"
    with pytest.raises(SystemExit), user_errors_to(log):
        raise UserError("something to mend")
    with pytest.raises(ZeroDivisionError), user_errors_to(log):
        _ = 1 / 0
    assert log.read_text() == ""
