"""Round w to the integers that serve the bound best: trade distortion against bits."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sublora.coding.entropy import EntropyWeights, ideal_message_bits, quantize_entropy
from sublora.coding.magnitudes import magnitude_bits
from sublora.coding.plain import check_vector

CANDIDATES_BELOW = 8
"""The number of magnitudes tried below the exact one; zero is always tried."""
MAX_ROUNDS = 50


def round_for_rate(weights: ArrayLike, step: float, distortion_per_bit: float) -> EntropyWeights:
    """Return integers that make  sum_i (w_i - k_i step)^2 / 2  +  distortion_per_bit * message bits  small.

    The search starts from the nearest integers and alternates: prices of the magnitudes follow from the symbols under
    the adaptive model (`magnitude_bits`), symbols from the prices. It ends when the objective, measured with the
    message's ideal length, no longer falls. The best symbols seen are returned, so the result is never worse than
    rounding to the nearest.

    Args:
        weights: w, shape (d,).
        step: the quantization step, snapped to the grid of `entropy`.
        distortion_per_bit: the exchange rate, in units of the distortion; 0 rounds to the nearest.

    Raises:
        ValueError: values that are not finite or not in these ranges.
    """
    weights = check_vector(weights)
    if not (np.isfinite(distortion_per_bit) and distortion_per_bit >= 0):
        raise ValueError(f"distortion_per_bit must be finite and not negative, got {distortion_per_bit}")
    # Start from the nearest integers; distortions are in units of w squared.
    best = quantize_entropy(weights, step)
    exact_d, weight = weights / best.step, best.step**2 / 2

    def objective(candidate: EntropyWeights) -> float:
        distortion = np.sum(weight * (exact_d - candidate.symbols) ** 2)
        return float(distortion + distortion_per_bit * ideal_message_bits(candidate))

    # Alternate between prices and symbols while the objective falls.
    current, best_value = best, objective(best)
    for _ in range(MAX_ROUNDS):
        magnitudes = _cheapest_magnitudes(np.abs(exact_d), weight, distortion_per_bit, current.symbols)
        current = EntropyWeights(np.where(weights < 0, -magnitudes, magnitudes), best.step_index)
        value = objective(current)
        if value >= best_value:
            break
        best, best_value = current, value
    return best


def _cheapest_magnitudes(
    exact_d: NDArray[np.float64], weight: float, distortion_per_bit: float, symbols_d: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return for each coefficient the magnitude of least cost under the prices that `symbols_d` imply.

    exact_d: |w| in steps; candidates (c) are zero, the magnitude above the exact one and those below it.
    """
    above_d = np.ceil(exact_d).astype(np.int64)
    below_c = np.arange(CANDIDATES_BELOW + 1)
    candidates_cd = np.vstack([np.maximum(above_d - below_c[:, None], 0), np.zeros_like(above_d)])
    bits_cd = magnitude_bits(candidates_cd, learned_from=symbols_d)
    cost_cd = weight * (exact_d - candidates_cd) ** 2 + distortion_per_bit * bits_cd
    return np.take_along_axis(candidates_cd, np.argmin(cost_cd, axis=0)[None], axis=0)[0]
