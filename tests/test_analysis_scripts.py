"""The workflow's scripts of figures and tables, run as Snakemake runs them."""

import itertools
import json
import re
import runpy
from collections.abc import Callable, Iterable, Sequence
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
"""Steps of the histories in analysis_data."""
GRID = Grid(budgets=(1000, 2000), allocations=("fixed-0.5", "fixed-0.8", "learned"), seeds=(1, 2))
SCRIPTS = REPOSITORY / "workflow" / "scripts"
TABLE = (REPOSITORY / "workflow/rules/figures.smk").read_text()
ROW = re.compile(r'    Figure\("(\w+)", "[^"]+", "(\w+)", "(\w*)", "(\w+)", (ALLOCATIONS|GATES)\),')
FIGURES = {
    name: (f"figures.{module}.{name}", reads.split(), per == "budget")
    for name, module, reads, per, _ in ROW.findall(TABLE)
}
"""As the workflow's table has them: the function, what it reads beside the runs, and whether it is of one budget."""
TABLE_ROW = re.compile(r'    Table\("(\w+)", "[^"]+", (\S+), "([\w ]*)", (?:ALLOCATIONS|True)\),')
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
    lines: Sequence[str] = (),
    **wildcards: str,
) -> None:
    """Run a script of the workflow; `lines`: what it is told to make, as `made_by` in figures.smk writes them."""
    job = SimpleNamespace(
        input=inputs,
        output=outputs,
        log=[str(log)],
        wildcards=files(**wildcards),
        params=SimpleNamespace(steps=STEPS, figures=lines, tables=lines, settings_file=settings_file),
    )
    runpy.run_path(str(SCRIPTS / f"{script}.py"), init_globals={"snakemake": job})


def run_figures(names: Iterable[str], inputs: SimpleNamespace, folder: Path, log: Path, budget: str = "1000") -> None:
    """Draw figures in one job, as those of a budget or of the grid are, into {folder}/{name}.png and .pdf."""
    for of_budget in (True, False):
        drawn = [name for name in names if FIGURES[name][2] == of_budget]
        if drawn:
            outputs = {
                f"{name}_{suffix}": str(folder / f"{name}.{suffix}") for suffix in ("png", "pdf") for name in drawn
            }
            reads = {key: inputs.read[key] for name in drawn for key in FIGURES[name][1]}
            runs = inputs.runs_of_budget if of_budget else inputs.runs
            lines = [" ".join([FIGURES[name][0], *FIGURES[name][1]]) for name in drawn]
            wildcards = {"budget": budget} if of_budget else {}
            run("figures", files(**reads, runs=runs), files(**outputs), log, inputs.settings_file, lines, **wildcards)


def test_the_table_of_figures_was_read():
    of_networks = re.findall(r'Figure\("(\w+)", .*, (?:TRAINED|SIZES)\),', TABLE)
    names = re.findall(r'Figure\("(\w+)"', TABLE)
    assert list(FIGURES) == [name for name in names if name not in of_networks] and set(of_networks) < set(names)
    assert FIGURES["pareto"] == ("figures.tradeoff.pareto", ["yardsticks"], True)


@pytest.mark.slow
def test_the_script_of_figures_writes_both_files_of_each(inputs, tmp_path):
    run_figures(FIGURES, inputs, tmp_path, tmp_path / "logs" / "job.log")
    for name in FIGURES:
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / "logs" / "job.log").read_text() == ""
    assert len(list(tmp_path.iterdir())) == 2 * len(FIGURES) + 1


@pytest.mark.slow
def test_a_figure_does_not_depend_on_those_drawn_with_it(inputs, tmp_path):
    """The same bytes in another order, where what one figure does to the runs or to matplotlib would show."""
    for folder, names in (("forwards", list(FIGURES)), ("backwards", list(FIGURES)[::-1])):
        (tmp_path / folder).mkdir()
        run_figures(names, inputs, tmp_path / folder, tmp_path / "job.log")
    for path in (tmp_path / "forwards").iterdir():
        assert path.read_bytes() == (tmp_path / "backwards" / path.name).read_bytes(), path.name


def run_tables(inputs: SimpleNamespace, folder: Path, log: Path, names: Iterable[str] = TABLES) -> None:
    """Write tables in one job, into {folder}/{name}.csv, and summary.tex."""
    outputs = {f"{name}_csv": str(folder / f"{name}.csv") for name in names} | {
        "summary_tex": str(folder / "summary.tex")
    }
    read = files(**{key: inputs.read[key] for name in names for key in TABLES[name][1]}, runs=inputs.runs)
    lines = [" ".join([name, TABLES[name][0], *TABLES[name][1]]) for name in names]
    run("tables", read, files(**outputs), log, inputs.settings_file, lines)


def run_runs(inputs: SimpleNamespace, log: Path, out: Path) -> None:
    run("runs", files(bounds=inputs.bounds), files(csv=str(out)), log, inputs.settings_file)


def test_the_scripts_of_tables(inputs, tmp_path):
    log = tmp_path / "job.log"
    run_runs(inputs, log, tmp_path / "runs.csv")
    assert (tmp_path / "runs.csv").read_bytes() == Path(inputs.runs).read_bytes()
    run_tables(inputs, tmp_path, log)
    assert len(pd.read_csv(tmp_path / "summary.csv")) == 6
    assert (tmp_path / "summary.tex").read_text().count("\\\\") >= 6
    assert list(pd.read_csv(tmp_path / "yardsticks.csv")["model"])[-3:] == [
        "best_run",
        "best_run_alone",
        "best_run_held_out",
    ]
    assert set(pd.read_csv(tmp_path / "hypotheses.csv")["hypothesis"]) == {"H1", "H2", "H3"}


KINDS = (("uniform",), ("fixed-0.5", "fixed-0.8"), ("learned",))
SUBSETS = [tuple(itertools.chain(*kinds)) for size in (1, 2, 3) for kinds in itertools.combinations(KINDS, size)]
WITHOUT_A_FIXED_SPLIT = [
    pytest.param(kinds, marks=pytest.mark.slow if len(kinds) == 1 else ())
    for kinds in SUBSETS
    if "fixed-0.5" not in kinds
]


def check_figures_and_tables(folder: Path, monkeypatch: pytest.MonkeyPatch, grid: Grid, *, anchored: bool) -> None:
    """Run every script of figures and tables that the workflow runs for a grid."""
    # The layout is what can fail; colouring the pixels takes seconds.
    monkeypatch.setattr(style, "save_figure", lambda figure, png, pdf: figure.draw_without_rendering())
    inputs, log = results_in(folder, grid, anchored=anchored), folder / "job.log"
    run_runs(inputs, log, folder / "runs.csv")
    drawn = [name for name in FIGURES if "learned" in grid.allocations or not name.startswith("gating")]
    run_figures(drawn, inputs, folder, log)
    run_tables(inputs, folder, log)
    for name in TABLES:
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
        lambda: run_figures(["pareto"], changed, tmp_path, log),
        lambda: run_tables(changed, tmp_path, log, ["yardsticks"]),
    ):
        assert "yardsticks.json: made with other settings than those in force (bound.delta" in complaint(log, action)


def test_a_users_error_is_one_line_in_log_and_on_stderr(inputs, tmp_path, capsys):
    log = tmp_path / "job.log"
    with pytest.raises(SystemExit) as stop:
        run_figures(["pareto"], inputs, tmp_path, log, budget="7")
    assert stop.value.code == 2
    assert re.fullmatch(r"error: the runs table has no run with budget 7; it has 1000\n", log.read_text())
    assert capsys.readouterr().err == log.read_text()
    assert not (tmp_path / "pareto.png").exists()


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
