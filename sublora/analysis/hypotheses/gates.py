"""H2 and H3: where the learned gates end."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from sublora.analysis.arms import EQUAL_RATIO, LEARNED, UNIFORM
from sublora.analysis.hypotheses import inference
from sublora.analysis.hypotheses.rows import (
    ALL_BUDGETS,
    EXPLORATORY,
    HEADLINE,
    RECORD,
    UNIT,
    HypothesisTest,
    Role,
    SeedPlan,
    differences,
    scopes,
    seed_means,
)
from sublora.analysis.runs_table import HEAD, NESTED, gate_groups

FEWEST_LAYERS = 3
REFERENCES = (UNIFORM, f"fixed-{EQUAL_RATIO}")
"""What the bound of the learned allocation is compared with."""


def gate_tests(runs: pd.DataFrame) -> Iterator[HypothesisTest]:
    """Each gate and all jointly against 0.5; the layers' gates against depth."""
    if not (runs["mode"] == LEARNED).any():
        note = ("the grid has no learned allocation",)
        yield HypothesisTest("H2", RECORD, "learned gamma against 0.5", "gamma", "", "", notes=note)
        yield HypothesisTest("H3", RECORD, "learned gamma against depth", "gamma", "", "", notes=note)
        return
    groups = gate_groups(runs[runs["mode"] == LEARNED])
    for budget, role, rows in scopes(runs):
        learned = rows[rows["mode"] == LEARNED]
        yield _joint(learned, budget, role, groups)
        for group in groups:
            yield _gate(learned, budget, role, group, len(groups))
        for reference in REFERENCES:
            if (rows["allocation"] == reference).any():
                yield _worth(rows, budget, reference)
    layers = [group for group in groups if group != HEAD]
    if len(layers) < FEWEST_LAYERS:
        note = (f"a trend needs at least {FEWEST_LAYERS} layers, the model has {len(layers)}",)
        yield HypothesisTest("H3", RECORD, "learned gamma against depth", "gamma", "", "", notes=note)
        return
    for budget, role, rows in scopes(runs[runs["mode"] == LEARNED]):
        yield _trend_of_seeds(rows, budget, role, layers)
        yield _trend_of_means(rows, budget, layers)


def _deviations(rows: pd.DataFrame, groups: Sequence[str]) -> pd.DataFrame:
    """gamma - 1/2, one row for each (budget, seed), one column for each gate."""
    table: pd.DataFrame = rows.set_index(["budget", "seed"])[[NESTED["gamma"] + group for group in groups]]
    return table - EQUAL_RATIO


def _averaged_note(budget: str) -> tuple[str, ...]:
    return ("gamma is averaged over the budgets of a seed, which share base weights",) * (budget == ALL_BUDGETS)


def _gate(rows: pd.DataFrame, budget: str, role: Role, group: str, gates: int) -> HypothesisTest:
    pairs = _deviations(rows, [group])
    values = seed_means(pairs)[:, 0]
    low, high = inference.t_interval(values)
    name = "the head" if group == HEAD else f"layer {group}"
    return HypothesisTest(
        hypothesis="H2",
        role=role,
        comparison=f"gamma of {name} against {EQUAL_RATIO}",
        metric=NESTED["gamma"] + group,
        budget=budget,
        unit="share of d",
        family=f"H2 groups, {budget}",
        estimate=float(values.mean()) + EQUAL_RATIO,
        interval=(low + EQUAL_RATIO, high + EQUAL_RATIO),
        p=inference.sign_flip_p(values),
        p_if_independent=inference.sign_flip_p(pairs.to_numpy()[:, 0]) if budget == ALL_BUDGETS else np.nan,
        smallest_p=inference.smallest_sign_flip_p(len(values)),
        effect_size=inference.cohens_dz(values),
        effect_size_kind="Cohen dz",
        n_seeds=len(values),
        plan=SeedPlan(values, tests=gates),
        lean=float(values.mean()),
        verdict_below=f"{name} gives more to A",
        verdict_above=f"{name} gives more to B",
        notes=_averaged_note(budget),
    )


def _worth(rows: pd.DataFrame, budget: str, reference: str) -> HypothesisTest:
    """What the learned split changes in the bound."""
    values = seed_means(differences(rows, HEADLINE, LEARNED, reference))
    return HypothesisTest(
        hypothesis="H2",
        role=EXPLORATORY,
        comparison=f"{LEARNED} - {reference}",
        metric=HEADLINE,
        budget=budget,
        unit=UNIT,
        family=f"H2 worth, {budget}",
        estimate=float(values.mean()),
        interval=inference.t_interval(values),
        p=inference.sign_flip_p(values),
        effect_size=inference.cohens_dz(values),
        effect_size_kind="Cohen dz",
        n_seeds=len(values),
    )


def _joint(rows: pd.DataFrame, budget: str, role: Role, groups: Sequence[str]) -> HypothesisTest:
    pairs = _deviations(rows, groups)
    deviations_SG = seed_means(pairs)
    effects_G = np.abs(deviations_SG.mean(axis=0)) / (np.std(deviations_SG, axis=0) + np.finfo(float).tiny)
    return HypothesisTest(
        hypothesis="H2",
        role=role,
        comparison=f"gamma of all {len(groups)} groups against {EQUAL_RATIO}, jointly",
        metric="gamma",
        budget=budget,
        unit="share of d",
        family=f"H2 joint, {budget}",
        estimate=float(np.sqrt(np.mean(deviations_SG.mean(axis=0) ** 2))),
        p=inference.joint_sign_flip_p(deviations_SG),
        p_if_independent=inference.joint_sign_flip_p(pairs.to_numpy()) if budget == ALL_BUDGETS else np.nan,
        smallest_p=inference.smallest_sign_flip_p(len(deviations_SG)),
        n_seeds=len(deviations_SG),
        plan=SeedPlan(deviations_SG[:, int(np.argmax(effects_G))], tests=len(groups)),
        lean=1.0,
        verdict_above=f"some gamma differs from {EQUAL_RATIO}",
        notes=(
            "estimate: root mean square over groups of the mean deviation; signs flipped for whole seeds",
            "seeds_to_decide: for the clearest group, Bonferroni over groups",
            *_averaged_note(budget),
        ),
    )


def _trend_of_seeds(rows: pd.DataFrame, budget: str, role: Role, layers: Sequence[str]) -> HypothesisTest:
    gamma_SL = seed_means(_deviations(rows, layers))
    correlations_S = inference.depth_correlation(gamma_SL)
    correlation = float(correlations_S.mean())
    low, high = inference.t_interval(correlations_S)
    return HypothesisTest(
        hypothesis="H3",
        role=role,
        comparison=f"gamma against depth over {len(layers)} layers, seeds as replicates (Page)",
        metric="gamma",
        budget=budget,
        unit="rank correlation",
        family=f"H3 Page, {budget}",
        estimate=correlation,
        interval=(float(np.clip(low, -1.0, 1.0)), float(np.clip(high, -1.0, 1.0))),
        p=inference.page_p(gamma_SL),
        effect_size=correlation,
        effect_size_kind="mean Spearman rho",
        n_seeds=len(gamma_SL),
        plan=SeedPlan(correlations_S),
        lean=correlation,
        verdict_below="gamma falls with depth",
        verdict_above="gamma rises with depth",
        notes=(
            "the head is left out; null hypothesis: for every seed all orders of the layers are equally likely",
            "seeds_to_decide: by sign flips of the correlations of the seeds, an upper estimate",
            *_averaged_note(budget),
        ),
    )


def _trend_of_means(rows: pd.DataFrame, budget: str, layers: Sequence[str]) -> HypothesisTest:
    gamma_SL = seed_means(_deviations(rows, layers))
    mean_1L = gamma_SL.mean(axis=0, keepdims=True)
    correlation = float(inference.depth_correlation(mean_1L)[0])
    return HypothesisTest(
        hypothesis="H3",
        role=EXPLORATORY,
        comparison=f"mean gamma against depth over {len(layers)} layers (Spearman)",
        metric="gamma",
        budget=budget,
        unit="rank correlation",
        family=f"H3 Spearman, {budget}",
        estimate=correlation,
        p=inference.page_p(mean_1L),
        effect_size=correlation,
        effect_size_kind="Spearman rho",
        n_seeds=len(gamma_SL),
        notes=("means over seeds first, then ranks: more seeds sharpen the means, not the smallest attainable p",),
    )
