"""LoRA-XS: of every adapter B A only an r x r core R is trained, between singular vectors of the frozen weight.

    W + (alpha / r) B A with B = F R, F = U_r S_r, A = V_r',  W = U S V'

(Balazy et al., LoRA-XS: Low-Rank Adaptation with Extremely Small Number of Parameters, 2024, arXiv 2405.17604). A and F
follow from the base. They are rounded to a grid that is far coarser than the errors of a decomposition in float64, so
that machines with other linear algebra name the same arrays, unless singular values coincide.

Shape legend: C entries of all cores, D entries of theta, O outputs, I inputs, R rank.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sublora.subspace.parameters import ParameterSpace

CORE_ROLE = "core"
GRID_BITS = 14
"""Singular vectors are rounded to multiples of 2^-14, F to that of its scale."""


@dataclasses.dataclass(frozen=True, eq=False)
class Lift:
    """The fixed linear map from the trained parameters to what they move: from the cores (C) to theta (D)."""

    space: ParameterSpace
    """The cores."""
    rows: tuple[slice, ...]
    """Where the B of each core lies in theta."""
    arrays: tuple[NDArray[np.float32], ...]
    """F (O x R) of each core."""
    size: int
    """D."""

    def apply(self, arrays: tuple[Tensor, ...], moved_C: Tensor) -> Tensor:
        """Return what cores add to theta (D): F R in every B, 0 in every A. `arrays` are on the device of the cores."""
        pieces, end = [], 0
        for core, rows, factor_OR in zip(self.space.parameters, self.rows, arrays, strict=True):
            pieces.append(moved_C.new_zeros(rows.start - end))
            pieces.append((factor_OR @ moved_C[core.start : core.stop].view(core.shape)).flatten())
            end = rows.stop
        return torch.cat([*pieces, moved_C.new_zeros(self.size - end)])


def cores_of(space: ParameterSpace, weights_OI: Mapping[str, NDArray[np.float64]]) -> tuple[Lift, NDArray[np.float32]]:
    """Return the lift of the cores of all adapters, and theta (D) at the start: A = V_r', B = 0.

    Args:
        space: of the LoRA matrices, every A before every B.
        weights_OI: the frozen weight of each adapter by the name of its B.

    Raises:
        ValueError: the rank exceeds that of a weight, or a weight is not finite.
    """
    start_D = np.zeros(space.size, dtype=np.float32)
    downs = {p.name.removesuffix("A"): p for p in space.parameters if p.role == "A"}
    described, rows, arrays = [], [], []
    for up in (p for p in space.parameters if p.role == "B"):
        down, rank = downs[up.name.removesuffix("B")], up.shape[1]
        factor_OR, vectors_RI = singular_factors(weights_OI[up.name], rank)
        start_D[down.start : down.stop] = vectors_RI.ravel()
        described.append((f"{up.name.removesuffix('lora_B')}core", (rank, rank), up.group, CORE_ROLE))
        rows.append(slice(up.start, up.stop))
        arrays.append(factor_OR)
    return Lift(ParameterSpace.of(described), tuple(rows), tuple(arrays), space.size), start_D


def singular_factors(weight_OI: NDArray[np.float64], rank: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return U_r S_r (O x R) and V_r' (R x I) of the largest singular values, on the grid, with fixed signs.

    ValueError if the rank exceeds that of the weight, or it is not finite.
    """
    if rank > min(weight_OI.shape):
        raise ValueError(f"rank {rank} exceeds that of a weight of shape {weight_OI.shape}; lower lora.rank")
    if not np.isfinite(weight_OI).all():
        raise ValueError("a weight of the base is not finite")
    left_OR, values_R, right_RI = np.linalg.svd(weight_OI.astype(np.float64), full_matrices=False)
    left_OR, values_R, right_RI = left_OR[:, :rank], values_R[:rank], right_RI[:rank]
    # A pair of singular vectors has two signs: the largest entry of the left one is positive.
    largest_R = np.abs(left_OR).argmax(axis=0)
    signs_R = np.where(left_OR[largest_R, np.arange(rank)] < 0.0, -1.0, 1.0)
    scale = 2.0 ** np.ceil(np.log2(max(float(values_R[0]), 2.0**-100)))
    return _on_grid(left_OR * (signs_R * values_R), scale), _on_grid(right_RI * signs_R[:, None], 1.0)


def _on_grid(values: NDArray[np.float64], scale: float) -> NDArray[np.float32]:
    """Return the nearest multiples of scale 2^-14; -0.0 becomes 0.0."""
    step = scale * 2.0**-GRID_BITS
    return (np.rint(values / step) * step + 0.0).astype(np.float32)
