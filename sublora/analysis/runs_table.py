"""runs.csv: the record of every run, one row per run, checked when written and when read."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sublora import config
from sublora.bounds.record import BoundRecord, IndependenceFacts, read_record
from sublora.system.errors import UserError
from sublora.system.files import atomic_path
from sublora.system.names import BOUNDS_NAME

IDENTITY = ("name", "budget", "allocation", "mode", "ratio", "seed")
COMPARED = ("size", "trained")
"""Columns beside IDENTITY where the grid compares networks, or what is trained."""
MODEL_PARAMETERS = "model_parameters"
"""Weights of the network, without adapters; there with `size`."""
NO_METRICS = ("format", "score_tolerance_bits", "bound_direct")
"""Numbers that are the same in all records, or columns only with an anchor."""
METRICS = tuple(
    name
    for name, field in BoundRecord.model_fields.items()
    if field.annotation in (int, int | float) and name not in NO_METRICS
)
"""Numbers of the record that keep their name. Losses and bounds in bits per token, kl_divergence in nats."""
STRICT = ("bound_strict", "settings_bits")
"""Numbers of the record that are there where the settings fit a reference configuration."""
ANCHORED = ("bound_direct", "certified_gain_bits", "certified_gain_all_runs_bits")
"""Numbers of the record that are columns where the bound is anchored on the base; then there are columns anchor_*."""
ANCHOR_PREFIX = "anchor_"
NESTED = {
    "bounds": "bound_by_",
    "by_source": "by_source_",
    "code_items": "bits_",
    "gamma": "gamma_",
    "topk_errors": "topk_error_",
    "topk_bounds": "topk_bound_",
    "seconds": "seconds_",
    "peak_memory_mib": "peak_memory_mib_",
}
"""Tables of numbers in the record and the prefix their keys get as columns."""
VERSION_PREFIX = "version_"
BASE_PREFIX = "base_"
INDEPENDENCE = tuple(IndependenceFacts.model_fields)
"""Texts of a pretrained base that say why it was fixed without the n documents."""
PREFIXES = {"anchor": ANCHOR_PREFIX} | NESTED | {"base": BASE_PREFIX, "versions": VERSION_PREFIX}
"""All tables of the record and their prefixes, in the order of their columns."""
TEXTS = ("bound_inequality", "smoothing", "unit")
ORIGIN = ("gpu", "commit", "data_hash", "certificate_sha256")
"""Texts of the record that say where it comes from; empty if the record lacks them."""
TEXT_COLUMNS = ("name", "allocation", "mode", *COMPARED, *TEXTS, *ORIGIN)
SAME_IN_ALL_RUNS = (
    "unit",
    "data_hash",
    "bound_inequality",
    "vacuous_bits",
    "vocab_size",
    "min_targets",
    "n_units",
    "m_units",
    "n_documents",
    "m_documents",
    "test_units",
    "sweep_size",
    "delta",
    "delta_sample",
)
"""Columns that all runs of a table share, and below those of them that come with an anchor."""
SAME_IF_ANCHORED = tuple(
    ANCHOR_PREFIX + key for key in ("k0", "base_units", "delta_base", "delta_base_sample", "delta_excess_sample")
)
HEAD = "head"


def collect_runs(paths: Iterable[Path | str]) -> pd.DataFrame:
    """The runs table of run directories or of their bounds.json files, sorted by budget, arm and seed.

    UserError names the run and the key if a record is missing, has no value or a non-finite one, contradicts
    itself (items that do not sum to the code length), or does not belong to the same grid as the others.
    """
    rows = [_row(_load(Path(path))) for path in paths]
    if not rows:
        raise UserError("no runs given: expected run directories or their bounds.json files")
    runs = pd.DataFrame(rows)
    _check(runs, "runs")
    arm_rank = runs["mode"].map(config.allocation_modes().index)
    order = np.lexsort((runs["seed"], runs["ratio"].fillna(0.0), arm_rank, runs["budget"], *_network_ranks(runs)))
    return pd.DataFrame([rows[index] for index in order])


def _network_ranks(runs: pd.DataFrame) -> list[pd.Series]:
    """What sorts before the budget: what is trained, within each size; nothing where the grid compares neither."""
    ranks = [] if "trained" not in runs else [runs["trained"].map(config.part_rank)]
    return ranks + ([runs[MODEL_PARAMETERS]] if MODEL_PARAMETERS in runs else [])


def write_runs_csv(runs: pd.DataFrame, path: Path) -> None:
    """Write the table; floats with every digit, so that reading gives the same numbers."""
    with atomic_path(path) as temporary:
        runs.to_csv(temporary, index=False)


def check_last_line(path: Path) -> None:
    """UserError if a file of rows does not end with a line: it is cut short."""
    size = path.stat().st_size
    with open(path, "rb") as handle:
        handle.seek(max(0, size - 1))
        if size and handle.read() != b"\n":
            raise UserError(f"{path}: cut short, its last line does not end; make it again")


def read_runs_csv(path: Path | str, *, whole_sweep: bool = False) -> pd.DataFrame:
    """Read a table that `write_runs_csv` wrote. UserError if it is missing, damaged, or lacks a value.

    whole_sweep: also if it does not hold every run of the sweep, as the table of one budget does not.
    """
    path = Path(path)
    try:
        check_last_line(path)
        runs = pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise UserError(f"{path}: no such runs table; make it with `snakemake results/runs.csv`") from None
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        why = " ".join(str(error).split())
        raise UserError(f"{path}: not a runs table ({why}); delete it and make it again") from None
    if runs.empty:
        raise UserError(f"{path}: holds no runs; delete it and make it again")
    for column in runs.columns:
        if not _is_text(column):
            values = [_parsed(cell) for cell in runs[column]]
            for index, value in enumerate(values):
                if isinstance(value, str) or math.isinf(value):
                    name = runs["name"][index] if "name" in runs else index
                    raise UserError(
                        f"{path}: run {name}: {column} is {value}, expected a finite number; make the table again"
                    )
            runs[column] = values
    _check(runs, str(path))
    if whole_sweep and len(runs) != (size := runs["sweep_size"].iloc[0]):
        raise UserError(f"{path}: cut short: {len(runs)} runs of a sweep of {size}; delete it and make it again")
    return runs


def _parsed(cell: str) -> int | float | str:
    """The number a cell spells, to the last bit; NaN if it is empty, the cell itself if it is no number."""
    for kind in (int, float):
        try:
            return kind(cell or "nan")
        except ValueError:
            continue
    return cell


def _is_text(column: str) -> bool:
    return column in TEXT_COLUMNS or column.startswith((VERSION_PREFIX, BASE_PREFIX))


def inequality_columns(runs: pd.DataFrame) -> list[str]:
    """Columns that hold the bound by one inequality each, in the record's order."""
    return [column for column in runs.columns if column.startswith(NESTED["bounds"])]


def gate_groups(runs: pd.DataFrame) -> list[str]:
    """Groups that have a gate: layers by depth, then the head. UserError if no run learned its allocation."""
    prefix = NESTED["gamma"]
    groups = [column.removeprefix(prefix) for column in runs.columns if column.startswith(prefix)]
    if not groups or not (runs["mode"] == "learned").any():
        raise UserError("the runs hold no learned allocation, so there are no gates; add 'learned' to grid.allocations")
    return sorted(groups, key=lambda group: (not group.isdigit(), int(group) if group.isdigit() else 0, group))


def learned_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """Rows of the learned arm. UserError if it has none."""
    gate_groups(runs)
    return runs[runs["mode"] == "learned"]


def at_budget(runs: pd.DataFrame, budget: int) -> pd.DataFrame:
    """Rows of one budget. UserError if it has none."""
    rows = runs[runs["budget"] == budget]
    if rows.empty:
        known = ", ".join(str(value) for value in sorted(runs["budget"].unique()))
        raise UserError(f"the runs table has no run with budget {budget}; it has {known}")
    return rows


def _load(path: Path) -> BoundRecord:
    """The record of a run's folder or of its bounds.json. UserError if it is missing, damaged or another run's."""
    record_path = path / BOUNDS_NAME if path.is_dir() else path
    name, again = record_path.parent.name, f"compute it again (sublora bound {record_path.parent})"
    missing = f"; compute it first (sublora bound {record_path.parent})"
    record = read_record(record_path, missing=missing, fix=f"{again}, and train again if that does not fix it")
    if record.run.name != name:
        raise UserError(f"run {name}: its {BOUNDS_NAME} is of run {record.run.name}; bring the right file back")
    return record


def _row(record: BoundRecord) -> dict[str, Any]:
    """The record as a row, its columns in order: facts of the run, texts, numbers, then table by table."""
    facts = record.as_json()
    facts["base"] |= facts["base"].pop("independence") or {}
    numbers = [*METRICS, *(STRICT if record.bound_strict is not None else ()), *(ANCHORED if record.anchor else ())]
    row = {key: facts["run"][key] for key in (*IDENTITY, *COMPARED, MODEL_PARAMETERS) if key in facts["run"]}
    row["ratio"] = math.nan if record.run.ratio is None else record.run.ratio
    row |= {key: facts[key] for key in (*TEXTS, *numbers)}
    for table, prefix in PREFIXES.items():
        row |= {prefix + key: value for key, value in facts[table].items()}
    return row | {key: facts[key] or "" for key in ORIGIN}


def is_anchored(runs: pd.DataFrame | Mapping[str, Any]) -> bool:
    """Whether the bound of these runs, or of this run, is anchored on the base: then it has the columns ANCHORED."""
    return "bound_direct" in runs


def _check(runs: pd.DataFrame, source: str) -> None:
    """Every run complete, all runs comparable, the grid whole."""
    texts = ("bound_inequality", "smoothing", "data_hash", f"{BASE_PREFIX}kind", f"{BASE_PREFIX}sha256")
    absent = [column for column in (*IDENTITY, *METRICS, *texts) if column not in runs.columns]
    if absent:
        raise UserError(f"{source}: column {absent[0]} is missing; make the table again")
    _check_arms(runs, source)
    for column in runs.columns.difference(["ratio"]):
        if not _is_text(column):
            empty = runs[column].isna()
            if column.startswith(NESTED["gamma"]):
                # Gates depend on the allocation: a run that has one of them has all.
                empty &= runs["mode"].isin(runs["mode"][~empty])
            if empty.any():
                name = runs["name"][empty].iloc[0]
                raise UserError(f"{source}: run {name} has no value for {column}, which other runs have")
    anchor = SAME_IF_ANCHORED if is_anchored(runs) else ()
    if absent := [column for column in anchor if column not in runs.columns]:
        raise UserError(f"{source}: column {absent[0]} is missing; make the table again")
    for column in (*SAME_IN_ALL_RUNS, *anchor, *_base_of_all_runs(runs)):
        values = runs[column].unique()
        if len(values) > 1:
            names = [runs["name"][runs[column] == value].iloc[0] for value in values[:2]]
            raise UserError(
                f"{source}: {column} is {values[0]} in run {names[0]} but {values[1]} in run {names[1]}; "
                "runs of different settings cannot be compared, compute their bounds again"
            )
    _check_grid(runs, source)


def _base_of_all_runs(runs: pd.DataFrame) -> list[str]:
    """Columns of the base that all runs share: all of them, but every seed draws a random base of its own."""
    kind = f"{BASE_PREFIX}kind"
    columns = [column for column in runs.columns if column.startswith(BASE_PREFIX) and column != kind]
    return [kind] if (runs[kind] == "random").any() else [kind, *columns]


def _check_arms(runs: pd.DataFrame, source: str) -> None:
    for row in runs.itertuples():
        ratio = None if math.isnan(row.ratio) else float(row.ratio)
        spec = config.parse_run(row.budget, row.allocation, row.seed)
        if (row.mode, ratio) != (spec.mode, spec.ratio):
            raise UserError(
                f"{source}: run {row.name} has allocation {row.allocation}, mode {row.mode} and ratio {ratio}, "
                "which do not belong together"
            )


def _check_grid(runs: pd.DataFrame, source: str) -> None:
    """Means and paired differences are only fair if every combination of the grid is there, once.

    What is compared beside may have budgets and allocations of its own, but the seeds are the same for all.
    """
    compared = [key for key in COMPARED if key in runs]
    if compared and runs[compared].drop_duplicates().shape[0] > 1:
        for value, rows in runs.groupby(compared, sort=False):
            if absent := set(runs["seed"]) - set(rows["seed"]):
                raise UserError(f"{source}: {', '.join(value)} has no run of seed {min(absent)}; run it first")
            _check_grid(rows, source)
        return
    keys = ["budget", "allocation", "seed"]
    twice = runs.duplicated(keys)
    if twice.any():
        raise UserError(f"{source}: run {runs['name'][twice].iloc[0]} occurs twice")
    whole = pd.MultiIndex.from_product([runs[key].unique() for key in keys], names=keys)
    missing = whole.difference(pd.MultiIndex.from_frame(runs[keys]))
    if len(missing):
        budget, allocation, seed = missing[0]
        raise UserError(
            f"{source}: the run with budget {budget}, allocation {allocation}, seed {seed} is missing; "
            "the others form a grid with it, run it first"
        )
