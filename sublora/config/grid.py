"""The sweep and its points."""

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from sublora.config.section import Budget, NonNegativeInt, Section
from sublora.subspace.allocations import ALLOCATIONS, parse_allocation


def allocation_modes() -> tuple[str, ...]:
    """The kinds of allocation, in the order in which tables and figures show them."""
    return tuple(kind.mode for kind in ALLOCATIONS)


class RunSpec(Section):
    """One training: a point of the grid."""

    budget: Budget
    """d, the dimension of the subspace."""
    allocation: str
    """uniform, fixed-<share of B> or learned."""
    seed: NonNegativeInt
    """Seed of base weights, LoRA init and batch order."""

    @field_validator("allocation")
    @classmethod
    def _known_allocation(cls, value: str) -> str:
        parse_allocation(value)
        return value

    @property
    def name(self) -> str:
        return f"d{self.budget}_{self.allocation}_seed{self.seed}"

    @property
    def mode(self) -> str:
        """The kind of allocation."""
        return parse_allocation(self.allocation).mode

    @property
    def ratio(self) -> float | None:
        """Share of B for a fixed allocation, None otherwise."""
        return parse_allocation(self.allocation).ratio


class Grid(Section):
    """The sweep: every combination of budget, allocation and seed is one run."""

    budgets: Annotated[tuple[Budget, ...], Field(min_length=1)]
    """Subspace dimensions d."""
    allocations: Annotated[tuple[str, ...], Field(min_length=1)]
    """Any of uniform, fixed-<share of B>, learned."""
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)]
    """Seeds of base weights, LoRA init and batch order."""

    @field_validator("allocations")
    @classmethod
    def _known_allocations(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for item in value:
            parse_allocation(item)
        return value

    @model_validator(mode="after")
    def _distinct(self) -> "Grid":
        for name in ("budgets", "allocations", "seeds"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name} holds a value twice: {list(values)}")
        return self

    def runs(self) -> tuple[RunSpec, ...]:
        """All runs, seeds fastest. Their number is what the arm's index costs in the message."""
        return tuple(
            RunSpec(budget=budget, allocation=allocation, seed=seed)
            for budget in self.budgets
            for allocation in self.allocations
            for seed in self.seeds
        )
