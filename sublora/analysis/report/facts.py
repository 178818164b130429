"""What the report says: facts of the runs, and hypotheses.csv in words."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from sublora.analysis.arms import arms_of, best_of_all, configurations, with_sizes
from sublora.analysis.hypotheses.fixed_splits import NEGLIGIBLE_GAIN_BITS
from sublora.analysis.hypotheses.rows import ALL_BUDGETS, ALPHA, HEADLINE, NOT_TESTABLE, RECORD, UNDECIDED, UNIT
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


QUESTIONS = {
    "H1": "Do asymmetric fixed splits beat the equal one?",
    "H2": "Do learned gates leave 0.5?",
    "H3": "Do learned gates follow depth?",
}
GATES_AS_EVIDENCE = (
    "From lora.init zero_b gates drift to A even where there is nothing to learn, and a single gate without a signal "
    "wanders: as evidence count only runs with lora.init both_random whose gradient_snr in gating_trace.csv stands "
    "above that of noise (docs/allocation.md)."
)
CAVEATS = {"H2": GATES_AS_EVIDENCE, "H3": GATES_AS_EVIDENCE}
METRICS = {
    HEADLINE: "bound",
    "empirical_bpd": "BPD",
    "kl_divergence and empirical_bpd": "KL and BPD together",
}
"""Metrics that the comparison does not name."""

HypothesisRow = dict[str, Any]


def hypothesis_sections(table: pd.DataFrame) -> list[dict[str, Any]]:
    """One section per hypothesis: question, answer, caveat, the tests of record, and those that decide nothing.

    `table`: as hypotheses.csv holds it, the column budget as text. Tests are sentences with their verdicts.
    """
    sections = []
    for hypothesis, rows in table.groupby("hypothesis", sort=True):
        record = rows["role"] == RECORD
        sections.append(
            {
                "hypothesis": hypothesis,
                "question": QUESTIONS.get(hypothesis, ""),
                "answer": answer(table, hypothesis),
                "caveat": CAVEATS.get(hypothesis, ""),
                "record": [_test(row) for row in rows[record].to_dict("records")],
                "others": [_test(row) for row in rows[~record].to_dict("records")],
            }
        )
    return sections


def answer(table: pd.DataFrame, hypothesis: str) -> str:
    """A hypothesis's answer in one sentence, from its tests of record."""
    rows = table[table["hypothesis"] == hypothesis]
    record = rows[rows["role"] == RECORD].to_dict("records")
    if all(row["verdict"] == NOT_TESTABLE for row in record):
        return "Not testable with this grid."
    sentence = {"H1": _asymmetry, "H2": _gates, "H3": _depth}[hypothesis](record, rows)
    return _typographic(sentence)


def _asymmetry(record: list[HypothesisRow], rows: pd.DataFrame) -> str:
    effects = "; ".join(f"{row['comparison']} = {_measured(row)}" for row in record)
    better = [row for row in record if row["p_holm"] <= ALPHA]
    if better:
        return f"Yes, {' and '.join(row['verdict'] for row in better)} in the bound{_over(record)}: {effects}."
    limits = [float(row["gain_at_most"]) for row in record]
    gains = "with so few seeds nothing limits the gain"
    if not any(pd.isna(limit) for limit in limits):
        gains = f"with 95 % confidence {_gain(max(limits))}"
    if all(row["verdict"] != UNDECIDED for row in record):
        verdict = f"No, the asymmetric splits gain less than {NEGLIGIBLE_GAIN_BITS} {UNIT}"
        return f"{verdict}, {gains}{_over(record)}: {effects}."
    return f"Undecided{_over(record)}: {effects}; {gains}."


def _gain(limit: float) -> str:
    return f"at most {limit:.3f}" if limit > 0.0 else f"they lose at least {-limit:.3f}"


def _gates(record: list[HypothesisRow], rows: pd.DataFrame) -> str:
    joint, *gates = record
    decided = [
        f"{row['verdict']} (gamma {row['estimate']:.2f}, {row['interval_low']:.2f} to {row['interval_high']:.2f})"
        for row in gates
        if row["verdict"] != UNDECIDED
    ]
    if joint["verdict"] == UNDECIDED:
        return f"Undecided{_over(record)}: p = {joint['p']:.2g} for all gates jointly{_worth(rows)}."
    which = ", ".join(decided) if decided else "which gates do is undecided"
    return f"Yes, p = {joint['p']:.2g} jointly{_over(record)}: {which}{_worth(rows)}."


def _worth(rows: pd.DataFrame) -> str:
    """What the gates change in the bound, over all budgets."""
    (budget,) = rows.loc[rows["role"] == RECORD, "budget"].unique()
    of_bound = rows[(rows["metric"] == HEADLINE) & (rows["budget"] == budget)].to_dict("records")
    changes = [f"{row['comparison']} = {_measured(row)}" for row in of_bound]
    return "; in the bound " + " and ".join(changes) if changes else ""


def _depth(record: list[HypothesisRow], rows: pd.DataFrame) -> str:
    (trend,) = record
    found = f"mean rank correlation {_measured(trend)}, p = {trend['p']:.2g}{_over(record)}"
    return f"Undecided: {found}." if trend["verdict"] == UNDECIDED else f"Yes, {trend['verdict']}: {found}."


def _over(record: list[HypothesisRow]) -> str:
    seeds = int(record[0]["n_seeds"])
    return f" over {seeds} seeds" if seeds > 1 else " with a single seed"


def _measured(row: HypothesisRow) -> str:
    """Estimate, unit and interval. A share of d or a correlation has no unit to stand behind a number."""
    text = f"{row['estimate']:+.3f} {UNIT}" if row["unit"] == UNIT else f"{row['estimate']:.3f}"
    if not pd.isna(row["interval_low"]):
        text += f" (95 % interval {row['interval_low']:.3f} to {row['interval_high']:.3f})"
    return text


def _typographic(text: str) -> str:
    """Minus signs before numbers and between the names of allocations, which have hyphens of their own."""
    return re.sub(r"(?<![\w.])-(?=[ \d])", "\N{MINUS SIGN}", text)


def _test(row: HypothesisRow) -> dict[str, Any]:
    """One test: what was compared, what came out, and what follows."""
    what = [row["comparison"]]
    if row["metric"] in METRICS:
        what.append(METRICS[row["metric"]])
    if row["budget"] not in (ALL_BUDGETS, "") and not pd.isna(row["budget"]):
        what.append(f"d = {row['budget']}")
    return {
        "what": _typographic(", ".join(what)),
        "result": _typographic(_result(row)),
        "verdict": row["verdict"],
        "note": "" if pd.isna(row["note"]) else row["note"],
        "decided": row["role"] == RECORD and row["verdict"] not in (UNDECIDED, NOT_TESTABLE),
    }


def _result(row: HypothesisRow) -> str:
    if pd.isna(row["p"]):
        return ""
    text = ("" if row["unit"] == UNIT else f"{row['unit']} ") + _measured(row) + f"; p = {row['p']:.2g}"
    if row["p_holm"] != row["p"]:
        text += f", corrected {row['p_holm']:.2g}"
    if not pd.isna(row["p_holm_if_budgets_independent"]):
        text += f"; if budgets are independent given the seed {row['p_holm_if_budgets_independent']:.2g}"
    if not pd.isna(row["gain_at_most"]):
        text += f"; the limit of a gain is {row['gain_at_most']:+.3f} {UNIT}"
    if row["verdict"] == UNDECIDED and not pd.isna(row["seeds_to_decide"]):
        text += f"; {row['seeds_to_decide']:.0f} seeds would decide in 80 % of experiments"
    return text
