"""The map from w (and gates) to theta, a pure function, and the module that holds what is trained.

SubLoRA (Lotfi et al., ICML 2024): theta = theta_0 + P w with P fixed and random. Where there are scales s, one for each
entry of theta, theta = theta_0 + s * (P w).

Shape legend: D entries of theta, d entries of w, G gates, S coordinates of w that a part reads.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sublora.subspace.allocations import INITIAL_GATE_LOGIT, Allocation, hard_mask, hard_split, soft_mask
from sublora.subspace.cores import Lift
from sublora.subspace.parameters import ParameterSpace, span_length
from sublora.subspace.projections import PROJECTIONS


@dataclasses.dataclass(frozen=True)
class SubspaceShape:
    """Everything about a subspace that is not random; `Subspace` is built from it."""

    space: ParameterSpace
    allocation: Allocation
    budget: int
    """d, the number of coordinates of w."""
    projection: str = "kronecker_qr"
    """A name in PROJECTIONS."""
    sharing: str = "shared"
    """What each gate divides: one of SHARINGS."""
    scale_D: NDArray[np.float32] | None = None
    """The scale of each entry of theta (`sublora.subspace.scales.entry_scales`); None: 1 for all."""
    lift: Lift | None = None
    """Maps the parameters of `space` to theta; None: they are theta."""


class Subspace(nn.Module):
    """The trained parameters: w in R^d and, where the allocation has them, gates.

    forward() gives theta (D). Names in the state dict: `subspace_params` and `gating_params.0`, ...,
    `gating_params.head` (the logit of each gate).
    """

    origin_D: Tensor
    sizes_G: Tensor
    scale_D: Tensor | None

    def __init__(
        self,
        shape: SubspaceShape,
        origin_D: NDArray[np.float32],
        stream: Callable[[str], np.random.Generator],
    ) -> None:
        """Build the projections of all parts, with w = 0 and gates that split equally.

        Args:
            shape: the parameters, their allocation and the sizes.
            origin_D: theta at w = 0, float32.
            stream: returns the random stream of a part, given its name.

        Raises:
            ValueError: the budget does not fit the parameters, or a group is left without a coordinate.
        """
        super().__init__()
        space, budget = shape.space, shape.budget
        if budget > space.size:
            raise ValueError(
                f"budget {budget} exceeds the {space.size} trained parameters; lower grid.budgets (or raise lora.rank)"
            )
        # Lay out gates and parts; parts must follow one another in theta.
        self.shape = shape
        self.gates = shape.allocation.gates(space.groups, budget, shape.sharing)
        self.parts = shape.allocation.parts(space, budget, shape.sharing)
        stops = [0, *(part.rows.stop for part in self.parts)]
        if any(part.rows.start < stop for part, stop in zip(self.parts, stops, strict=False)):
            raise ValueError(f"the parts of allocation {shape.allocation.name} overlap or are out of order")
        # What is trained is a parameter; what the seeds determine is a buffer outside the state dict.
        self.register_buffer("origin_D", torch.from_numpy(origin_D), persistent=False)
        scale_D = None if shape.scale_D is None else torch.from_numpy(shape.scale_D)
        self.register_buffer("scale_D", scale_D, persistent=False)
        self.lift_names = []
        for index, array in enumerate(() if shape.lift is None else shape.lift.arrays):
            self.lift_names.append(f"lift__{index}")
            self.register_buffer(self.lift_names[-1], torch.from_numpy(array), persistent=False)
        self.register_buffer("sizes_G", torch.tensor([gate.size for gate in self.gates]), persistent=False)
        self.subspace_params = nn.Parameter(torch.zeros(budget))
        self.gating_params = nn.ParameterDict()
        for gate in self.gates:
            self.gating_params[gate.group] = nn.Parameter(torch.tensor(INITIAL_GATE_LOGIT))
        # Draw the arrays of each part's projection and register them, so that they move with the module.
        self._projections = []
        for part in self.parts:
            sizes = span_length(part.rows), span_length(part.coordinates)
            projection = PROJECTIONS[shape.projection](*sizes, total=space.size)
            names = {}
            for name, array in projection.arrays(stream(part.name)).items():
                names[name] = f"{part.name}__{name}"
                self.register_buffer(names[name], torch.from_numpy(array), persistent=False)
            self._projections.append((projection, names))

    def forward(self, mask_width: float = 0.0) -> Tensor:
        """Return theta (D) of the module's own w and gates: soft masks of this width, or the hard split at width 0."""
        return self.theta(self.subspace_params, self.masks(mask_width))

    def theta(self, w_S: Tensor, mask_GS: Tensor | None = None) -> Tensor:
        """Return theta (D) of any w (d), differentiable in both arguments; nothing is changed.

        Entries that no part feeds stay at their origin.
        mask_GS: B's weight of each coordinate of each gate, as `masks` or `split_masks` gives it; None without gates.
        """
        masks = [] if mask_GS is None else [m[: gate.size] for m, gate in zip(mask_GS, self.gates, strict=True)]
        pieces = []
        end = 0
        # Project part by part; zeros fill the gaps between parts.
        for part, (projection, names) in zip(self.parts, self._projections, strict=True):
            if part.rows.start > end:
                pieces.append(self.origin_D.new_zeros(part.rows.start - end))
            end = part.rows.stop
            # Weigh the part's coordinates by its gate.
            own_S = w_S if span_length(part.coordinates) == len(w_S) else w_S[part.coordinates]
            if part.gate is not None:
                mask_S = masks[part.gate]
                own_S = (mask_S if part.takes_first else 1.0 - mask_S) * own_S
            arrays = {name: getattr(self, buffer) for name, buffer in names.items()}
            pieces.append(projection.apply(arrays, own_S))
        size = self.shape.space.size
        if end < size:
            pieces.append(self.origin_D.new_zeros(size - end))
        moved_D = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        # Scale, and map the trained parameters to theta where they are not theta itself.
        if self.scale_D is not None:
            moved_D = self.scale_D * moved_D
        if self.shape.lift is not None:
            moved_D = self.shape.lift.apply(tuple(getattr(self, name) for name in self.lift_names), moved_D)
        return self.origin_D + moved_D

    def masks(self, mask_width: float) -> Tensor | None:
        """Return the masks (G x S) of the module's gates at a width in coordinates, 0 for the hard split.

        None without gates.
        """
        if not self.gates:
            return None
        if mask_width > 0.0:
            return soft_mask(self.gamma() * self.sizes_G, self.largest_gate, mask_width)
        return self.split_masks(self.hard_split())

    def split_masks(self, split_G: Tensor) -> Tensor | None:
        """Return the masks (G x S) of given integers k, on the device of w; None without gates."""
        if not self.gates:
            return None
        w_S = self.subspace_params
        return hard_mask(split_G.to(w_S.device), self.largest_gate, w_S.dtype)

    @torch.no_grad()
    def decoded(self, w_d: NDArray[np.float32], split: Sequence[int]) -> Tensor:
        """Return theta (D) of a message, given its w (d) and the integers of its gates, not the module's own."""
        values_d = torch.from_numpy(np.ascontiguousarray(w_d, dtype=np.float32)).to(self.subspace_params.device)
        return self.theta(values_d, self.split_masks(torch.tensor(split, dtype=torch.long)))

    @property
    def largest_gate(self) -> int:
        """The number of coordinates of the largest gate, 0 without gates."""
        return max((gate.size for gate in self.gates), default=0)

    def gamma(self) -> Tensor:
        """Return B's share in each gate (G), differentiable."""
        return torch.sigmoid(torch.stack([self.gating_params[gate.group] for gate in self.gates]))

    def hard_split(self) -> Tensor:
        """Return the integers k (G) of the hard split, counted within each gate's coordinates; empty without gates."""
        if not self.gates:
            return torch.zeros(0, dtype=torch.long)
        return hard_split(self.gamma(), self.sizes_G)

    def parameter_copies(self) -> dict[str, Tensor]:
        """Return copies of w and the gates on the CPU, by their names in the state dict."""
        return {name: value.detach().cpu().clone() for name, value in self.state_dict().items()}
