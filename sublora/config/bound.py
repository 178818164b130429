"""From a trained w to a bound: message, scores, inequality."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from sublora.config.section import (
    Mark,
    NonNegativeFloat,
    PositiveInt,
    Probability,
    Section,
    SmoothingName,
    trains_for_the_message,
)

IS_SCORED = Mark("score", "yardsticks", "bound", decoder=True, premise=True)
IN_THE_OBJECTIVE = Mark("train", when=trains_for_the_message)
"""Beside keys of scoring and inequality that the objective of training contains."""


def _all_or_a_number(value: object) -> object:
    """One complaint instead of one per alternative of the union."""
    if value != "all" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ValueError(f"expected all or a whole number of at least 1, found {value!r}")
    return value


DocumentsToScore = Annotated[Literal["all"] | PositiveInt, BeforeValidator(_all_or_a_number)]


class Message(Section):
    """How a trained w becomes a message."""

    quantizer: Annotated[Literal["plain", "entropy"], Mark("train", "score", "bound", decoder=True, premise=True)]
    """plain: uniform levels, 16-bit codebook, transmitted counts; entropy: one step and an adaptive code, which the end
    of training optimizes for."""
    levels: Annotated[int, Field(ge=2, le=255), Mark(decoder=True)]
    """Levels of the plain quantizer."""
    extra_bits: Annotated[NonNegativeFloat, Mark(claim="condition", premise=True)]
    """Bits owed for choices made by hand on these data: log2 of the number of alternatives tried."""


class Scoring(Section):
    """Per-document losses of the decoded model."""

    documents: Annotated[DocumentsToScore, IS_SCORED, IN_THE_OBJECTIVE]
    """m, the number of training documents (units, with data.unit: source) drawn with replacement after the message is
    frozen. all: each of the n once, with the full-sample inequality; needs no draw and no bound.delta_sample."""
    sources: Annotated[PositiveInt | None, Mark("score", "bound", claim="source_bound")]
    """Source files drawn with replacement for a second bound, on the mean over source files, beside the one over
    documents; one training document of each is scored. Only for a corpus of packages with data.unit: document; null:
    no second bound."""
    sliding_window: Annotated[PositiveInt, IS_SCORED, IN_THE_OBJECTIVE]
    """Tokens by which the window moves in documents longer than the context."""
    smoothing: Annotated[tuple[SmoothingName, ...], Field(min_length=1), IS_SCORED, IN_THE_OBJECTIVE]
    """Candidates for the predictor that is bounded; one is chosen on val and named in the message.

    token(a): p_a = (1 - a) p + a / V for every token, 0 < a <= 0.999999; document(k): the mixture
    q(x) = (1 - 2^-k) prod_t p(x_t | x_<t) + 2^-k V^-T of network and guessing, 1 <= k <= 64.
    """
    val_documents: PositiveInt
    """Val documents on which the smoothing is chosen."""
    test_documents: PositiveInt
    """Test documents whose loss is reported."""

    @field_validator("smoothing")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError(f"a smoothing occurs twice: {', '.join(value)}")
        return value


class Bound(Section):
    """The inequality and its confidence."""

    delta: Annotated[Probability, Mark(claim="condition", premise=True)]
    """The bounds hold with probability 1 - delta."""
    delta_sample: Annotated[Probability, Mark(claim="condition", premise=True)]
    """Part of delta spent on scoring only m of the n documents; unused with scoring.documents: all."""

    @model_validator(mode="after")
    def _sample_below_total(self) -> "Bound":
        if self.delta_sample >= self.delta:
            raise ValueError(f"delta_sample {self.delta_sample} must be smaller than delta {self.delta}")
        return self
