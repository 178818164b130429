"""Rounding w to the integers that serve the bound best: less distortion against fewer bits."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sublora.coding.entropy import (
    EntropyWeights,
    ideal_message_bits,
    learns_apart,
    quantize_entropy,
    step_of,
)
from sublora.coding.magnitudes import magnitude_bits
from sublora.coding.plain import check_vector

CANDIDATES_BELOW = 8
"""Magnitudes tried below the exact one; zero is tried always."""
MAX_ROUNDS = 50


def round_for_rate(
    weights: ArrayLike,
    steps: float | Sequence[float],
    distortion_per_bit: float,
    *,
    curvature: ArrayLike | None = None,
    segment_lengths: Sequence[int] | None = None,
) -> EntropyWeights:
    """Integers that make  sum_i curvature_i (w_i - k_i step)^2 / 2  +  distortion_per_bit * message bits  small.

    Starts from the nearest integers and alternates: the prices of the magnitudes follow from the symbols (the
    model's own, `magnitude_bits`), the symbols from the prices, until the objective, measured with the message's
    ideal length, no longer falls. The best symbols seen are returned, so the result is never worse than rounding to
    the nearest.

    Args:
        weights: w, shape (d,).
        steps: one for all segments or one for each; snapped to the grid of `entropy`.
        distortion_per_bit: the exchange rate, in units of the distortion; 0 rounds to the nearest.
        curvature: second derivatives of the loss by each w_i, shape (d,), >= 0; None: all 1.
        segment_lengths: coefficients of each segment; None: a single segment.

    Raises:
        ValueError: values that are not finite or not in these ranges.
    """
    weights = check_vector(weights)
    curvature = np.ones_like(weights) if curvature is None else check_vector(curvature)
    if curvature.shape != weights.shape or curvature.min() < 0:
        raise ValueError(f"curvature must be non-negative, of shape {weights.shape}")
    if not (np.isfinite(distortion_per_bit) and distortion_per_bit >= 0):
        raise ValueError(f"distortion_per_bit must be finite and not negative, got {distortion_per_bit}")
    best = quantize_entropy(weights, steps, segment_lengths)
    step_d = np.repeat([step_of(index) for index in best.step_indices], best.segment_lengths)
    weight_d = curvature * step_d**2 / 2

    def objective(candidate: EntropyWeights) -> float:
        distortion = np.sum(weight_d * (weights / step_d - candidate.symbols) ** 2)
        return float(distortion + distortion_per_bit * ideal_message_bits(candidate))

    current, best_value = best, objective(best)
    for _ in range(MAX_ROUNDS):
        magnitudes = _cheapest_magnitudes(np.abs(weights) / step_d, weight_d, distortion_per_bit, current)
        symbols = np.where(weights < 0, -magnitudes, magnitudes)
        current = EntropyWeights(symbols, best.step_indices, best.segment_lengths)
        value = objective(current)
        if value >= best_value:
            break
        best, best_value = current, value
    return best


def _cheapest_magnitudes(
    exact_d: NDArray[np.float64], weight_d: NDArray[np.float64], distortion_per_bit: float, current: EntropyWeights
) -> NDArray[np.int64]:
    """For each coefficient the magnitude of least cost under the prices that `current` implies.

    exact_d: |w| in steps; candidates (c) are zero, the magnitude above the exact one and those below it.
    """
    above_d = np.ceil(exact_d).astype(np.int64)
    below_c = np.arange(CANDIDATES_BELOW + 1)
    candidates_cd = np.vstack([np.maximum(above_d - below_c[:, None], 0), np.zeros_like(above_d)])
    bits_cd = np.empty(candidates_cd.shape)
    groups = current.segments() if learns_apart(current) else [current.symbols]
    start = 0
    for group in groups:
        part = slice(start, start + len(group))
        bits_cd[:, part] = magnitude_bits(candidates_cd[:, part], learned_from=group)
        start += len(group)
    cost_cd = weight_d * (exact_d - candidates_cd) ** 2 + distortion_per_bit * bits_cd
    return np.take_along_axis(candidates_cd, np.argmin(cost_cd, axis=0)[None], axis=0)[0]
