"""What the runs say, in the words and numbers of the report."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from sublora.analysis.arms import arms_of, best_of_all, configurations, with_sizes
from sublora.analysis.hypotheses.rows import HEADLINE
from sublora.analysis.runs_table import BASE_PREFIX, INDEPENDENCE, NESTED, VERSION_PREFIX
from sublora.analysis.tables import COLUMNS, among_best
from sublora.system.errors import UserError

STAGES = (
    ("train", "Training"),
    ("encode", "Writing the message"),
    ("score", "Scoring documents"),
    ("bound", "Inequalities"),
)
INDEPENDENCE_LABELS = {
    "training_cutoff": "The base's training data end",
    "document_dates": "The documents are from",
    "how_checked": "How it was checked that the base has seen none of them",
}
NOT_RECORDED = "not recorded"
NEAR_DUPLICATES_FORMAT = 2
"""Format of near_duplicates.json; any other is refused."""


def best_run(runs: pd.DataFrame) -> dict[str, Any]:
    """The run of the smallest bound_all_runs (bits per token), the bound that allows for picking it among all.

    Its row, with `levels`: the numbers to compare it with, each with a remark and its length as a bar in percent; and
    `all_scored`: whether its bounds come from all n documents, none of them drawn.
    """
    row = best_of_all(runs).to_dict()
    row["all_scored"] = _all_scored(row)
    headline = row["bound_all_runs"]
    levels = [
        ("Test documents", row["test_loss_bits"], "measured, never used for a choice"),
        ("Scored training documents (BPD)", row["empirical_bpd"], "measured, what the bound starts from"),
        ("Bound, this run alone", row["bound_value"], "for a run that was named beforehand"),
        ("Bound, best of all runs", headline, "the headline: pays for the choice of this run"),
        *_strict(row),
        *_by_source(row),
        (
            "Bound from test documents",
            row["bound_held_out_all_runs"],
            "held out: no message; the choice among the runs is paid for",
        ),
        ("Bound, Hoeffding", row["bound_hoeffding"], "the original paper's inequality, named beforehand"),
        ("Vacuous: log2 V", row["vacuous_bits"], "guessing uniformly over the vocabulary"),
    ]
    scale = max(bits for _, bits, _ in levels)
    row["levels"] = [
        {"what": what, "bits": bits, "remark": remark, "percent": 100.0 * bits / scale, "headline": bits is headline}
        for what, bits, remark in levels
    ]
    row["below_vacuous_percent"] = 100.0 * (1.0 - row["bound_all_runs"] / row["vacuous_bits"])
    return row


def _strict(row: Mapping[str, Any]) -> list[tuple[str, float, str]]:
    """The bound that charges the settings, where they fit a reference configuration."""
    if "bound_strict" not in row:
        return []
    remark = (
        f"as before, and {row['settings_bits']:,.0f} bits for what differs from a reference configuration; for the "
        "population and base that the reader named beforehand"
    )
    return [("Bound, settings charged too", row["bound_strict"], remark)]


def _by_source(row: Mapping[str, Any]) -> list[tuple[str, float, str]]:
    """The bound over source files, where the runs have one."""
    if "by_source_bound_all_runs" not in row:
        return []
    remark = f"of the mean over source files, n = {row['by_source_n']:,}: for files, not functions, drawn like these"
    return [("Bound by source file, best of all runs", row["by_source_bound_all_runs"], remark)]


def _all_scored(row: Mapping[str, Any]) -> bool:
    return row["delta_sample"] == 0.0


def base_of_runs(runs: pd.DataFrame) -> dict[str, Any]:
    """Kind of the base, and for a pretrained one the texts its independence rests on: (what, text)."""
    first = runs.iloc[0]
    kind = first[f"{BASE_PREFIX}kind"]
    keys = INDEPENDENCE if kind == "pretrained" else ()
    return {"kind": kind, "independence": [(INDEPENDENCE_LABELS[key], first[BASE_PREFIX + key]) for key in keys]}


def grid(runs: pd.DataFrame) -> dict[str, Any]:
    return {
        "runs": len(runs),
        "budgets": sorted(runs["budget"].unique()),
        "arms": [arm.label for arm in arms_of(runs)],
        "seeds": sorted(runs["seed"].unique()),
    }


def configuration_blocks(runs: pd.DataFrame) -> dict[str, Any]:
    """Headings with units, and one block per budget: its arms with (mean, spread, whether a bound among the best)."""
    names = [column for _, column, _, _ in COLUMNS]
    table = configurations(with_sizes(runs), names)
    best = among_best(runs)
    blocks = []
    for budget, rows in table.groupby(level="budget", sort=True):
        lines = []
        for arm in arms_of(runs):
            row = rows.loc[(budget, arm.allocation)]
            cells = []
            for _, column, _, decimals in COLUMNS:
                mean, std = row[(column, "mean")], row[(column, "std")]
                spread = "" if math.isnan(std) else f"±\N{NO-BREAK SPACE}{std:,.{decimals}f}"
                is_best = column == HEADLINE and best[budget, arm.allocation]
                cells.append((f"{mean:,.{decimals}f}", spread, is_best))
            lines.append({"label": arm.label, "cells": cells})
        blocks.append({"budget": budget, "rows": lines})
    return {"headings": [(name, unit) for name, _, unit, _ in COLUMNS], "blocks": blocks}


def provenance(runs: pd.DataFrame) -> list[tuple[str, str]]:
    """(what, value) of what the numbers come from; several values where runs differ."""
    first = runs.iloc[0]
    confidence = f"1 \N{MINUS SIGN} delta = {1 - first['delta']:g}"
    if _all_scored(first):
        scored = f"all n = {first['n_units']:,}"
    else:
        scored = f"m = {first['m_units']:,}, drawn with replacement"
        confidence += f", of delta {first['delta_sample']:g} for the draws of m"
    if first["unit"] == "document":
        sizes = [("Training documents n", f"{first['n_units']:,}"), ("Documents scored in each run", scored)]
    else:
        held = f"{first['n_units']:,}, each a {first['unit']}, of {first['n_documents']:,} documents"
        sizes = [("Training units n", held), ("Units scored in each run", scored)]
    rows = [
        *sizes,
        ("Shortest document", f"{first['min_targets']:,} targets, its end-of-text among them"),
        ("Vocabulary V", f"{first['vocab_size']:,} tokens"),
        ("Confidence", confidence),
        ("Base", first[f"{BASE_PREFIX}kind"]),
        (f"sha256 of the base{'s' * (runs[f'{BASE_PREFIX}sha256'].nunique() > 1)}", _base_hashes(runs)),
        ("Hash of the data", _distinct(runs, "data_hash")),
        ("Commit", _distinct(runs, "commit")),
        ("GPU", _distinct(runs, "gpu")),
    ]
    packages = sorted(column for column in runs.columns if column.startswith(VERSION_PREFIX))
    versions = [f"{column.removeprefix(VERSION_PREFIX)} {_distinct(runs, column)}" for column in packages]
    return [*rows, ("Versions", ", ".join(versions))]


def _base_hashes(runs: pd.DataFrame) -> str:
    """One hash, or one per seed where every seed draws its own base."""
    column = f"{BASE_PREFIX}sha256"
    if runs[column].nunique() == 1:
        return runs[column].iloc[0]
    by_seed = runs.groupby("seed", sort=True)[column].unique()
    return ", ".join(f"seed {seed}: {' or '.join(hashes)}" for seed, hashes in by_seed.items())


def _distinct(runs: pd.DataFrame, column: str) -> str:
    values = sorted(set(runs[column]) - {""}) if column in runs else []
    return " or ".join(values) or NOT_RECORDED


def stages(runs: pd.DataFrame) -> list[dict[str, str]]:
    """How long each stage took, all runs together and on average."""
    stages = []
    for key, label in STAGES:
        column = NESTED["seconds"] + key
        if column in runs:
            total, each = runs[column].sum(), runs[column].mean()
            stages.append({"label": label, "total": _duration(total), "each": _duration(each)})
    return stages


def _duration(seconds: float) -> str:
    if seconds < 100.0:
        return f"{seconds:.1f} s"
    minutes = seconds / 60.0
    return f"{minutes:.0f} min" if minutes < 100.0 else f"{minutes / 60.0:.1f} h"


def near_duplicates_sentence(path: Path | str, run: Mapping[str, Any]) -> str:
    """Say what results/near_duplicates.json holds on a row of runs.csv.

    UserError if the file is damaged, of other data, or has another bound of the run than the row.
    """
    facts = _read_near_duplicates(Path(path), run["data_hash"])
    bounds = facts["runs"].get(run["name"])
    if bounds is None or not math.isclose(bounds["bound_value"], run["bound_value"], abs_tol=1e-9):
        raise UserError(f"{path}: written before run {run['name']} was scored; sublora duplicates --config FILE")
    return (
        f"Near duplicates: {facts['test_mostly_shared']:.0%} of the test documents share over half of their "
        f"{facts['rule']['shingle_bytes']}-byte shingles with training documents, and the {facts['n_documents']:,} "
        f"training documents form {facts['n_clusters']:,} clusters. If only one document of each counted, the bound of "
        f"this run alone would be {bounds['bound_value_by_clusters']:.3f} instead of {bounds['bound_value']:.3f} bits "
        f"per token; with {facts['n_mostly_new']:,} documents, as many as do not share most of their text, "
        f"{bounds['bound_value_by_mostly_new']:.3f}. This is a sensitivity, not a certificate."
    )


def _read_near_duplicates(path: Path, data_hash: str) -> dict[str, Any]:
    fix = "delete it, or measure again (sublora duplicates --config FILE)"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable ({error}); {fix}") from None
    if not isinstance(facts, dict) or facts.get("format") != NEAR_DUPLICATES_FORMAT:
        raise UserError(f"{path}: not of format {NEAR_DUPLICATES_FORMAT}; {fix}")
    if facts["data_hash"] != data_hash:
        raise UserError(f"{path}: of data {facts['data_hash']}, expected {data_hash}; {fix}")
    return facts
