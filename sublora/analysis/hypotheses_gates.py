"""H2 and H3: where the learned gates end."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from sublora.analysis import inference
from sublora.analysis.arms import EQUAL_RATIO
from sublora.analysis.hypothesis_rows import ALL_BUDGETS, Test, family_of, scopes, shared_seeds
from sublora.analysis.runs_table import HEAD, NESTED, gate_groups

FEWEST_LAYERS = 3


def gate_tests(runs: pd.DataFrame) -> Iterator[Test]:
    """Each gate and all jointly against 0.5; the layers' gates against depth."""
    learned = runs[runs["mode"] == "learned"]
    if learned.empty:
        note = ("the grid has no learned allocation",)
        yield Test("H2", "learned gamma against 0.5", "gamma", "", "", "H2", notes=note)
        yield Test("H3", "learned gamma against depth", "gamma", "", "", "H3", notes=note)
        return
    groups = gate_groups(learned)
    for budget, rows in scopes(learned):
        yield _joint(rows, budget, groups)
        for group in groups:
            yield _gate(rows, budget, group)
    layers = [group for group in groups if group != HEAD]
    if len(layers) < FEWEST_LAYERS:
        note = (f"a trend needs at least {FEWEST_LAYERS} layers, the model has {len(layers)}",)
        yield Test("H3", "learned gamma against depth", "gamma", "", "", "H3", notes=note)
        return
    for budget, rows in scopes(learned):
        yield _trend_of_seeds(rows, budget, layers)
        yield _trend_of_means(rows, budget, layers)


def _gamma_by_seed(rows: pd.DataFrame, groups: Sequence[str]) -> np.ndarray:
    """S x G, means over the budgets of a seed: what these share is then counted once."""
    return rows.groupby("seed")[[NESTED["gamma"] + group for group in groups]].mean().to_numpy()


def _gate(rows: pd.DataFrame, budget: str, group: str) -> Test:
    deviations = rows.set_index(["budget", "seed"])[NESTED["gamma"] + group] - EQUAL_RATIO
    values = deviations.to_numpy()
    caveat, notes = shared_seeds(deviations.to_frame(), budget=budget)
    low, high = inference.t_interval(values)
    name = "the head" if group == HEAD else f"layer {group}"
    return Test(
        hypothesis="H2",
        comparison=f"gamma of {name} against {EQUAL_RATIO}",
        metric=NESTED["gamma"] + group,
        budget=budget,
        unit="share of d",
        family=family_of("H2 groups", budget),
        estimate=float(values.mean()) + EQUAL_RATIO,
        interval=(low + EQUAL_RATIO, high + EQUAL_RATIO),
        p=inference.sign_flip_p(values),
        effect_size=inference.cohens_dz(values),
        effect_size_kind="Cohen's dz",
        n_pairs=len(values),
        n_seeds=rows["seed"].nunique(),
        plans=(values,),
        verdict_below=f"{name} gives more to A",
        verdict_above=f"{name} gives more to B",
        lean=float(values.mean()),
        caveat=caveat,
        notes=notes,
    )


def _joint(rows: pd.DataFrame, budget: str, groups: Sequence[str]) -> Test:
    table = rows.set_index(["budget", "seed"])[[NESTED["gamma"] + group for group in groups]] - EQUAL_RATIO
    deviations_RG = table.to_numpy()
    caveat, notes = shared_seeds(table, budget=budget)
    effects_G = np.abs(deviations_RG.mean(axis=0)) / (np.std(deviations_RG, axis=0) + np.finfo(float).tiny)
    return Test(
        hypothesis="H2",
        comparison=f"gamma of all {len(groups)} groups against {EQUAL_RATIO}, jointly",
        metric="gamma",
        budget=budget,
        unit="share of d",
        family=family_of("H2 joint", budget),
        estimate=float(np.sqrt(np.mean(deviations_RG.mean(axis=0) ** 2))),
        p=inference.joint_sign_flip_p(deviations_RG),
        n_pairs=len(deviations_RG),
        n_seeds=rows["seed"].nunique(),
        plans=(deviations_RG[:, int(np.argmax(effects_G))],),
        planned_tests=len(groups),
        lean=1.0,
        verdict_above=f"some gamma differs from {EQUAL_RATIO}",
        caveat=caveat,
        notes=(
            "estimate: root mean square over groups of the mean deviation; signs flipped for whole runs",
            "seeds_to_decide: for the clearest group, Bonferroni over groups",
            *notes,
        ),
    )


def _trend_of_seeds(rows: pd.DataFrame, budget: str, layers: Sequence[str]) -> Test:
    gamma_SL = _gamma_by_seed(rows, layers)
    correlations_S = inference.depth_correlation(gamma_SL)
    correlation = float(correlations_S.mean())
    low, high = inference.t_interval(correlations_S)
    return Test(
        hypothesis="H3",
        comparison=f"gamma against depth over {len(layers)} layers, seeds as replicates (Page)",
        metric="gamma",
        budget=budget,
        unit="rank correlation",
        family=family_of("H3 Page", budget),
        estimate=correlation,
        interval=(float(np.clip(low, -1.0, 1.0)), float(np.clip(high, -1.0, 1.0))),
        p=inference.page_p(gamma_SL),
        effect_size=correlation,
        effect_size_kind="mean Spearman rho",
        n_pairs=len(gamma_SL),
        n_seeds=len(gamma_SL),
        plans=(correlations_S,),
        smallest_p=lambda seeds: min(1.0, 2.0 * math.exp(-seeds * math.lgamma(len(layers) + 1))),
        lean=correlation,
        verdict_below="gamma falls with depth",
        verdict_above="gamma rises with depth",
        notes=(
            "the head is left out; null hypothesis: for every seed all orders of the layers are equally likely",
            *(("gamma is averaged over the budgets of a seed, which share base weights",) * (budget == ALL_BUDGETS)),
            *_drawn_note(layers),
        ),
    )


def _trend_of_means(rows: pd.DataFrame, budget: str, layers: Sequence[str]) -> Test:
    gamma_SL = _gamma_by_seed(rows, layers)
    mean_1L = gamma_SL.mean(axis=0, keepdims=True)
    correlation = float(inference.depth_correlation(mean_1L)[0])
    return Test(
        hypothesis="H3",
        comparison=f"mean gamma against depth over {len(layers)} layers (Spearman)",
        metric="gamma",
        budget=budget,
        unit="rank correlation",
        family=family_of("H3 Spearman", budget),
        estimate=correlation,
        p=inference.page_p(mean_1L),
        effect_size=correlation,
        effect_size_kind="Spearman rho",
        n_pairs=len(gamma_SL),
        n_seeds=len(gamma_SL),
        smallest_p=lambda seeds: 2.0 / math.factorial(len(layers)),
        lean=correlation,
        verdict_below="gamma falls with depth",
        verdict_above="gamma rises with depth",
        notes=(
            "means over seeds first, then ranks: more seeds sharpen the means, not the smallest attainable p",
            *_drawn_note(layers),
        ),
    )


def _drawn_note(layers: Sequence[str]) -> tuple[str, ...]:
    return (f"p from {inference.MONTE_CARLO_DRAWS} drawn orders",) * (len(layers) > inference.MOST_EXACT_LAYERS)
