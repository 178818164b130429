"""What every group of settings is made of: the strict base class and the types of numbers."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


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
    from sublora.bounds.smoothing import parse_smoothing  # numpy, which other users of settings do without

    return parse_smoothing(text).name


SmoothingName = Annotated[str, AfterValidator(_canonical_smoothing)]
"""token(a) or document(k); spellings of one smoothing become the same text, and so the same digest."""
