"""hypotheses.csv in words, for the report."""

from typing import Any

import pandas as pd

from sublora.analysis.hypothesis_rows import ALL_BUDGETS, NOT_TESTABLE, UNDECIDED

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
    "bound_value": "bound",
    "empirical_bpd": "BPD",
    "kl_divergence and empirical_bpd": "KL and BPD together",
}
"""Metrics that the comparison does not name."""


def hypothesis_sections(table: pd.DataFrame) -> list[dict[str, Any]]:
    """One section per hypothesis: question, answer, findings, caveat, tests over all budgets and of single ones.

    `table`: as hypotheses.csv holds it, the column budget as text. Tests are sentences with their verdicts. Where
    there is one budget only, its tests are the main ones.
    """
    sections = []
    for hypothesis, rows in table.groupby("hypothesis", sort=True):
        together = rows["budget"] == ALL_BUDGETS
        main = rows[together] if together.any() else rows
        single = rows[~together] if together.any() else rows.iloc[:0]
        sections.append(
            {
                "hypothesis": hypothesis,
                "question": QUESTIONS.get(hypothesis, ""),
                "answer": _answer(main),
                "caveat": CAVEATS.get(hypothesis, ""),
                "findings": _findings(main),
                "main": [_test(row) for row in main.to_dict("records")],
                "single": [_test(row) for row in single.to_dict("records")],
            }
        )
    return sections


def _answer(rows: pd.DataFrame) -> str:
    testable = rows[rows["verdict"] != NOT_TESTABLE]
    if testable.empty:
        return "Not testable with this grid."
    decided = int((testable["verdict"] != UNDECIDED).sum())
    scope = "over all budgets together" if (rows["budget"] == ALL_BUDGETS).all() else "at the single budget"
    if not decided:
        return f"Undecided: none of {len(testable)} tests {scope} is conclusive."
    return f"{decided} of {len(testable)} tests {scope} {'is' if decided == 1 else 'are'} conclusive:"


def _findings(rows: pd.DataFrame) -> list[str]:
    """Every verdict once, with the metrics that it was reached in."""
    decided = rows[~rows["verdict"].isin([UNDECIDED, NOT_TESTABLE])]
    findings = []
    for verdict, same in decided.groupby("verdict", sort=False):
        metrics = [METRICS[metric] for metric in same["metric"] if metric in METRICS]
        finding, comma, caveat = str(verdict).partition(", ")
        findings.append(finding + (f" in {' and '.join(metrics)}" if metrics else "") + comma + caveat)
    return findings


def _test(row: dict[str, Any]) -> dict[str, Any]:
    """One test: what was compared, what came out, and what follows."""
    what = [row["comparison"]]
    if row["metric"] in METRICS:
        what.append(METRICS[row["metric"]])
    if row["budget"] not in (ALL_BUDGETS, "") and not pd.isna(row["budget"]):
        what.append(f"d = {row['budget']}")
    decided = row["verdict"] not in (UNDECIDED, NOT_TESTABLE)
    return {
        "what": ", ".join(what),
        "result": _result(row),
        "verdict": row["verdict"],
        "note": "" if pd.isna(row["note"]) else row["note"],
        "decided": decided,
    }


def _result(row: dict[str, Any]) -> str:
    if pd.isna(row["p"]):
        return ""
    unit = row["unit"]
    # A share of pairs or of d, or a correlation, has no unit to stand behind a number.
    text = f"{row['estimate']:+.3f} {unit}" if unit == "bits/token" else f"{unit} {row['estimate']:.3f}"
    if not pd.isna(row["interval_low"]):
        text += f" (95 % interval {row['interval_low']:.3f} to {row['interval_high']:.3f})"
    text += f"; p = {row['p']:.2g}"
    if row["p_holm"] != row["p"]:
        text += f", corrected {row['p_holm']:.2g}"
    if row["verdict"] == UNDECIDED and not pd.isna(row["seeds_to_decide"]):
        text += f"; {row['seeds_to_decide']:.0f} seeds would decide in 80 % of experiments"
    return text.replace("-", "\N{MINUS SIGN}")
