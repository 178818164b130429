"""The experiment's hypotheses, tested: one row per test, with interval, p, effect size, planning and verdict.

H1  asymmetric fixed splits beat the equal one in the bound;
H2  learned gates leave 0.5;
H3  learned gates follow depth.

Only rows of role "record" decide: over all budgets together, H1 in the bound and directional. Their p flips whole
seeds, since the budgets of one seed share base weights, initialization and batches. Checks ask the same under other
assumptions; everything else is exploratory.
"""

import pandas as pd

from sublora.analysis.hypotheses.fixed_splits import asymmetry_tests
from sublora.analysis.hypotheses.gates import gate_tests
from sublora.analysis.hypotheses.rows import rows_of


def hypothesis_table(runs: pd.DataFrame) -> pd.DataFrame:
    """All tests that a runs table allows, as hypotheses.csv holds them.

    Columns: hypothesis, role (record, check, exploratory), comparison, metric, budget (a number or "all"), estimate,
    unit, interval_low and interval_high (95 %), p, p_holm, p_holm_if_budgets_independent (of all pairs of budget and
    seed), gain_at_most (H1: bits per token that the split gains at most; the limits of its family hold together with
    95 % confidence), effect_size, effect_size_kind, n_seeds, seeds_to_decide (seeds with which such an effect would be
    decided in 80 % of experiments, as spread as observed), verdict, note. What a test does not have is empty; a
    hypothesis that the grid cannot speak of has one row, "not testable".
    """
    table = pd.DataFrame(rows_of([*asymmetry_tests(runs), *gate_tests(runs)]))
    return table.astype({"n_seeds": "Int64", "seeds_to_decide": "Int64"})
