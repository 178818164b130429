"""The study of subspaces: learning rates, runs, and the files of its page. Stopped anywhere, it goes on from there.

    python -m benchmarks.subspace_study tune --jobs 2         # docs/studies/subspace/rates.csv
    python -m benchmarks.subspace_study run --jobs 2          # docs/studies/subspace/runs.csv
    python -m benchmarks.subspace_study afterwards --jobs 2   # afterwards.csv, what the plan did not have
    python -m benchmarks.subspace_study gates                 # gates.csv, from the runs' own files
    python -m benchmarks.subspace_study summarize             # table.csv, splits.csv, subspaces.png and .pdf

Needs the demo's data, base and yardsticks (`snakemake --profile profiles/demo -- data base yardsticks`). Each candidate
has a folder below study/subspace/, with the demo's settings, those of docs/studies/subspace/settings/, and links to the
demo's files. docs/studies/subspace/plan.md says what is compared.
"""

import argparse
import contextlib
import dataclasses
import functools
import io
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmarks.study_rows import read_rows, write_rows
from benchmarks.subspace_summary import CANDIDATES, RANDOM, SCALED, summarize
from sublora import config
from sublora.analysis.arms import LEARNED
from sublora.runs.bound import bound_run
from sublora.runs.scales import make_scales
from sublora.runs.score import score_run
from sublora.runs.train import train_run
from sublora.system.errors import UserError
from sublora.system.files import read_json
from sublora.system.names import BASE_FOLDER, BASE_LOSSES_PATH, BOUNDS_NAME, CHECKPOINT_NAME, SCALES_PATH
from sublora.training import checkpoint

REPOSITORY = Path(__file__).resolve().parents[1]
DEMO, PAGE, STUDY = REPOSITORY / "demo", REPOSITORY / "docs/studies/subspace", REPOSITORY / "study/subspace"
BUDGETS = (25, 125, 500, 2000)
SEEDS = {budget: tuple(range(5001 + 100 * i, 5007 + 100 * i)) for i, budget in enumerate(BUDGETS)}
"""Six for each budget and none twice, so that 24 seeds are independent."""
SEEDS_AFTERWARDS = {1000: tuple(range(5401, 5407))}
"""Seeds of the demo's other budget, which the plan did not have."""
TUNING_SEED = 4001
COARSE_RATES = (0.0125, 0.05, 0.2, 0.8)
FINER = (0.5, 2.0)
"""Factors on the best coarse rate: every candidate and budget has six trainings."""
SPLITS = ("fixed-0.2", "fixed-0.5", "fixed-0.8", LEARNED)
SPLIT_CELLS = ((SCALED, 500), (RANDOM, 500), (SCALED, 2000), (RANDOM, 2000))
"""In this order, so that what time leaves out is the last."""
RATE_COLUMNS = ("candidate", "budget", "learning_rate", "estimated_bound_bits", "code_bits", "seconds")
RUN_COLUMNS = (
    *("candidate", "budget", "allocation", "seed", "learning_rate", "bound_value", "code_bits"),
    *("empirical_bpd", "test_loss_bits", "certified_gain_bits", "bound_direct", "seconds"),
)
GATE_COLUMNS = ("candidate", "budget", "seed", "group", "gamma")
KEYS = {RATE_COLUMNS: RATE_COLUMNS[:3], RUN_COLUMNS: RUN_COLUMNS[:4]}

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Task:
    """One training of the study."""

    candidate: str
    budget: int
    allocation: str
    seed: int
    learning_rate: float


def settings_of(task: Task, demo: Path = DEMO) -> config.Settings:
    """Return the settings of a training: the demo's with the candidate's, the study's grid, charge and rate."""
    values: Any = config.read_values(demo / "config/config.yaml")
    changes: Any = config.read_values(PAGE / "settings" / f"{task.candidate}.yaml")
    for section, keys in changes.items():
        values[section] = values.get(section, {}) | keys
    values["message"]["extra_bits"] = 7.0  # the demo's before it paid for this study
    # Grids of nearly equal size, since their indices are charged: 4 x 24 and 5 x 2 x 12 runs take 7 bits each.
    splits = task.allocation != "uniform"
    budgets = sorted({budget for _, budget in SPLIT_CELLS} if splits else {*BUDGETS, task.budget})
    values["grid"] = {
        "budgets": budgets,
        "allocations": ["uniform", *SPLITS] if splits else ["uniform"],
        "seeds": [seed for budget in budgets for seed in (SEEDS | SEEDS_AFTERWARDS)[budget]],
    }
    if task.seed == TUNING_SEED:
        values["grid"]["seeds"] = [TUNING_SEED]
    values["training"]["learning_rate"] = task.learning_rate
    values["training"]["final_learning_rate"] = 0.008 * task.learning_rate  # the demo's ratio
    return config.parse_settings(values, source=f"{task.candidate} of the study")


def prepare_root(candidate: str, *, study: Path = STUDY, demo: Path = DEMO) -> Path:
    """Return the folder of a candidate, with links to the demo's files and, where it has any, its scales.

    UserError if the demo's files are not there.
    """
    root = study / candidate
    (root / "results/runs").mkdir(parents=True, exist_ok=True)
    for name in ("data", BASE_FOLDER, BASE_LOSSES_PATH):
        if not (demo / name).exists():
            raise UserError(f"{demo / name}: missing; run snakemake --profile profiles/demo -- data base yardsticks")
        if not (link := root / name).is_symlink():
            link.symlink_to(os.path.relpath(demo / name, link.parent))
    settings = settings_of(Task(candidate, BUDGETS[0], "uniform", SEEDS[BUDGETS[0]][0], 0.05), demo)
    if settings.subspace.scale is not None and not (root / SCALES_PATH).exists():
        make_scales(settings, root=root)
    return root


def tuned(task: Task, *, study: Path = STUDY) -> Row:
    """Train, and return what the validation documents say of the learning rate."""
    started = time.monotonic()
    root = study / task.candidate
    out = root / "tuning" / f"d{task.budget}_rate{task.learning_rate:g}"
    best = checkpoint.load(_trained(task, root, out))
    return {
        "candidate": task.candidate,
        "budget": task.budget,
        "learning_rate": task.learning_rate,
        "estimated_bound_bits": best["estimated_bound_bits"],
        "code_bits": best["code_bits"],
        "seconds": time.monotonic() - started,
    }


def measured(task: Task, *, study: Path = STUDY) -> Row:
    """Train, score and bound, and return the row of the run."""
    started = time.monotonic()
    root = study / task.candidate
    spec = config.RunSpec(budget=task.budget, allocation=task.allocation, seed=task.seed)
    out = root / "results/runs" / spec.name
    _trained(task, root, out)
    # The lines with which scoring and bounding start say the same for every run.
    with contextlib.redirect_stderr(io.StringIO()):
        score_run(out, root=root)
        bound_run(out)
    record = read_json(out / BOUNDS_NAME, missing="", fix="run the study again")
    row = dataclasses.asdict(task) | {name: record[name] for name in RUN_COLUMNS if name in record}
    return {name: row.get(name) for name in RUN_COLUMNS} | {"seconds": time.monotonic() - started}


def _trained(task: Task, root: Path, out: Path) -> Path:
    """Train unless that has been done, and return the checkpoint."""
    path = out / CHECKPOINT_NAME
    if not path.exists():
        spec = config.RunSpec(budget=task.budget, allocation=task.allocation, seed=task.seed)
        with contextlib.redirect_stderr(io.StringIO()):
            train_run(settings_of(task), spec, root=root, out=out)
    return path


def add_rows(
    path: Path, columns: Sequence[str], tasks: Sequence[Task], measure: Callable[[Task], Row], jobs: int
) -> None:
    """Measure the tasks that the file does not hold, and add each row when it is there."""
    keys = KEYS[tuple(columns)]
    rows: list[Row] = list(read_rows(path, columns))
    done = {tuple(row[key] for key in keys) for row in rows}
    missing = [task for task in tasks if tuple(_text(getattr(task, key)) for key in keys) not in done]
    for count, row in enumerate(_results(missing, measure, jobs), start=1):
        rows.append({key: _text(value) for key, value in row.items()})
        write_rows(path, columns, rows)
        print(f"{count} of {len(missing)}: {', '.join(f'{k} {v}' for k, v in rows[-1].items())}", flush=True)


def _results(tasks: Sequence[Task], measure: Callable[[Task], Row], jobs: int) -> Iterator[Row]:
    """Yield rows as they finish, from `jobs` processes; with one job from this process."""
    if jobs == 1:
        yield from map(measure, tasks)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(measure, task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _text(value: object) -> str:
    return f"{value:.8g}" if isinstance(value, float) else str(value)


def best_rates(rows: Sequence[dict[str, str]]) -> dict[tuple[str, int], float]:
    """Return the learning rate with the lowest estimated bound for each candidate and budget."""
    best: dict[tuple[str, int], dict[str, str]] = {}
    for row in rows:
        key = row["candidate"], int(row["budget"])
        if key not in best or float(row["estimated_bound_bits"]) < float(best[key]["estimated_bound_bits"]):
            best[key] = row
    return {key: float(row["learning_rate"]) for key, row in best.items()}


def tune(path: Path, jobs: int, *, study: Path = STUDY) -> None:
    """Try the coarse rates for every candidate and budget, then two beside the best of them."""
    for candidate in CANDIDATES:
        prepare_root(candidate, study=study)
    measure = functools.partial(tuned, study=study)
    cells = [(candidate, budget) for budget in BUDGETS for candidate in CANDIDATES]
    coarse = [Task(*cell, "uniform", TUNING_SEED, rate) for cell in cells for rate in COARSE_RATES]
    add_rows(path, RATE_COLUMNS, coarse, measure, jobs)
    # Of the coarse rates alone, so that a second start finds the same.
    known = {_text(rate) for rate in COARSE_RATES}
    best = best_rates([row for row in read_rows(path, RATE_COLUMNS) if row["learning_rate"] in known])
    finer = [Task(*cell, "uniform", TUNING_SEED, best[cell] * factor) for cell in cells for factor in FINER]
    add_rows(path, RATE_COLUMNS, finer, measure, jobs)


def tasks_of_the_study(rates: dict[tuple[str, int], float]) -> list[Task]:
    """Return all runs, seed by seed: stopped anywhere, the candidates have been compared on the same seeds."""
    main = [
        Task(candidate, budget, "uniform", seeds[index], rates[candidate, budget])
        for index in range(len(SEEDS[BUDGETS[0]]))
        for budget, seeds in SEEDS.items()
        for candidate in CANDIDATES
    ]
    splits = [
        Task(candidate, budget, allocation, seed, rates[candidate, budget])
        for candidate, budget in SPLIT_CELLS
        for seed in SEEDS[budget]
        for allocation in SPLITS
    ]
    return main + splits


def run(path: Path, rates_path: Path, jobs: int, *, study: Path = STUDY) -> None:
    """Train, score and bound what `path` does not hold. UserError before the learning rates have been tuned."""
    rates = best_rates(read_rows(rates_path, RATE_COLUMNS))
    lacking = [f"{c} at d = {d}" for c in CANDIDATES for d in BUDGETS if (c, d) not in rates]
    if lacking:
        raise UserError(f"{rates_path}: no learning rate of {', '.join(lacking)}; tune first")
    for candidate in CANDIDATES:
        prepare_root(candidate, study=study)
    add_rows(path, RUN_COLUMNS, tasks_of_the_study(rates), functools.partial(measured, study=study), jobs)


def run_afterwards(path: Path, jobs: int, *, study: Path = STUDY) -> None:
    """Random at d = 500 with a smaller learning rate than its tuned one, and two subspaces at the demo's d = 1,000."""
    root = study / "afterwards"
    for candidate in (RANDOM, SCALED):
        prepare_root(candidate, study=root)
    tasks = [Task(RANDOM, 500, "uniform", seed, 0.1) for seed in SEEDS[500]]
    for budget, seeds in SEEDS_AFTERWARDS.items():
        tasks += [Task(candidate, budget, "uniform", seed, 0.05) for seed in seeds for candidate in (RANDOM, SCALED)]
    add_rows(path, RUN_COLUMNS, tasks, functools.partial(measured, study=root), jobs)


def write_gates(path: Path, runs_path: Path, *, study: Path = STUDY) -> None:
    """Write what the learned runs of `runs_path` ended with, a row for each group, in the order of these runs.

    UserError if a run's folder is not there.
    """
    rows = []
    for row in read_rows(runs_path, RUN_COLUMNS):
        if row["allocation"] != LEARNED:
            continue
        spec = config.RunSpec(budget=int(row["budget"]), allocation=LEARNED, seed=int(row["seed"]))
        bounds = study / row["candidate"] / "results/runs" / spec.name / BOUNDS_NAME
        gates = read_json(bounds, missing="", fix="run the study again")["gamma"]
        rows += [
            {key: row[key] for key in GATE_COLUMNS[:3]} | {"group": g, "gamma": _text(v)} for g, v in gates.items()
        ]
    write_rows(path, GATE_COLUMNS, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.subspace_study", description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=("tune", "run", "afterwards", "gates", "summarize"))
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side, a thread each (default: 1)")
    given = parser.parse_args(arguments)
    try:
        if given.step == "tune":
            tune(PAGE / "rates.csv", given.jobs)
        elif given.step == "run":
            run(PAGE / "runs.csv", PAGE / "rates.csv", given.jobs)
        elif given.step == "afterwards":
            run_afterwards(PAGE / "afterwards.csv", given.jobs)
        elif given.step == "gates":
            write_gates(PAGE / "gates.csv", PAGE / "runs.csv")
        else:
            summarize(PAGE / "runs.csv", PAGE)
    except UserError as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
