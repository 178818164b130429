"""Allocations of the d coordinates of w to the parameters, in a few parts with a projection each.

An allocation states which coordinates of w each part reads and which slice of theta it feeds. With gates, coordinates
are divided between roles by numbers that are trained and travel in the message. Adding an allocation takes this file
alone: a subclass of `Allocation` whose `parse` recognises its names, listed in ALLOCATIONS. Importing this module does
not import torch: settings, figures and bounds need names and sizes only.

Shape legend: G gates, S coordinates of a gate.
"""

import abc
import dataclasses
import math
import re
from typing import TYPE_CHECKING, ClassVar, Self

from sublora.subspace.parameters import ParameterSpace, span_length

if TYPE_CHECKING:
    import torch
    from torch import Tensor

INITIAL_GATE_LOGIT = 0.0
"""The logit of a gate at the start of training: gamma = 1/2, an equal split."""
_PLAIN_SHARE = re.compile(r"[0-9]{0,20}\.?[0-9]{1,20}(?:e-[0-9]{1,2})?")
SHARINGS = ("shared", "per_layer")
"""Whether each gate divides all of w, or its own d / gates of the coordinates."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One projection: the coordinates of w that go in, the slice of theta that comes out."""

    name: str
    """The name of the part's random stream."""
    rows: slice
    coordinates: slice
    gate: int | None = None
    """Index of the gate that weighs the coordinates; None if they are used unweighted."""
    takes_first: bool = False
    """Whether the part takes the coordinates below the gate's boundary (B) or those above it (A)."""


@dataclasses.dataclass(frozen=True)
class Gate:
    """A trained division of some coordinates of w: those below the boundary k go to B, the rest to A."""

    group: str
    coordinates: slice

    @property
    def size(self) -> int:
        """The number of coordinates that the gate divides; k is one of size + 1 values."""
        return span_length(self.coordinates)


class Allocation(abc.ABC):
    """A rule that divides a budget of d coordinates."""

    mode: ClassVar[str]
    """The kind of allocation, as in runs.csv."""

    @classmethod
    def form(cls) -> str:
        """Return how names of this kind are written, for help and documentation; the mode by default."""
        return cls.mode

    @classmethod
    def rule(cls) -> str:
        """Return the same in full, for the message about a name that no kind has; as `form` by default."""
        return cls.form()

    @property
    def name(self) -> str:
        """The allocation as it appears in settings and in the names of folders."""
        return self.mode

    @property
    def ratio(self) -> float | None:
        """B's share of the budget; None if it is not fixed."""
        return None

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return the allocation of this kind with that name, or None if the name belongs to another kind."""
        return cls() if text == cls.mode else None

    @abc.abstractmethod
    def parts(self, space: ParameterSpace, budget: int, sharing: str) -> tuple[Part, ...]:
        """Return the parts, in the order of theta. ValueError if the budget does not fit the parameters."""

    def gates(self, groups: tuple[str, ...], budget: int, sharing: str) -> tuple[Gate, ...]:
        """Return the gates, trained and transmitted beside w; none by default. ValueError if a gate would be empty."""
        return ()


@dataclasses.dataclass(frozen=True)
class Uniform(Allocation):
    """One projection onto all parameters: the baseline that makes no split."""

    mode: ClassVar[str] = "uniform"

    def parts(self, space: ParameterSpace, budget: int, sharing: str) -> tuple[Part, ...]:
        return (Part("all", slice(0, space.size), slice(0, budget)),)


@dataclasses.dataclass(frozen=True)
class Fixed(Allocation):
    """w = (w_B, w_A) with dim w_B = round(ratio d), each with its own projection."""

    mode: ClassVar[str] = "fixed"
    share: str
    """B's share of the budget as the user wrote it, so that the name is kept."""

    @classmethod
    def form(cls) -> str:
        return f"{cls.mode}-<share of B>"

    @classmethod
    def rule(cls) -> str:
        return f"{cls.mode}-<ratio> with 0 < ratio < 1 (for example {cls.mode}-0.2)"

    @property
    def name(self) -> str:
        return f"{self.mode}-{self.share}"

    @property
    def ratio(self) -> float:
        return float(self.share)

    @classmethod
    def parse(cls, text: str) -> Self | None:
        if not text.startswith(f"{cls.mode}-"):
            return None
        share = text.removeprefix(f"{cls.mode}-")
        # Names become folders and patterns, so only plain digits are accepted, not all that float() reads.
        return cls(share) if _PLAIN_SHARE.fullmatch(share) and 0.0 < float(share) < 1.0 else None

    def parts(self, space: ParameterSpace, budget: int, sharing: str) -> tuple[Part, ...]:
        split = int(self.ratio * budget + 0.5)
        for role, count in (("A", budget - split), ("B", split)):
            size = span_length(space.span(role))
            if not 0 < count <= size:
                raise ValueError(
                    f"budget {budget} gives {count} coordinates to {role}, which has {size} LoRA parameters; "
                    "expected between 1 and that many: change grid.budgets or the ratio in grid.allocations"
                )
        return (
            Part("A", space.span("A"), slice(split, budget)),
            Part("B", space.span("B"), slice(0, split)),
        )


@dataclasses.dataclass(frozen=True)
class Learned(Allocation):
    """One gate per group: gamma = sigmoid(theta), 0 = all its coordinates to A, 1 = all to B."""

    mode: ClassVar[str] = "learned"

    def gates(self, groups: tuple[str, ...], budget: int, sharing: str) -> tuple[Gate, ...]:
        if sharing == "shared":
            return tuple(Gate(group, slice(0, budget)) for group in groups)
        if budget < len(groups):
            raise ValueError(
                f"budget {budget} leaves some of {len(groups)} groups without a coordinate of their own; "
                "raise grid.budgets or set gating.sharing to shared"
            )
        ends = [budget * index // len(groups) for index in range(len(groups) + 1)]
        return tuple(Gate(group, slice(*ends[i : i + 2])) for i, group in enumerate(groups))

    def parts(self, space: ParameterSpace, budget: int, sharing: str) -> tuple[Part, ...]:
        gates = self.gates(space.groups, budget, sharing)
        return tuple(
            Part(f"{gate.group}_{role}", space.span(role, gate.group), gate.coordinates, index, role == "B")
            for role in ("A", "B")
            for index, gate in enumerate(gates)
        )


ALLOCATIONS: tuple[type[Allocation], ...] = (Uniform, Fixed, Learned)
"""The kinds of allocation, in the order in which figures and tables show them."""


def allocation_forms(before_the_last: str = ", ") -> str:
    """Return how names of allocations are written, all kinds in one text."""
    *others, last = (kind.form() for kind in ALLOCATIONS)
    return ", ".join(others) + before_the_last + last


def parse_allocation(text: str) -> Allocation:
    """Return the allocation of that name; ValueError if no kind has it."""
    for kind in ALLOCATIONS:
        if (allocation := kind.parse(text)) is not None:
            return allocation
    # Kinds with one name come first, since the others need an explanation.
    kinds = sorted(ALLOCATIONS, key=lambda kind: kind.rule() != kind.mode)
    raise ValueError(f"allocation '{text[:40]}' is not one of {', '.join(kind.rule() for kind in kinds)}")


def soft_mask(boundary_G: "Tensor", length: int, width: float) -> "Tensor":
    """Return the weights m (G x length) with which coordinates go to B: sigmoid((boundary - i - 1/2) / width).

    The boundary (G) is gamma times the number of coordinates. `width` (coordinates) is the temperature: about the
    number of coordinates next to the boundary that both matrices use and through which the gate receives its gradient.
    """
    import torch

    coordinates = torch.arange(length, device=boundary_G.device, dtype=boundary_G.dtype)
    return torch.sigmoid((boundary_G[:, None] - coordinates - 0.5) / width)


def hard_split(gamma_G: "Tensor", sizes_G: "Tensor") -> "Tensor":
    """Return the integers k = round(gamma size), int64 (G): a gate's coordinates below k go to B, the rest to A."""
    import torch

    return torch.round(gamma_G.detach().double() * sizes_G).long()


def hard_mask(split_G: "Tensor", length: int, dtype: "torch.dtype") -> "Tensor":
    """Return the mask (G x length) of integer splits: 1 below k, 0 from k on."""
    import torch

    return (torch.arange(length, device=split_G.device) < split_G[:, None]).to(dtype)


def mask_width(step: int, *, size: int, start: float, end: float, soft_steps: int) -> float:
    """Return the temperature in coordinates: geometric from start x size to `end`, then 0 (hard split).

    `size`: the number of coordinates that a gate divides; `soft_steps`: the length of the soft phase.
    """
    if step >= soft_steps:
        return 0.0
    return soft_width(step / max(1, soft_steps - 1), size=size, start=start, end=end)


def soft_width(progress: float, *, size: int, start: float, end: float) -> float:
    """Return the temperature in coordinates within the soft phase, of which the share `progress` is done."""
    return math.pow(start * size, 1.0 - progress) * math.pow(end, progress)
