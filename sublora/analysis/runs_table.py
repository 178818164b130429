"""runs.csv: the record of every run, one row per run, checked when written and when read."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sublora import config
from sublora.bounds.record import RECORD_FORMAT
from sublora.config import Independence
from sublora.system.errors import UserError
from sublora.system.files import atomic_path
from sublora.system.names import BOUNDS_NAME

IDENTITY = ("name", "budget", "allocation", "mode", "ratio", "seed")
COMPARED = ("size", "trained")
"""Columns beside IDENTITY where the grid compares networks, or what is trained."""
MODEL_PARAMETERS = "model_parameters"
"""Weights of the network, without adapters; there with `size`."""
METRICS = (
    "bound_value",
    "bound_hoeffding",
    "bound_all_runs",
    "bound_held_out",
    "bound_held_out_all_runs",
    "empirical_bpd",
    "kl_divergence",
    "compressed_size_bits",
    "code_bits",
    "lower_bits",
    "upper_bits",
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
    "val_loss_bits",
    "val_loss_unquantized_bits",
    "test_loss_bits",
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
"""Tables of the record and the prefix their keys get as columns."""
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
OPTIONAL_TEXT = ("gpu", "commit", "data_hash", "certificate_sha256")
TEXT = ("name", "allocation", "mode", *COMPARED, "bound_inequality", "smoothing", "unit", *OPTIONAL_TEXT)
VERSION_PREFIX = "version_"
BASE_PREFIX = "base_"
BASE_KINDS = ("random", "trained", "pretrained")
INDEPENDENCE = tuple(Independence.model_fields)
"""Texts of a pretrained base that say why it was fixed without the n documents."""
HEAD = "head"

_TOLERANCE_BITS = 1e-6


def collect_runs(paths: Iterable[Path | str]) -> pd.DataFrame:
    """The runs table of run directories or of their bounds.json files, sorted by budget, arm and seed.

    UserError names the run and the key if a record is missing, has no value or a non-finite one, contradicts
    itself (items that do not sum to the code length), or does not belong to the same grid as the others.
    """
    rows = [_flatten(*_load(Path(path))) for path in paths]
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
    return column in TEXT or column.startswith((VERSION_PREFIX, BASE_PREFIX))


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
    """Rows of the learned arm. UserError if there is none."""
    gate_groups(runs)
    return runs[runs["mode"] == "learned"]


def at_budget(runs: pd.DataFrame, budget: int) -> pd.DataFrame:
    """Rows of one budget. UserError if there is none."""
    rows = runs[runs["budget"] == budget]
    if rows.empty:
        known = ", ".join(str(value) for value in sorted(runs["budget"].unique()))
        raise UserError(f"the runs table has no run with budget {budget}; it has {known}")
    return rows


def _load(path: Path) -> tuple[str, Mapping[str, Any]]:
    """(name for errors, record)"""
    record_path = path / BOUNDS_NAME if path.is_dir() else path
    name = record_path.parent.name
    try:
        record = json.loads(record_path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"run {name}: {record_path} does not exist; compute it with `sublora bound`") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"run {name}: {record_path} is not valid JSON ({error}); run `sublora bound` again") from None
    if not isinstance(record, dict) or record.get("format") != RECORD_FORMAT:
        found = record.get("format") if isinstance(record, dict) else type(record).__name__
        raise UserError(
            f"run {name}: {record_path} has format {found}, expected {RECORD_FORMAT}; run `sublora bound` again"
        )
    return name, record


def _flatten(name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    run = _mapping(record, "run", name)
    row: dict[str, Any] = {"name": _text(run, "name", name, "run.")}
    if row["name"] != name:
        raise UserError(f"run {name}: its {BOUNDS_NAME} is of run {row['name']}; bring the right file back")
    row["budget"] = _number(run, "budget", name, "run.")
    row["allocation"] = _text(run, "allocation", name, "run.")
    row["mode"] = _text(run, "mode", name, "run.")
    row["ratio"] = math.nan if run.get("ratio", "absent") is None else _number(run, "ratio", name, "run.")
    row["seed"] = _number(run, "seed", name, "run.")
    row |= {key: _text(run, key, name, "run.") for key in COMPARED if key in run}
    row |= {key: _number(run, key, name, "run.") for key in (MODEL_PARAMETERS,) if key in run}
    row |= {key: _text(record, key, name) for key in ("bound_inequality", "smoothing", "unit")}
    row |= {key: _number(record, key, name) for key in METRICS}
    if record.get("bound_strict") is not None:
        row |= {key: _number(record, key, name) for key in STRICT}
    if record.get("anchor"):
        anchor = _mapping(record, "anchor", name)
        row |= {key: _number(record, key, name) for key in ANCHORED}
        row |= {ANCHOR_PREFIX + key: _number(anchor, key, name, "anchor.") for key in anchor}
    for key, prefix in NESTED.items():
        table = _mapping(record, key, name)
        columns = {prefix + str(item): _number(table, item, name, f"{key}.") for item in table}
        if twice := sorted(columns.keys() & row.keys()):
            raise ValueError(f"{key} of {BOUNDS_NAME} collides with column {twice[0]}")
        row |= columns
    versions = _mapping(record, "versions", name)
    row |= _base_columns(_mapping(record, "base", name), name)
    row |= {VERSION_PREFIX + package: _text(versions, package, name, "versions.") for package in versions}
    row |= {key: "" if record.get(key) is None else _text(record, key, name) for key in OPTIONAL_TEXT}
    _check_record(row, record, name)
    return row


def _base_columns(base: Mapping[str, Any], name: str) -> dict[str, str]:
    """Which base the run adapts, and for a pretrained one why it was fixed without the n documents."""
    texts = {key: _text(base, key, name, "base.") for key in ("kind", "sha256")}
    if texts["kind"] not in BASE_KINDS:
        raise UserError(
            f"run {name}: key base.kind of {BOUNDS_NAME} is {texts['kind']}, expected one of {', '.join(BASE_KINDS)}; "
            "run `sublora bound` again"
        )
    if texts["kind"] == "pretrained":
        independence = _mapping(base, "independence", name, "base.")
        texts |= {key: _text(independence, key, name, "base.independence.") for key in INDEPENDENCE}
    return {BASE_PREFIX + key: text for key, text in texts.items()}


def _mapping(table: Mapping[str, Any], key: str, name: str, prefix: str = "") -> Mapping[str, Any]:
    if not isinstance(table.get(key), dict):
        raise UserError(
            f"run {name}: key {prefix}{key} of {BOUNDS_NAME} is missing or no mapping; run `sublora bound` again"
        )
    return table[key]


def _text(table: Mapping[str, Any], key: str, name: str, prefix: str = "") -> str:
    if not isinstance(table.get(key), str):
        raise UserError(
            f"run {name}: key {prefix}{key} of {BOUNDS_NAME} is missing or no text; run `sublora bound` again"
        )
    return table[key]


def _number(table: Mapping[str, Any], key: str, name: str, prefix: str = "") -> int | float:
    value = table.get(key, "nothing")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(
            f"run {name}: key {prefix}{key} of {BOUNDS_NAME} is {value}, expected a finite number; "
            "run `sublora bound` again, and train again if that does not mend it"
        )
    return value


def _check_record(row: Mapping[str, Any], record: Mapping[str, Any], name: str) -> None:
    """A record that was edited or half updated contradicts itself in one of these."""
    itemised = sum(record["code_items"].values())
    if abs(itemised - row["code_bits"]) > _TOLERANCE_BITS:
        raise UserError(f"run {name}: code_items sum to {itemised:g} bits, but code_bits is {row['code_bits']:g}")
    nats = row["code_bits"] * math.log(2.0)
    if not math.isclose(row["kl_divergence"], nats, rel_tol=1e-9, abs_tol=1e-9):
        raise UserError(f"run {name}: kl_divergence is {row['kl_divergence']:g}, but code_bits x ln 2 is {nats:g}")
    # With an anchor the bound is a sum, and that by a single inequality stands beside it.
    direct = "bound_direct" if "bound_direct" in row else "bound_value"
    headline = record["bounds"].get(row["bound_inequality"])
    if headline != row[direct]:
        raise UserError(f"run {name}: {direct} is {row[direct]:g}, but bounds.{row['bound_inequality']} is {headline}")
    if is_anchored(row):
        parts = [row.get(f"{ANCHOR_PREFIX}{part}_bound", math.nan) for part in ("base", "excess")]
        if not math.isclose(row["bound_value"], sum(parts), rel_tol=0.0, abs_tol=_TOLERANCE_BITS):
            raise UserError(
                f"run {name}: bound_value is {row['bound_value']:g}, but the bounds on the base's loss and on the "
                f"excess sum to {sum(parts):g}"
            )


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
                # Gates are a matter of the allocation: who has one has all.
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
