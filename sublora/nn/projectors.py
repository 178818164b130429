"""Random projections of the subspace, and the module that maps w (and gates) to all LoRA parameters.

SubLoRA (Lotfi et al., ICML 2024): theta = theta_0 + P w with P fixed and random. P is never formed: it is a
Kronecker product of two small matrices with orthonormal columns, up to a small dense remainder.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from sublora import config, random
from sublora.errors import UserError
from sublora.nn import allocation
from sublora.nn.layout import Layout, group_slices, span_length
from sublora.nn.lora import initial_theta

INITIAL_GATE_LOGIT = 0.0
"""theta of a gate at the start: gamma = 1/2, an equal split."""


def kronecker_sizes(rows: int, columns: int) -> tuple[int, int]:
    """Sides (a, b) of the Kronecker part a^2 x b^2 of a tall rows x columns projection.

    b^2 and a^2 are the largest squares for which the dense remainder (rows - a^2) x (columns - b^2) is again
    tall and leaves no row without a column; a = b = 0 when only the dense part is left.
    """
    for b in range(math.isqrt(columns), 0, -1):
        for a in range(math.isqrt(rows), b - 1, -1):
            rest_rows, rest_columns = rows - a * a, columns - b * b
            if rest_rows == rest_columns == 0 or 0 < rest_columns <= rest_rows:
                return a, b
    return 0, 0


class KroneckerQR(nn.Module):
    """P (rows x columns) = scale x permutation of blockdiag(Q1 kron Q2, R), with Q1, Q2, R from QR factors.

    For a tall P the columns are orthogonal with norm sqrt(rows / total), for a wide one the rows are, with norm
    sqrt(columns / total); either way the mean square of its entries is 1 / total, where `total` is D, the
    number of all LoRA parameters. So a step in w moves every group and arm alike.
    """

    def __init__(self, rows: int, columns: int, *, total: int, stream: np.random.Generator) -> None:
        super().__init__()
        self.rows, self.columns, self.wide = rows, columns, columns > rows
        tall, narrow = max(rows, columns), min(rows, columns)
        self.a, self.b = kronecker_sizes(tall, narrow)
        self.scale = math.sqrt(tall / total)
        rest = (tall - self.a**2, narrow - self.b**2)
        for name, shape in (("left", (self.a, self.b)), ("right", (self.a, self.b)), ("rest", rest)):
            self.register_buffer(name, torch.from_numpy(_orthonormal(shape, stream)), persistent=False)
        order = np.argsort(stream.permutation(tall)) if self.wide else stream.permutation(tall)
        self.register_buffer("order", torch.from_numpy(order), persistent=False)

    def forward(self, w_S: Tensor) -> Tensor:
        """P w (rows) for w (columns)."""
        return self._transposed(w_S) if self.wide else self._direct(w_S)

    def _direct(self, w_S: Tensor) -> Tensor:
        """Permutation of (Q1 kron Q2) w = vec(Q1 W Q2') and of R w_rest."""
        parts = [(self.left @ w_S[: self.b**2].view(self.b, self.b) @ self.right.T).flatten()]
        parts.append(self.rest @ w_S[self.b**2 :])
        return torch.cat(parts)[self.order] * self.scale

    def _transposed(self, w_S: Tensor) -> Tensor:
        """The transpose of the tall projection of the swapped sizes: unpermute, then Q1' W Q2 and R'."""
        w_S = w_S[self.order]
        parts = [(self.left.T @ w_S[: self.a**2].view(self.a, self.a) @ self.right).flatten()]
        parts.append(self.rest.T @ w_S[self.a**2 :])
        return torch.cat(parts) * self.scale


def _orthonormal(shape: tuple[int, int], stream: np.random.Generator) -> np.ndarray:
    """float32 matrix with orthonormal columns, uniformly distributed: QR of a Gaussian, signs fixed by R."""
    q, r = np.linalg.qr(stream.standard_normal(shape))
    return (q * np.where(np.diagonal(r) < 0, -1.0, 1.0)).astype(np.float32)


class StructuredIDModule(nn.Module):
    """The trained parameters: w in R^d and, for a learned allocation, one gate a group.

    forward() gives all LoRA parameters theta (D). Names in the state dict: `subspace_params` and
    `gating_params.0`, ..., `gating_params.head` (the logit of each gate).

    Shape legend: D LoRA parameters, G groups, S coordinates of w (of all, or of one group).
    """

    def __init__(
        self,
        layout: Layout,
        *,
        budget: int,
        mode: str,
        ratio: float | None,
        seed: int,
        projection_seed: int,
        init: str,
        sharing: str,
    ) -> None:
        """`mode` and `ratio` as in RunSpec, `init` as in config.Lora, `sharing` as in config.Gating.

        UserError if a part of w exceeds the LoRA parameters it feeds, or a group is left without a coordinate.
        """
        super().__init__()
        self.layout, self.budget, self.mode = layout, budget, mode
        self.split = allocation.fixed_split(budget, ratio) if ratio is not None else None
        self._check_sizes(sharing)
        self.register_buffer("theta_init", torch.from_numpy(initial_theta(layout, seed, init)), persistent=False)
        self.subspace_params = nn.Parameter(torch.zeros(budget))
        self.gating_params = nn.ParameterDict()
        self.slices: tuple[slice, ...] = ()
        """The coordinates of w that each gate splits; empty without gates."""
        if mode == "learned":
            self.slices = group_slices(budget, len(layout.groups), sharing)
            for group in layout.groups:
                self.gating_params[group] = nn.Parameter(torch.tensor(INITIAL_GATE_LOGIT))
        self.register_buffer("sizes_G", torch.tensor(self.gate_sizes), persistent=False)

        def projection(name: str, span: slice, columns: int) -> KroneckerQR:
            stream = random.generator(seed, "projection", projection_seed, name)
            return KroneckerQR(span_length(span), columns, total=layout.size, stream=stream)

        self.projections = nn.ModuleDict()
        if mode == "uniform":
            self.projections["all"] = projection("all", slice(0, layout.size), budget)
        elif mode == "fixed":
            self.projections["A"] = projection("A", layout.span("A"), budget - self.split)
            self.projections["B"] = projection("B", layout.span("B"), self.split)
        else:
            for factor in ("A", "B"):
                for group, size in zip(layout.groups, self.gate_sizes, strict=True):
                    name = f"{group}_{factor}"
                    self.projections[name] = projection(name, layout.span(factor, group), size)

    @property
    def gate_sizes(self) -> tuple[int, ...]:
        """Coordinates that each gate splits; empty without gates."""
        return tuple(map(span_length, self.slices))

    def forward(self, mask_width: float = 0.0, split_G: Tensor | None = None) -> Tensor:
        """theta (D). For learned gates: soft masks of this width, or with width 0 the hard split.

        `split_G` gives the integers of the hard split; without it they are rounded from the gates.
        """
        w = self.subspace_params
        if self.mode == "uniform":
            return self.theta_init + self.projections["all"](w)
        if self.mode == "fixed":
            parts = [self.projections["A"](w[self.split :]), self.projections["B"](w[: self.split])]
            return self.theta_init + torch.cat(parts)
        length = max(self.gate_sizes)
        if mask_width > 0.0:
            mask_GS = allocation.soft_mask(self.gamma() * self.sizes_G, length, mask_width)
        else:
            split_G = self.hard_split() if split_G is None else split_G
            mask_GS = allocation.hard_mask(split_G, length, w.dtype)
        own = [w if size == len(w) else w[part] for part, size in zip(self.slices, self.gate_sizes, strict=True)]
        masks = [mask_S[:size] for mask_S, size in zip(mask_GS, self.gate_sizes, strict=True)]
        uses = list(zip(self.layout.groups, masks, own, strict=True))
        parts = [self.projections[f"{group}_A"]((1.0 - mask_S) * own_S) for group, mask_S, own_S in uses]
        parts += [self.projections[f"{group}_B"](mask_S * own_S) for group, mask_S, own_S in uses]
        return self.theta_init + torch.cat(parts)

    def gamma(self) -> Tensor:
        """B's share in each group (G), differentiable."""
        return torch.sigmoid(torch.stack([self.gating_params[group] for group in self.layout.groups]))

    def hard_split(self) -> Tensor:
        """Integers k (G) of the hard split, counted within each gate's coordinates; empty without gates."""
        if self.mode != "learned":
            return torch.zeros(0, dtype=torch.long)
        return allocation.hard_split(self.gamma(), self.sizes_G)

    def _check_sizes(self, sharing: str) -> None:
        size_a, size_b = (span_length(self.layout.span(factor)) for factor in ("A", "B"))
        if self.budget > self.layout.size:
            raise UserError(
                f"budget {self.budget} exceeds the {self.layout.size} LoRA parameters; "
                "lower grid.budgets or raise lora.rank"
            )
        groups = len(self.layout.groups)
        if self.mode == "learned" and sharing == "per_layer" and self.budget < groups:
            raise UserError(
                f"budget {self.budget} leaves some of {groups} groups without a coordinate of their own; "
                "raise grid.budgets or set gating.sharing to shared"
            )
        if self.split is None:
            return
        for factor, part, size in (("A", self.budget - self.split, size_a), ("B", self.split, size_b)):
            if not 0 < part <= size:
                raise UserError(
                    f"budget {self.budget} gives {part} coordinates to {factor}, which has {size} LoRA parameters; "
                    "expected between 1 and that many: change grid.budgets or the ratio in grid.allocations"
                )


def build_subspace(settings: config.Settings, run: config.RunSpec, layout: Layout) -> StructuredIDModule:
    """The module of one run of the grid."""
    return StructuredIDModule(
        layout,
        budget=run.budget,
        mode=run.mode,
        ratio=run.ratio,
        seed=run.seed,
        projection_seed=settings.subspace.projection_seed,
        init=settings.lora.init,
        sharing=settings.gating.sharing,
    )
