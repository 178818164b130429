"""The comparisons of a file of `benchmarks.gates`: by the bound, paired by seed.

A seed's value is the mean over the budgets of the file; a seed that lacks one of them is left out of that variant.
"""

import csv
import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from sublora.analysis.arms import LEARNED, UNIFORM
from sublora.analysis.hypotheses.inference import holm, sign_flip_p, t_interval
from sublora.system.errors import UserError

FIXED = ("fixed-0.2", "fixed-0.5", "fixed-0.8")
TUNED = "tuned"
"""Of each budget and seed the fixed split with the lowest estimated bound on val; the arm's index in C pays for it."""
FAMILY = ("start", "choice", "start_choice", "one_gate")
"""What is tested against the gates as they are, under Holm."""
WITHOUT_GATES = (UNIFORM, "fixed-0.5", TUNED)
ORDER = (LEARNED, *FAMILY, UNIFORM, *FIXED, TUNED)

Row = dict[str, str]
Table = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Difference:
    """A variant's bound minus another's, paired by seed."""

    seeds: int
    mean: float
    low: float
    high: float
    p_less: float
    """One-sided exact sign flips of whole seeds; 1 without a seed."""

    @classmethod
    def of(cls, values: dict[str, float], others: dict[str, float]) -> "Difference":
        """Over the seeds that both have."""
        found = np.array([values[seed] - others[seed] for seed in values if seed in others])
        if not len(found):
            return cls(0, math.nan, math.nan, math.nan, 1.0)
        return cls(len(found), float(found.mean()), *t_interval(found), sign_flip_p(found, "less"))

    def __str__(self) -> str:
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


def read_rows(path: Path) -> list[Row]:
    """UserError if the file is missing or holds no rows of this study."""
    try:
        with open(path, newline="", encoding="utf-8") as handle:
            rows = list(csv.DictReader(handle))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the study with --out {path}") from None
    needed = {"variant", "budget", "seed", "bound_value", "estimated_bound_bits", "gate_bits", "gate_bits_cost"}
    if not rows or not needed <= rows[0].keys():
        raise UserError(f"{path}: expected rows with the columns {', '.join(sorted(needed))}")
    return rows


def with_tuned(rows: list[Row]) -> list[Row]:
    """The rows, and for each budget and seed with all fixed splits the tuned one."""
    fixed = defaultdict(list)
    for row in rows:
        if row["variant"] in FIXED:
            fixed[row["budget"], row["seed"]].append(row)
    complete = [found for found in fixed.values() if len(found) == len(FIXED)]
    best = [min(found, key=lambda row: float(row["estimated_bound_bits"])) for found in complete]
    return rows + [row | {"variant": TUNED} for row in best]


def by_seed(rows: Iterable[Row], column: str) -> dict[str, dict[str, float]]:
    """variant -> seed -> mean over the budgets, for seeds that have all of them."""
    rows = list(rows)
    budgets = {row["budget"] for row in rows}
    values: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        values[row["variant"]][row["seed"]][row["budget"]] = float(row[column])
    return {
        variant: {seed: float(np.mean([*of.values()])) for seed, of in seeds.items() if of.keys() == budgets}
        for variant, seeds in values.items()
    }


def comparisons(rows: list[Row]) -> Table:
    """A row for each variant: mean bound, difference from learned, p, Holm's p over FAMILY, the gates' bits and cost.

    A variant of FAMILY that the file lacks counts with p = 1.
    """
    rows = with_tuned(rows)
    bounds, bits, costs = (by_seed(rows, column) for column in ("bound_value", "gate_bits", "gate_bits_cost"))
    learned = bounds.get(LEARNED, {})
    differences = {variant: Difference.of(values, learned) for variant, values in bounds.items() if variant != LEARNED}
    p_values = [differences[name].p_less if name in differences else 1.0 for name in FAMILY]
    corrected = dict(zip(FAMILY, holm(np.array(p_values)).tolist(), strict=True))
    return [
        {
            "variant": variant,
            "seeds": len(values),
            "bound_bits": float(np.mean([*values.values()])) if values else math.nan,
            "minus_learned": differences.get(variant),
            "p_holm": corrected.get(variant),
            "gate_bits": float(np.mean([*bits[variant].values()])) if values else math.nan,
            "gate_bits_cost": float(np.mean([*costs[variant].values()])) if values else math.nan,
        }
        for variant in ORDER
        if (values := bounds.get(variant)) is not None
    ]


def against_no_gates(rows: list[Row]) -> Table:
    """Every variant with gates minus each of WITHOUT_GATES."""
    bounds = by_seed(with_tuned(rows), "bound_value")
    return [
        {"variant": variant, "other": other, "difference": Difference.of(bounds[variant], bounds[other])}
        for variant in (LEARNED, *FAMILY)
        for other in WITHOUT_GATES
        if variant in bounds and other in bounds
    ]


def summarize(path: Path) -> tuple[Table, Table]:
    """Print and return `comparisons` and `against_no_gates` of a file."""
    rows = read_rows(path)
    tables = comparisons(rows), against_no_gates(rows)
    print("Bounds in bits per byte; differences paired by seed, with 95 % t intervals; p: one-sided sign flips.")
    head = f"{'variant':14} {'seeds':>5} {'bound':>7}  {'minus learned':28} {'p':>6} {'Holm':>6}"
    print(f"{head} {'gate bits':>9} {'cost':>7}")
    for line in tables[0]:
        difference = line["minus_learned"]
        shown, p = (str(difference), f"{difference.p_less:.4f}") if difference else ("", "")
        corrected = "" if line["p_holm"] is None else f"{line['p_holm']:.4f}"
        means = f"{line['variant']:14} {line['seeds']:5} {line['bound_bits']:7.4f}"
        bits = f"{line['gate_bits']:9.1f} {line['gate_bits_cost']:7.4f}"
        print(f"{means}  {shown:28} {p:>6} {corrected:>6} {bits}")
    print("\nGates minus no gates (negative: gates gain)")
    for line in tables[1]:
        difference = line["difference"]
        print(f"{line['variant']:14} minus {line['other']:10} {difference} on {difference.seeds} seeds")
    return tables
