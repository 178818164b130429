"""The effect of an allocation by a linear mixed model, a check on the sign-flip tests."""

import dataclasses
import math
import warnings

import numpy as np
import pandas as pd


@dataclasses.dataclass(frozen=True)
class Effect:
    """Of one allocation against the reference; nan where there is none."""

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
