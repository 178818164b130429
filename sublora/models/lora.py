"""LoRA (Hu et al. 2022): W x + (alpha / rank) B A x for chosen matrices.

If B does not start from zero, the product of the initial matrices is subtracted: W x + (alpha / rank) (B A - B0 A0) x.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sublora.models.spaces import lora_name
from sublora.subspace.parameters import ParameterSpace
from sublora.system.streams import generator


def initial_theta(space: ParameterSpace, seed: int, init: str) -> np.ndarray:
    """Draw theta, float32 (D): A uniform within 1 / sqrt(inputs); B zero (zero_b) or drawn like A (both_random).

    Since the entries have the same variance, the gradients of A and B have the same mean square over the draws, for any
    gradient G of the adapted matrix: E |B' G|^2 = rank Var |G|^2 = E |G A'|^2.
    """
    theta_D = np.zeros(space.size, dtype=np.float32)
    inputs = {p.name.removesuffix("A"): p.shape[1] for p in space.parameters if p.role == "A"}
    for p in space.parameters:
        if p.role == "B" and init == "zero_b":
            continue
        limit = 1.0 / math.sqrt(inputs[p.name.removesuffix(p.role)])
        group, target, _ = p.name.split(".")
        stream = generator(seed, "lora init", group, target, *(["B"] if p.role == "B" else []))
        theta_D[p.start : p.stop] = stream.uniform(-limit, limit, p.stop - p.start)
    return theta_D


Pair = tuple[Tensor, Tensor]
"""(down, up) of one target, down R x C and up O x R: the adapted layer computes W x + up down x."""


class Adapters:
    """The LoRA matrices cut out of theta."""

    def __init__(
        self,
        space: ParameterSpace,
        theta_D: Tensor,
        *,
        scale: float,
        dtype: torch.dtype,
        origin_D: Tensor | None = None,
    ) -> None:
        """Cut the matrices out of theta; `scale` is alpha / rank, and the matrices are used in `dtype`.

        `origin_D`: the initial theta if the product of its matrices is to be subtracted.
        """
        self.scale = scale
        self._matrices = cut(space, theta_D.to(dtype))
        self._origin: dict[str, Tensor] = {}
        self._moved: dict[str, Tensor] = {}
        if origin_D is not None:
            self._origin, self._moved = cut(space, origin_D.to(dtype)), cut(space, (theta_D - origin_D).to(dtype))

    def pair(self, group: str, target: str) -> Pair | None:
        """Return the factors of a target's update, or None if the target has no adapter.

        Without an origin they are scale A and B. With an origin, B A - B0 A0 = B (A - A0) + (B - B0) A0 gives an
        adapter with twice the rank, which is exactly zero at the start.
        """
        a, b = lora_name(group, target, "A"), lora_name(group, target, "B")
        if a not in self._matrices:
            return None
        if not self._origin:
            return self._matrices[a] * self.scale, self._matrices[b]
        down = torch.cat([self._moved[a], self._origin[a]]) * self.scale
        return down, torch.cat([self._matrices[b], self._moved[b]], 1)


def cut(space: ParameterSpace, theta_D: Tensor) -> dict[str, Tensor]:
    """Return every parameter by name, as a view of theta. One split makes its gradient one concatenation."""
    parts = theta_D.split([p.stop - p.start for p in space.parameters])
    return {p.name: part.view(p.shape) for p, part in zip(space.parameters, parts, strict=True)}


def down_projection(x: Tensor, pair: Pair, dropout: float) -> Tensor:
    """Return down x, with dropout on x."""
    return F.linear(F.dropout(x, dropout) if dropout else x, pair[0])
