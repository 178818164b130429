"""H1: asymmetric fixed splits against the equal one."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from sublora.analysis import inference
from sublora.analysis.arms import EQUAL_RATIO, Arm, arms_of
from sublora.analysis.hypothesis_rows import Test, family_of, scopes, shared_seeds

METRICS = (("bound_value", "bits/token"), ("empirical_bpd", "bits/token"))
PARETO_METRICS = ("kl_divergence", "empirical_bpd")


def asymmetry_tests(runs: pd.DataFrame) -> Iterator[Test]:
    """Paired tests and Pareto domination of every unequal fixed split against the equal one."""
    arms = arms_of(runs)
    equal = [arm for arm in arms if arm.ratio == EQUAL_RATIO]
    others = [arm for arm in arms if arm.ratio is not None and arm.ratio != EQUAL_RATIO]
    if not equal or not others:
        note = f"the grid needs fixed-{EQUAL_RATIO} and another fixed split"
        yield Test("H1", "asymmetric against equal splits", "bound_value", "", "", "H1", notes=(note,))
        return
    for budget, rows in scopes(runs):
        for metric, unit in METRICS:
            for arm in others:
                yield _paired(rows, budget, metric, unit, arm, equal[0])
        for arm in others:
            yield _pareto(rows, budget, arm, equal[0])


def _differences(rows: pd.DataFrame, metric: str, arm: Arm, reference: Arm) -> pd.Series:
    """arm - reference for every (budget, seed)."""
    values = rows.set_index(["budget", "seed"])
    return (
        values.loc[values["allocation"] == arm.allocation, metric]
        - values.loc[values["allocation"] == reference.allocation, metric]
    )


def _paired(rows: pd.DataFrame, budget: str, metric: str, unit: str, arm: Arm, reference: Arm) -> Test:
    differences = _differences(rows, metric, arm, reference)
    values = differences.to_numpy()
    caveat, notes = shared_seeds(differences.to_frame(), budget=budget)
    return Test(
        hypothesis="H1",
        comparison=f"{arm.allocation} - {reference.allocation}",
        metric=metric,
        budget=budget,
        unit=unit,
        family=family_of(f"H1 {metric}", budget),
        estimate=float(values.mean()),
        interval=inference.t_interval(values),
        p=inference.sign_flip_p(values),
        effect_size=inference.cohens_dz(values),
        effect_size_kind="Cohen's dz",
        n_pairs=len(values),
        n_seeds=rows["seed"].nunique(),
        plans=(values,),
        lean=float(values.mean()),
        verdict_below=f"{arm.allocation} beats {reference.allocation}",
        verdict_above=f"{arm.allocation} is worse than {reference.allocation}",
        caveat=caveat,
        notes=notes,
    )


def _pareto(rows: pd.DataFrame, budget: str, arm: Arm, reference: Arm) -> Test:
    """Is the arm better in both measures? By intersection and union: p is the larger of the two one-sided ones.

    Twice that, for the better of the two directions, makes the test two-sided.
    """
    differences = {metric: _differences(rows, metric, arm, reference) for metric in PARETO_METRICS}
    values = [series.to_numpy() for series in differences.values()]
    below, above = (max(inference.sign_flip_p(v, side) for v in values) for side in ("less", "greater"))
    dominates = int(np.all([v < 0.0 for v in values], axis=0).sum())
    dominated = int(np.all([v > 0.0 for v in values], axis=0).sum())
    means = [float(v.mean()) for v in values]
    caveat, notes = shared_seeds(*(series.to_frame() for series in differences.values()), budget=budget)
    pairs = len(values[0])
    aligned = means[0] * means[1] > 0.0
    return Test(
        hypothesis="H1",
        comparison=f"{arm.allocation} Pareto-dominates {reference.allocation}",
        metric=" and ".join(PARETO_METRICS),
        budget=budget,
        unit="share of pairs",
        family=family_of("H1 Pareto", budget),
        estimate=dominates / pairs,
        interval=inference.share_interval(dominates, pairs),
        p=min(1.0, 2.0 * min(below, above)),
        n_pairs=pairs,
        n_seeds=rows["seed"].nunique(),
        plans=tuple(values) if aligned else (),
        verdict_below=f"{arm.allocation} is dominated by {reference.allocation}",
        lean=above - below,
        verdict_above=f"{arm.allocation} dominates {reference.allocation}",
        caveat=caveat,
        notes=(
            f"mean differences {means[0]:+.4g} nats and {means[1]:+.4g} bits/token"
            + ("" if aligned else ": a trade-off"),
            f"dominates in {dominates}, is dominated in {dominated} of {pairs} pairs",
            *notes,
        ),
    )
