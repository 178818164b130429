"""The experiment's hypotheses, tested: one row per test, with interval, p, effect size, planning and verdict.

H1  asymmetric fixed splits beat the equal one, in the bound, in BPD, and in both BPD and KL (Pareto domination);
H2  learned gates leave 0.5;
H3  learned gates follow depth.

Budgets are tested alone and, where there are several, together ("all"): three seeds alone can never reach p < 0.25
in a sign-flip test. A verdict other than "undecided" needs p_holm <= 0.05.
"""

import pandas as pd

from sublora.analysis.hypotheses_fixed import asymmetry_tests
from sublora.analysis.hypotheses_gates import gate_tests
from sublora.analysis.hypothesis_rows import rows_of


def hypothesis_table(runs: pd.DataFrame) -> pd.DataFrame:
    """All tests that a runs table allows, as hypotheses.csv holds them.

    Columns: hypothesis, comparison, metric, budget (a number or "all"), estimate, unit, interval_low and
    interval_high (95 %), p, p_holm, effect_size, effect_size_kind, n_pairs, seeds_to_decide (seeds with which such
    an effect would be found in 80 % of experiments, as spread as observed), verdict, note. What a test does not
    have is empty; a hypothesis that the grid cannot speak of has one row, "not testable".
    """
    table = pd.DataFrame(rows_of([*asymmetry_tests(runs), *gate_tests(runs)]))
    return table.astype({"n_pairs": "Int64", "seeds_to_decide": "Int64"})
