"""A permutation of a hundred million positions that is computed where it is used, and nowhere stored.

Legend: T rounds, S the side of the square.
"""

import math

import torch
from torch import Tensor

ROUNDS = 4
"""Of the Feistel network: with four random functions it is a pseudorandom permutation (Luby & Rackoff, How to construct
pseudorandom permutations from pseudorandom functions, SIAM Journal on Computing 17 (1988))."""
CHUNK = {"cpu": 1 << 18, "cuda": 1 << 22}
"""Positions that are worked out at once: on a CPU what its caches hold."""


def feistel_side(count: int) -> int:
    """Side of the smallest square with at least `count` positions."""
    return math.isqrt(count - 1) + 1 if count > 0 else 0


def feistel_positions(tables_TS: Tensor, count: int, span: slice) -> Tensor:
    """Where a keyed permutation of 0 ... count - 1 takes the positions of `span`, int64.

    A Feistel network over pairs (x, y) below S = `feistel_side(count)`: y += table[x], then the two change places, a
    round for each table. What lands at `count` or beyond goes through again until it does not, which leaves a
    permutation of the others.
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
    """values[positions] of the permutation of all their positions, differentiable."""
    result: Tensor = _Permuted.apply(values, tables_TS)
    return result


class _Permuted(torch.autograd.Function):
    """CHUNK positions at a time, forwards and backwards."""

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
