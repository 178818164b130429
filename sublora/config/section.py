"""What every group of settings is made of: the strict base class and the types of numbers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from sublora.bounds.smoothing_names import parse_name


class Section(BaseModel):
    """Base of all groups of settings: unknown keys refused, values immutable, types not coerced."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


LARGEST_INT = 2**53 - 1
"""Of whole numbers in settings: what JSON keeps exactly."""
PositiveInt = Annotated[int, Field(gt=0, le=LARGEST_INT)]
NonNegativeInt = Annotated[int, Field(ge=0, le=LARGEST_INT)]
LayerCount = Annotated[int, Field(gt=0, le=10_000)]
LARGEST_BUDGET = 10**9
Budget = Annotated[int, Field(gt=0, le=LARGEST_BUDGET)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Probability = Annotated[float, Field(gt=0.0, lt=1.0)]
PositiveFloat = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


def _canonical_smoothing(text: str) -> str:
    return str(parse_name(text))


SmoothingName = Annotated[str, AfterValidator(_canonical_smoothing)]
"""token(a) or document(k); spellings of one smoothing become the same text, and so the same digest."""


Stage = Literal["data", "base", "train", "score", "yardsticks", "bound"]
STAGES: tuple[Stage, ...] = get_args(Stage)


@dataclass(frozen=True, init=False)
class Reaches:
    """Stages that read the key themselves; what an earlier stage reads reaches them through its files.

    Without stages: the key changes how fast or how visibly a stage runs, never its numbers. Several marks on one key
    add up.
    """

    stages: tuple[Stage, ...]
    when: Callable[[Any], bool] | None
    """Of the whole `Settings`, which cannot be imported here: those under which the mark counts; None: all."""

    def __init__(self, *stages: Stage, when: Callable[[Any], bool] | None = None) -> None:
        object.__setattr__(self, "stages", stages)
        object.__setattr__(self, "when", when)


@dataclass(frozen=True, init=False)
class ReachesThrough:
    """A section of which stages read nothing but one number derived from it."""

    name: str
    """Name of that number among the settings of a stage."""
    value: Callable[[Any], int]
    stages: tuple[Stage, ...]

    def __init__(self, name: str, value: Callable[[Any], int], *stages: Stage) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "value", value)
        object.__setattr__(self, "stages", stages)


def trains_for_the_message(settings: Any) -> bool:
    """Whether the objective of training is the bound, with message and inequality in it."""
    return bool(settings.message.quantizer == "entropy")


def tokenizes_as_the_base(settings: Any) -> bool:
    """Whether the data are made with the tokenizer of the pretrained base."""
    return bool(settings.data.tokenizer == "base")
