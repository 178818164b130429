"""A permutation of a hundred million positions that is computed where it is needed and never stored.

Legend: T rounds, S the side of the square.
"""

import math

import torch
from torch import Tensor

ROUNDS = 4
"""Rounds of the Feistel network. With four random functions it is a pseudorandom permutation (Luby & Rackoff, How to
construct pseudorandom permutations from pseudorandom functions, SIAM Journal on Computing 17 (1988))."""
CHUNK = {"cpu": 1 << 18, "cuda": 1 << 22}
"""Positions that are computed at once; on a CPU as many as fit into its caches."""


def feistel_side(count: int) -> int:
    """Return the side of the smallest square with at least `count` positions."""
    return math.isqrt(count - 1) + 1 if count > 0 else 0


def feistel_positions(tables_TS: Tensor, count: int, span: slice) -> Tensor:
    """Return where a keyed permutation of 0 ... count - 1 takes the positions of `span`, int64.

    It is a Feistel network over pairs (x, y) below S = `feistel_side(count)`: in one round per table, y += table[x],
    then x and y swap places. A position that lands at `count` or beyond goes through the network again until it does
    not, which leaves a permutation of the others.
    """
    side = tables_TS.shape[1]

    def once(positions: Tensor) -> Tensor:
        x, y = positions // side, positions % side
        for table_S in tables_TS:
            y = y + table_S.take(x)
            x, y = y.sub_(side * (y >= side)), x
        return x * side + y

    positions = once(torch.arange(span.start, span.stop, device=tables_TS.device))
    while len(beyond := (positions >= count).nonzero()[:, 0]):
        positions[beyond] = once(positions[beyond])
    return positions


def permuted(values: Tensor, tables_TS: Tensor) -> Tensor:
    """Return values[positions] for the permutation of all their positions, differentiable in the values."""
    result: Tensor = _Permuted.apply(values, tables_TS)
    return result


class _Permuted(torch.autograd.Function):
    """Permutes CHUNK positions at a time, forward and backward."""

    @staticmethod
    def forward(ctx, values, tables_TS):  # noqa: ANN001, ANN205
        ctx.save_for_backward(tables_TS)
        result = torch.empty_like(values)
        for span in _spans(values):
            result[span] = values[feistel_positions(tables_TS, len(values), span)]
        return result

    @staticmethod
    def backward(ctx, grad):  # noqa: ANN001, ANN205
        (tables_TS,) = ctx.saved_tensors
        restored = torch.empty_like(grad)
        for span in _spans(grad):
            restored[feistel_positions(tables_TS, len(grad), span)] = grad[span]
        return restored, None


def _spans(values: Tensor) -> list[slice]:
    count, chunk = len(values), CHUNK[values.device.type]
    return [slice(start, min(start + chunk, count)) for start in range(0, count, chunk)]
