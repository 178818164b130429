"""From a test to a row of hypotheses.csv: correction for multiplicity, planning, verdict."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd

from sublora.analysis import inference

ALPHA = 0.05
ALL_BUDGETS = "all"
UNDECIDED = "undecided"
NOT_TESTABLE = "not testable"


@dataclasses.dataclass(frozen=True)
class Test:
    """One test before correction for multiplicity. `family` groups the tests that are corrected together."""

    hypothesis: str
    comparison: str
    metric: str
    budget: str
    unit: str
    family: str
    estimate: float = math.nan
    interval: tuple[float, float] = (math.nan, math.nan)
    p: float = math.nan
    effect_size: float = math.nan
    effect_size_kind: str = ""
    n_pairs: int = 0
    n_seeds: int = 0
    plans: tuple[np.ndarray, ...] = ()
    """Differences whose spread tells how many pairs would decide; the most demanding of them counts."""
    smallest_p: Callable[[int], float] = inference.smallest_sign_flip_p
    """Smallest p the test can reach with so many pairs."""
    planned_tests: int = 1
    """Tests that share alpha in the planning, beside those of the family."""
    lean: float = 0.0
    """Its sign says which verdict a small p supports."""
    verdict_below: str = UNDECIDED
    verdict_above: str = UNDECIDED
    caveat: str = ""
    """What a verdict rests on beyond the data; stands behind it."""
    notes: tuple[str, ...] = ()


def rows_of(tests: Sequence[Test]) -> list[dict[str, object]]:
    """The rows, p-values corrected within each family by Holm's procedure."""
    corrected = np.full(len(tests), math.nan)
    sizes = np.ones(len(tests), dtype=int)
    for family in {test.family for test in tests}:
        members = [index for index, test in enumerate(tests) if test.family == family and not math.isnan(test.p)]
        corrected[members] = inference.holm(np.array([tests[index].p for index in members]))
        sizes[members] = len(members)
    return [_row(test, float(p), int(size)) for test, p, size in zip(tests, corrected, sizes, strict=True)]


def _row(test: Test, p_holm: float, family_size: int) -> dict[str, object]:
    notes = list(test.notes)
    seeds = None
    testable = not math.isnan(test.p)
    if testable:
        seeds = _seeds_to_decide(test, ALPHA / (family_size * test.planned_tests))
        smallest = min(1.0, family_size * test.smallest_p(test.n_pairs))
        if family_size > 1:
            notes.append(f"Holm over {family_size} tests")
        if smallest > ALPHA:
            notes.append(f"these data cannot decide: smallest attainable p_holm {smallest:.3g}")
    verdict = UNDECIDED if testable else NOT_TESTABLE
    if p_holm <= ALPHA and test.lean != 0.0:
        verdict = (test.verdict_below if test.lean < 0.0 else test.verdict_above) + test.caveat
    return {
        "hypothesis": test.hypothesis,
        "comparison": test.comparison,
        "metric": test.metric,
        "budget": test.budget,
        "estimate": test.estimate,
        "unit": test.unit,
        "interval_low": test.interval[0],
        "interval_high": test.interval[1],
        "p": test.p,
        "p_holm": p_holm,
        "effect_size": test.effect_size,
        "effect_size_kind": "" if math.isnan(test.effect_size) else test.effect_size_kind,
        "n_pairs": test.n_pairs or None,
        "seeds_to_decide": seeds,
        "verdict": verdict,
        "note": "; ".join(notes),
    }


def _seeds_to_decide(test: Test, alpha: float) -> int | None:
    """Seeds, at the present number of budgets, that make the t test powerful and the exact test able to reach alpha."""
    pairs = [inference.pairs_to_decide(plan, alpha=alpha) for plan in test.plans]
    if not pairs or None in pairs:
        return None
    needed = max(number for number in pairs if number is not None)
    while test.smallest_p(needed) > alpha:
        needed += 1
    return math.ceil(needed / (test.n_pairs // test.n_seeds))


def scopes(runs: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each budget, then all together."""
    budgets = sorted(runs["budget"].unique())
    for budget in budgets:
        yield str(budget), runs[runs["budget"] == budget]
    if len(budgets) > 1:
        yield ALL_BUDGETS, runs


def family_of(name: str, budget: str) -> str:
    return f"{name}, {'all budgets together' if budget == ALL_BUDGETS else 'single budgets'}"


def shared_seeds(*deviations: pd.DataFrame, budget: str) -> tuple[str, tuple[str, ...]]:
    """(caveat of a verdict, notes) of a sign-flip test; tables of deviations with index (budget, seed).

    A test over all budgets takes those of one seed as independent, though they share base weights. Flipping whole
    seeds keeps what they share, at the price of few assignments; where that does not find the effect in each
    table, a verdict rests on the independence.
    """
    notes = []
    if len(deviations[0]) > inference.MOST_EXACT_PAIRS:
        notes.append(f"p from {inference.MONTE_CARLO_DRAWS} drawn sign assignments")
    if budget != ALL_BUDGETS:
        return "", tuple(notes)
    by_seed = [table.groupby(level="seed").sum().to_numpy() for table in deviations]
    p = max(inference.joint_sign_flip_p(values) for values in by_seed)
    notes.append(
        "pairs of one seed share base weights and are not independent: flipping whole seeds gives "
        f"p = {p:.3g} (smallest attainable {inference.smallest_sign_flip_p(len(by_seed[0])):.3g})"
    )
    return (", if budgets of one seed are independent" if p > ALPHA else ""), tuple(notes)
