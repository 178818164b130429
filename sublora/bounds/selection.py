"""Choices on val documents by their effect on the bound, and the bound's slope in the code length.

Every function assumes that the training documents have losses like the given ones, of which there may be any number.
The results are estimates for choosing and for training, never bounds.
"""

import math
from typing import NamedTuple

import numpy as np

from sublora.bounds.checks import (
    LN2,
    check_count,
    check_split,
    checked_losses,
    complexity_nats,
    rounded_up,
)
from sublora.bounds.full_sample import BETS_J, betting_headroom
from sublora.bounds.premises import BoundedLoss, Premises
from sublora.bounds.smoothing import LossRange
from sublora.bounds.subsampled import SUBSAMPLED_BETS_J, growth_optimal_play, relative_gain


def choose_smoothing(val_losses_DA: np.ndarray, loss: BoundedLoss, *, code_bits: float) -> int:
    """Return the index of the candidate with the smallest `estimated_bound`, the first one in case of ties.

    val_losses_DA: the losses that choices are based on (`BoundedLoss.judged_ranges`: the loss, or with an anchor the
    excess over the base), bits per token, shape (val documents or units, candidates of the loss). The index travels in
    the message, so the choice is charged for, whatever it is based on. ValueError for a shape that does not fit, and as
    in `sublora.bounds.inequalities`.
    """
    val_losses_DA, ranges = np.asarray(val_losses_DA, dtype=np.float64), loss.judged_ranges
    if val_losses_DA.ndim != 2 or val_losses_DA.shape[1] != len(ranges):
        raise ValueError(f"val losses of shape {val_losses_DA.shape} for {len(ranges)} candidates of the smoothing")
    estimates = [
        estimated_bound(losses_D, loss_range, code_bits=code_bits, premises=loss.judged_premises)
        for losses_D, loss_range in zip(val_losses_DA.T, ranges, strict=True)
    ]
    return int(np.argmin(estimates))


def estimated_bound(losses, loss_range: LossRange, *, code_bits: float, premises: Premises) -> float:
    """Return the expected bound by `betting`, with a draw by `betting_subsampled`, in the unit of the losses."""
    lower, upper = loss_range
    values = checked_losses(losses, lower=lower, upper=upper)
    solution = _solve(upper - values, code_bits, premises)
    return rounded_up(upper - solution.headroom, lower=lower, upper=upper)


def bound_slope_per_bit(losses, loss_range: LossRange, *, code_bits: float, premises: Premises) -> float:
    """Return d `estimated_bound` / d C, the cost of one more bit of message, in the unit of the losses per bit.

    It follows from the implicit function theorem at the bet (and stake) that attains the estimate, and is 0 where the
    bound is `upper`.
    """
    lower, upper = loss_range
    headroom_D = upper - checked_losses(losses, lower=lower, upper=upper)
    solution = _solve(headroom_D, code_bits, premises)
    if solution.headroom == 0.0:
        return 0.0
    v, bet, allowance = solution.headroom, solution.bet, solution.allowance
    fall_D = bet * headroom_D / v**2 / (1.0 + bet * (headroom_D / v - 1.0))  # -dY/dv
    if solution.stake is None:
        return float(LN2 / premises.n_units / fall_D.mean())
    gain_D = relative_gain(headroom_D, v, bet, allowance)
    factor_D = 1.0 + solution.stake * gain_D
    # d gain / d allowance = -(1 + gain) / (allowance - a) and d gain / d v = -fall / (allowance - a).
    return float(LN2 / premises.n_units * ((1.0 + gain_D) / factor_D).mean() / (fall_D / factor_D).mean())


class _Solution(NamedTuple):
    """Headroom v = upper - bound in bits, the bet and stake (None if all documents are scored) behind it, and c."""

    headroom: float
    bet: float
    stake: float | None
    allowance: float


def _solve(headroom_D: np.ndarray, code_bits: float, premises: Premises) -> _Solution:
    """Solve for the headroom under the premises, by `betting_headroom` or, with a draw, by `growth_optimal_play`."""
    check_count("n", premises.n_units)
    if premises.m_units is None or premises.delta_sample is None:
        allowance = (complexity_nats(code_bits, premises.delta) + math.log(len(BETS_J))) / premises.n_units
        headroom, bet = betting_headroom(headroom_D, allowance)
        return _Solution(headroom, bet, None, allowance)
    check_count("m", premises.m_units)
    check_split(premises.delta, premises.delta_sample)
    nats = complexity_nats(code_bits, premises.delta - premises.delta_sample)
    allowance = (nats + math.log(len(SUBSAMPLED_BETS_J))) / premises.n_units
    play = growth_optimal_play(headroom_D, allowance, -math.log(premises.delta_sample) / premises.m_units)
    return _Solution(play.headroom, play.bet, play.stake, allowance)
