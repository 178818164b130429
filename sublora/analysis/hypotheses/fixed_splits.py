"""H1: asymmetric fixed splits against the equal one."""

import dataclasses
import math
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from sublora.analysis.arms import EQUAL_RATIO, FIXED, Arm, arms_of
from sublora.analysis.hypotheses import inference
from sublora.analysis.hypotheses.rows import (
    ALL_BUDGETS,
    ALPHA,
    CHECK,
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

BPD = "empirical_bpd"
PARETO_METRICS = ("kl_divergence", BPD)
NEGLIGIBLE_GAIN_BITS = 0.01
"""A gain below this does not matter: a third of what the draw of the scored documents moves a bound of the demo."""


def asymmetry_tests(runs: pd.DataFrame) -> Iterator[HypothesisTest]:
    """Every unequal fixed split against the equal one.

    In the bound, directional, over all budgets together: these rows decide. BPD, Pareto domination, single budgets and
    the mixed model stand beside them.
    """
    arms = [arm for arm in arms_of(runs) if arm.mode == FIXED]
    equal = [arm for arm in arms if arm.ratio == EQUAL_RATIO]
    others = [arm for arm in arms if arm.ratio != EQUAL_RATIO]
    if not equal or not others:
        note = f"the grid needs fixed-{EQUAL_RATIO} and another fixed split"
        yield HypothesisTest("H1", RECORD, "asymmetric against equal splits", HEADLINE, "", "", notes=(note,))
        return
    for budget, role, rows in scopes(runs):
        for metric in (HEADLINE, BPD):
            for arm in others:
                of_metric = role if metric == HEADLINE else EXPLORATORY
                yield _paired(_Question(rows, budget, of_metric, arm, equal[0], len(others)), metric)
        for arm in others:
            yield _pareto(_Question(rows, budget, EXPLORATORY, arm, equal[0], len(others)))
    yield from _check(runs, others, equal[0])


@dataclasses.dataclass(frozen=True)
class _Question:
    """A split, what it is compared with, and the runs that answer."""

    rows: pd.DataFrame
    budget: str
    role: Role
    arm: Arm
    reference: Arm
    splits: int
    """Asymmetric splits that are compared."""

    def differences(self, metric: str) -> pd.Series:
        return differences(self.rows, metric, self.arm.allocation, self.reference.allocation)

    def family(self, name: str) -> str:
        return f"H1 {name}, {self.budget}"


def _paired(question: _Question, metric: str) -> HypothesisTest:
    """One-sided: is the split better, that is, its metric smaller? And if not: how much could it gain at most?"""
    arm, reference = question.arm, question.reference
    pairs = question.differences(metric)
    values = seed_means(pairs)
    mean = float(values.mean())
    p_no_gain = inference.sign_flip_p(values + NEGLIGIBLE_GAIN_BITS, "greater")
    several = question.budget == ALL_BUDGETS
    notes = [f"is the gain below {NEGLIGIBLE_GAIN_BITS} {UNIT}? p = {p_no_gain:.3g}"]
    if several:
        notes.insert(
            0, "the value of a seed is the mean over its budgets, which share base, initialization and batches"
        )
    return HypothesisTest(
        hypothesis="H1",
        role=question.role,
        comparison=f"{arm.allocation} - {reference.allocation}",
        metric=metric,
        budget=question.budget,
        unit=UNIT,
        family=question.family(metric),
        estimate=mean,
        interval=inference.t_interval(values),
        p=inference.sign_flip_p(values, "less"),
        p_if_independent=inference.sign_flip_p(pairs.to_numpy(), "less") if several else math.nan,
        smallest_p=inference.smallest_sign_flip_p(len(values), "less"),
        gain_at_most=-inference.lower_flip_limit(values, ALPHA / question.splits),
        gain_is_negligible=p_no_gain <= ALPHA,
        effect_size=inference.cohens_dz(values),
        effect_size_kind="Cohen dz",
        n_seeds=len(values),
        plan=_plan(values, question.splits),
        lean=min(mean, 0.0),
        verdict_below=f"{arm.allocation} beats {reference.allocation}",
        verdict_negligible=f"gains less than {NEGLIGIBLE_GAIN_BITS} {UNIT}",
        notes=tuple(notes),
    )


def _plan(values: np.ndarray, splits: int) -> SeedPlan:
    """For the verdict that the mean leans to: a gain, or none that matters."""
    if values.mean() < -NEGLIGIBLE_GAIN_BITS / 2.0:
        return SeedPlan(values, "less", splits)
    return SeedPlan(values + NEGLIGIBLE_GAIN_BITS, "greater")


def _pareto(question: _Question) -> HypothesisTest:
    """Is the split better in both measures? By intersection and union: p is the larger of the two one-sided ones."""
    arm, reference = question.arm, question.reference
    pairs = [question.differences(metric) for metric in PARETO_METRICS]
    by_seed = [seed_means(values) for values in pairs]
    dominates = int(np.all([values < 0.0 for values in pairs], axis=0).sum())
    dominated = int(np.all([values > 0.0 for values in pairs], axis=0).sum())
    means = [float(values.mean()) for values in by_seed]
    count = len(pairs[0])
    return HypothesisTest(
        hypothesis="H1",
        role=EXPLORATORY,
        comparison=f"{arm.allocation} Pareto-dominates {reference.allocation}",
        metric=" and ".join(PARETO_METRICS),
        budget=question.budget,
        unit="share of pairs",
        family=question.family("Pareto"),
        estimate=dominates / count,
        interval=inference.share_interval(dominates, count),
        p=max(inference.sign_flip_p(values, "less") for values in by_seed),
        n_seeds=len(by_seed[0]),
        notes=(
            f"mean differences {means[0]:+.4g} nats and {means[1]:+.4g} {UNIT}"
            + ("" if means[0] * means[1] > 0.0 else ": a trade-off"),
            f"dominates in {dominates}, is dominated in {dominated} of {count} pairs",
        ),
    )


def _check(runs: pd.DataFrame, others: Sequence[Arm], reference: Arm) -> Iterator[HypothesisTest]:
    """The record's comparisons once more, by a linear mixed model."""
    fixed = runs[runs["mode"] == FIXED]
    effects = allocation_effects(fixed, HEADLINE, reference.allocation)
    for arm in others:
        effect = effects.get(arm.allocation, Effect())
        yield HypothesisTest(
            hypothesis="H1",
            role=CHECK,
            comparison=f"{arm.allocation} - {reference.allocation}",
            metric=HEADLINE,
            budget=ALL_BUDGETS,
            unit=UNIT,
            family=f"H1 mixed model {arm.allocation}",
            estimate=effect.estimate,
            interval=effect.interval,
            p=effect.p,
            n_seeds=fixed["seed"].nunique(),
            notes=(
                "linear mixed model: allocation and budget fixed, an intercept for each seed random; two-sided Wald p"
                if effects
                else "the mixed model cannot be fitted to these runs",
            ),
        )


@dataclasses.dataclass(frozen=True)
class Effect:
    """Effect of one allocation against the reference; nan where it cannot be estimated."""

    estimate: float = math.nan
    interval: tuple[float, float] = (math.nan, math.nan)
    """95 %, Wald."""
    p: float = math.nan
    """Two-sided, Wald."""


def allocation_effects(runs: pd.DataFrame, metric: str, reference: str) -> dict[str, Effect]:
    """metric ~ allocation + budget with a random intercept for each seed (Laird and Ware 1982), by REML.

    One effect for each allocation but the reference; empty where the runs do not allow the fit: a single seed, or no
    spread left to estimate.
    """
    from statsmodels.regression.mixed_linear_model import MixedLM  # a second
    from statsmodels.tools.sm_exceptions import ConvergenceWarning, SingularMatrixWarning

    if runs["seed"].nunique() < 2:
        return {}
    others = sorted(set(runs["allocation"]) - {reference})
    budgets = sorted(runs["budget"].unique())[1:]
    columns = {name: runs["allocation"] == name for name in others} | {f"d{b}": runs["budget"] == b for b in budgets}
    design = pd.DataFrame({"one": 1.0} | columns, index=runs.index).astype(float)
    # Around its mean and in units of its spread: REML's optimizer knows no scale.
    centre, spread = float(runs[metric].mean()), float(runs[metric].std())
    if spread == 0.0:
        return {}
    with warnings.catch_warnings():
        # A seed's share of the variance may be estimated as zero, the end of its range: the fit is one without it.
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", SingularMatrixWarning)
        try:
            fit = MixedLM((runs[metric] - centre) / spread, design, groups=runs["seed"]).fit(reml=True)
            intervals = fit.conf_int()
        except np.linalg.LinAlgError:
            return {}
    effects = {
        name: Effect(
            spread * float(fit.fe_params[name]),
            (spread * float(intervals.loc[name, 0]), spread * float(intervals.loc[name, 1])),
            float(fit.pvalues[name]),
        )
        for name in others
    }
    return {} if any(math.isnan(effect.p) for effect in effects.values()) else effects
