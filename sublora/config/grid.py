"""The sweep and its points."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from sublora.config.network import SizeName, TrainedPart, is_whole, named_part
from sublora.config.section import LARGEST_BUDGET, LONGEST_LIST, Budget, Mark, Section
from sublora.subspace import allocations
from sublora.subspace.allocations import Uniform, allocation_forms, parse_allocation
from sublora.system.validation import LARGEST_INT, NonNegativeInt

ALL: Literal["all"] = "all"
"""The budget of a run without a subspace: d = D, a coordinate for each trained parameter."""


def allocation_modes() -> tuple[str, ...]:
    """The kinds of allocation, in the order in which tables and figures show them."""
    return tuple(kind.mode for kind in allocations.ALLOCATIONS)


def _number_or_all(value: object) -> object:
    """One complaint instead of one per alternative of the union."""
    if value == ALL:
        return value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"expected a whole number of at least 1, or all, found {value!r}")
    if value > LARGEST_BUDGET:
        raise ValueError(f"expected at most {LARGEST_BUDGET}, found {value}")
    return value


LISTED = Field(min_length=1, max_length=LONGEST_LIST)
AnyBudget = Annotated[Budget | Literal["all"], BeforeValidator(_number_or_all)]


class RunSpec(Section):
    """One training: a point of the grid."""

    budget: AnyBudget
    """d, the dimension of the subspace; all: of every trained parameter."""
    allocation: Annotated[str, Field(description=f"{allocation_forms(' or ')}.")]
    seed: NonNegativeInt
    """Seed of base weights, LoRA init and batch order."""
    trained: TrainedPart | None = None
    """What is trained, where the grid compares that; None: what section subspace says."""
    size: SizeName | None = None
    """Size of the network, where the grid compares sizes; None: that of section model."""

    @field_validator("allocation")
    @classmethod
    def _known_allocation(cls, value: str) -> str:
        parse_allocation(value)
        return value

    @property
    def name(self) -> str:
        return self.prefix + f"d{self.budget}_{self.allocation}_seed{self.seed}"

    @property
    def prefix(self) -> str:
        """What the name begins with where the grid has more than budgets, allocations and seeds."""
        return "".join(f"{part}_" for part in (self.size, self.trained) if part is not None)

    @property
    def mode(self) -> str:
        """The kind of allocation."""
        return parse_allocation(self.allocation).mode

    @property
    def ratio(self) -> float | None:
        """Share of B for a fixed allocation, None otherwise."""
        return parse_allocation(self.allocation).ratio

    def dimension(self, parameters: int | None) -> int:
        """d, of D trained parameters. ValueError if it is all of them and their number is not given."""
        if self.budget != ALL:
            return self.budget
        if parameters is None:
            raise ValueError("budget all needs the number of trained parameters")
        return parameters


class Grid(Section):
    """The sweep: every combination is one run.

    Without a subspace there is one budget, all, and where there are no A and B one allocation, uniform; so in a grid
    that compares what is trained such a run stands once for each seed (and size).
    """

    budgets: Annotated[tuple[AnyBudget, ...], LISTED, Mark(premise=True)]
    """Subspace dimensions d; [all] with subspace.projection: identity, where w is every trained parameter."""
    allocations: Annotated[
        tuple[str, ...], LISTED, Field(description=f"Any of {allocation_forms()}."), Mark(premise=True)
    ]
    seeds: Annotated[tuple[NonNegativeInt, ...], LISTED, Mark(premise=True)]
    """Seeds of base weights, LoRA init and batch order."""
    trained: Annotated[tuple[TrainedPart, ...], LISTED] | None = None
    """Compares what is trained: any of <adapt>-<projection>, for example lora-kronecker_qr and weights-identity, which
    take the place of subspace.adapt and subspace.projection. null: what section subspace says alone."""
    sizes: Annotated[tuple[SizeName, ...], LISTED] | None = None
    """Compares networks: names of published sizes (gpt2, gpt2-medium, gpt2-large, gpt2-xl) or <layers>x<heads>x<width>,
    which take the place of those of section model. Needs base.kind random. null: section model alone."""

    @field_validator("allocations")
    @classmethod
    def _known_allocations(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for item in value:
            parse_allocation(item)
        return value

    @model_validator(mode="after")
    def _distinct(self) -> "Grid":
        for name in ("budgets", "allocations", "seeds", "trained", "sizes"):
            values = getattr(self, name) or ()
            if len(set(values)) != len(values):
                raise ValueError(f"{name} holds a value twice: {list(values)}")
        if self.n_runs > LARGEST_INT:
            raise ValueError(f"{self.n_runs:,} runs, expected at most {LARGEST_INT:,}; shorten the lists")
        return self

    @property
    def compares_networks(self) -> bool:
        """Whether runs differ in more than budget, allocation and seed."""
        return self.trained is not None or self.sizes is not None

    @property
    def n_runs(self) -> int:
        """The number of runs, which is what the arm's index costs in the message; counted without listing them."""
        arms = sum(
            len(self._budgets_of(trained)) * len(self._allocations_of(trained)) for trained in self.trained or (None,)
        )
        return len(self.sizes or (None,)) * arms * len(self.seeds)

    def holds(self, run: RunSpec) -> bool:
        """Return whether a run is one of the grid's, without listing them."""
        return (
            run.size in (self.sizes or (None,))
            and run.trained in (self.trained or (None,))
            and run.budget in self._budgets_of(run.trained)
            and run.allocation in self._allocations_of(run.trained)
            and run.seed in self.seeds
        )

    def runs(self) -> tuple[RunSpec, ...]:
        """All runs, seeds fastest."""
        return tuple(
            RunSpec(budget=budget, allocation=allocation, seed=seed, trained=trained, size=size)
            for size in self.sizes or (None,)
            for trained in self.trained or (None,)
            for budget in self._budgets_of(trained)
            for allocation in self._allocations_of(trained)
            for seed in self.seeds
        )

    def _budgets_of(self, trained: str | None) -> tuple[AnyBudget, ...]:
        return (ALL,) if trained is not None and is_whole(trained) else self.budgets

    def _allocations_of(self, trained: str | None) -> tuple[str, ...]:
        if trained is None or (named_part(trained)[0] == "lora" and not is_whole(trained)):
            return self.allocations
        return (Uniform.mode,)
