"""From a test to a row of hypotheses.csv: correction for multiplicity, planning, verdict."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import pandas as pd

from sublora.analysis.hypotheses import inference

ALPHA = 0.05
ALL_BUDGETS = "all"
UNDECIDED = "undecided"
NOT_TESTABLE = "not testable"

HEADLINE, UNIT = "bound_value", "bits/token"
"""The metric of record and its unit."""

Role = Literal["record", "check", "exploratory"]
RECORD: Role = "record"
"""The tests that decide."""
CHECK: Role = "check"
"""The same question under other assumptions; decides nothing."""
EXPLORATORY: Role = "exploratory"
"""A question that nobody asked beforehand; decides nothing."""


@dataclasses.dataclass(frozen=True)
class SeedPlan:
    """What tells how many seeds would decide: differences, one per seed, and the test that they are planned for."""

    values: np.ndarray
    alternative: inference.Alternative = "two-sided"
    tests: int = 1
    """Tests that share alpha."""

    @property
    def seeds(self) -> int | None:
        return inference.values_to_decide(self.values, alpha=ALPHA / self.tests, alternative=self.alternative)


@dataclasses.dataclass(frozen=True)
class HypothesisTest:
    """One test before correction for multiplicity. `family` groups the tests that are corrected together."""

    hypothesis: str
    role: Role
    comparison: str
    metric: str
    budget: str
    unit: str
    family: str = ""
    estimate: float = math.nan
    interval: tuple[float, float] = (math.nan, math.nan)
    p: float = math.nan
    """Whole seeds are what is flipped or ordered."""
    p_if_independent: float = math.nan
    """The same test of all (budget, seed) pairs; it assumes that budgets are independent given the seed."""
    smallest_p: float = 0.0
    """What the test can reach at best with these seeds."""
    gain_at_most: float = math.nan
    """Limit of what a split gains, infinite where seeds are too few; those of a family hold together at 95 %."""
    gain_is_negligible: bool = False
    effect_size: float = math.nan
    effect_size_kind: str = ""
    n_seeds: int = 0
    plan: SeedPlan | None = None
    lean: float = 0.0
    """Its sign says which verdict a small p supports."""
    verdict_below: str = UNDECIDED
    verdict_above: str = UNDECIDED
    verdict_negligible: str = UNDECIDED
    notes: tuple[str, ...] = ()


def rows_of(tests: Sequence[HypothesisTest]) -> list[dict[str, object]]:
    """The rows, p-values corrected within each family by Holm's procedure."""
    corrected_2T = np.full((2, len(tests)), math.nan)
    sizes = np.ones(len(tests), dtype=int)
    for family in {test.family for test in tests}:
        members = [index for index, test in enumerate(tests) if test.family == family and not math.isnan(test.p)]
        sizes[members] = len(members)
        if members:
            corrected_2T[0, members] = inference.holm(np.array([tests[index].p for index in members]))
        pairs = [index for index in members if not math.isnan(tests[index].p_if_independent)]
        if pairs:
            corrected_2T[1, pairs] = inference.holm(np.array([tests[index].p_if_independent for index in pairs]))
    return [
        _row(test, float(p), float(p_pairs), int(size))
        for test, p, p_pairs, size in zip(tests, *corrected_2T, sizes, strict=True)
    ]


def _row(test: HypothesisTest, p_holm: float, p_holm_if_independent: float, family_size: int) -> dict[str, object]:
    notes = list(test.notes)
    testable = not math.isnan(test.p)
    if testable and family_size > 1:
        notes.append(f"Holm over {family_size} tests")
    if test.role == RECORD and testable and family_size * test.smallest_p > ALPHA:
        smallest = min(1.0, family_size * test.smallest_p)
        notes.append(f"so few seeds cannot decide: smallest attainable p_holm {smallest:.3g}")
    return {
        "hypothesis": test.hypothesis,
        "role": test.role,
        "comparison": test.comparison,
        "metric": test.metric,
        "budget": test.budget,
        "estimate": test.estimate,
        "unit": test.unit,
        "interval_low": test.interval[0],
        "interval_high": test.interval[1],
        "p": test.p,
        "p_holm": p_holm,
        "p_holm_if_budgets_independent": p_holm_if_independent,
        "gain_at_most": test.gain_at_most if math.isfinite(test.gain_at_most) else math.nan,
        "effect_size": test.effect_size,
        "effect_size_kind": "" if math.isnan(test.effect_size) else test.effect_size_kind,
        "n_seeds": test.n_seeds or None,
        "seeds_to_decide": test.plan.seeds if test.plan is not None else None,
        "verdict": _verdict(test, p_holm),
        "note": "; ".join(notes),
    }


def _verdict(test: HypothesisTest, p_holm: float) -> str:
    if math.isnan(test.p):
        return NOT_TESTABLE
    if test.role != RECORD:
        return test.role
    if p_holm <= ALPHA and test.lean != 0.0:
        return test.verdict_below if test.lean < 0.0 else test.verdict_above
    return test.verdict_negligible if test.gain_is_negligible else UNDECIDED


def scopes(runs: pd.DataFrame) -> Iterator[tuple[str, Role, pd.DataFrame]]:
    """All budgets together, which is what decides, then each for itself; (budget, role, its runs)."""
    budgets = sorted(runs["budget"].unique())
    if len(budgets) == 1:
        yield str(budgets[0]), RECORD, runs
        return
    yield ALL_BUDGETS, RECORD, runs
    for budget in budgets:
        yield str(budget), EXPLORATORY, runs[runs["budget"] == budget]


def differences(rows: pd.DataFrame, metric: str, allocation: str, reference: str) -> pd.Series:
    """metric of one allocation minus that of the other, for every (budget, seed)."""
    values = rows.set_index(["budget", "seed"])
    first, second = (values.loc[values["allocation"] == name, metric] for name in (allocation, reference))
    return first - second


def seed_means(table: pd.DataFrame | pd.Series) -> np.ndarray:
    """Means over the budgets of each seed, whose index is (budget, seed): what budgets of a seed share counts once."""
    means: np.ndarray = table.groupby(level="seed").mean().to_numpy()
    return means
