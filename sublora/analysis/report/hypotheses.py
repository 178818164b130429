"""hypotheses.csv in words, for the report."""

import re
from typing import Any

import pandas as pd

from sublora.analysis.hypotheses.fixed_splits import NEGLIGIBLE_GAIN_BITS
from sublora.analysis.hypotheses.rows import ALL_BUDGETS, ALPHA, HEADLINE, NOT_TESTABLE, RECORD, UNDECIDED, UNIT

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
