"""LoRA (Hu et al. 2022): W x + (alpha / rank) B A x on chosen matrices.

If B does not start from zero the product of the initial matrices is subtracted: W x + (alpha / rank) (B A - B0 A0) x.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sublora import random
from sublora.nn.layout import Layout


def initial_theta(layout: Layout, seed: int, init: str) -> np.ndarray:
    """Initialization, float32 (D): A uniform within 1 / sqrt(inputs); B zero (zero_b) or drawn like A (both_random).

    With entries of one variance the gradients of A and B have the same mean square over the draws, whatever the
    gradient G of the adapted matrix: E |B' G|^2 = rank Var |G|^2 = E |G A'|^2.
    """
    theta = np.zeros(layout.size, dtype=np.float32)
    inputs = {(entry.group, entry.target): entry.shape[1] for entry in layout.entries if entry.factor == "A"}
    for entry in layout.entries:
        if entry.factor == "B" and init == "zero_b":
            continue
        limit = 1.0 / math.sqrt(inputs[entry.group, entry.target])
        name = (entry.group, entry.target, "B") if entry.factor == "B" else (entry.group, entry.target)
        stream = random.generator(seed, "lora init", *name)
        theta[entry.start : entry.stop] = stream.uniform(-limit, limit, entry.stop - entry.start)
    return theta


Pair = tuple[Tensor, Tensor]
"""(down, up) of one target, down R x C and up O x R: the adapted layer is W x + up down x."""


class Adapters:
    """The LoRA matrices cut out of theta."""

    def __init__(
        self, layout: Layout, theta_D: Tensor, *, scale: float, dtype: torch.dtype, origin_D: Tensor | None = None
    ) -> None:
        """`scale` is alpha / rank; the matrices are used in `dtype`.

        `origin_D`: the initial theta, if the product of its matrices is to be subtracted.
        """
        self.scale = scale
        self._matrices = _cut(layout, theta_D.to(dtype))
        self._origin, self._moved = {}, {}
        if origin_D is not None:
            self._origin, self._moved = _cut(layout, origin_D.to(dtype)), _cut(layout, (theta_D - origin_D).to(dtype))

    def matrix(self, group: str, target: str, factor: str) -> Tensor:
        return self._matrices[group, target, factor]

    def pair(self, group: str, target: str) -> Pair | None:
        """The factors of a target's update, or None where there is no adapter.

        Without an origin they are scale A and B. With one, B A - B0 A0 = B (A - A0) + (B - B0) A0 makes an adapter of
        twice the rank, which is exactly zero at the start.
        """
        a, b = (group, target, "A"), (group, target, "B")
        if a not in self._matrices:
            return None
        if not self._origin:
            return self._matrices[a] * self.scale, self._matrices[b]
        down = torch.cat([self._moved[a], self._origin[a]]) * self.scale
        return down, torch.cat([self._matrices[b], self._moved[b]], 1)


def _cut(layout: Layout, theta_D: Tensor) -> dict[tuple[str, str, str], Tensor]:
    """Every matrix by group, target and factor. One split, so that its gradient is one concatenation."""
    parts = theta_D.split([entry.stop - entry.start for entry in layout.entries])
    return {
        (entry.group, entry.target, entry.factor): part.view(entry.shape)
        for entry, part in zip(layout.entries, parts, strict=True)
    }


def down_projection(x: Tensor, pair: Pair, dropout: float) -> Tensor:
    """down x, with dropout on x."""
    return F.linear(F.dropout(x, dropout) if dropout else x, pair[0])
