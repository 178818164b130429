"""From a trained w to a bound: message, scores, inequality."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from sublora.config.section import (
    LARGEST_SIZE,
    Extent,
    Mark,
    Section,
    SmoothingName,
    anchors_on_the_base,
    trains_for_the_message,
)
from sublora.system.validation import PositiveInt, Probability

IS_SCORED = Mark("score", "yardsticks", "bound", decoder=True, premise=True)
IS_ANCHORED = Mark("score", "yardsticks", "bound", decoder=True, premise=True, null_counts=False)
PART_OF_DELTA = Mark(claim="condition", premise=True, null_counts=False)
IN_THE_OBJECTIVE = Mark("train", when=trains_for_the_message)
"""Beside keys of scoring and inequality that the objective of training contains."""


def _all_or_a_number(value: object) -> object:
    """One complaint instead of one per alternative of the union."""
    if value == "all":
        return value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"expected all or a whole number of at least 1, found {value!r}")
    if value > LARGEST_SIZE:
        raise ValueError(f"expected all or at most {LARGEST_SIZE}, found {value}")
    return value


LARGEST_EXTRA_BITS = 900.0
"""Beyond it a share of delta, 2^-bits, is hardly a number any more."""
Exponent = Annotated[int, Field(ge=1, le=64)]
"""k of a prior weight 2^-k."""
DocumentsToScore = Annotated[Literal["all"] | Extent, BeforeValidator(_all_or_a_number)]


class MessageSettings(Section):
    """How a trained w becomes a message."""

    quantizer: Annotated[Literal["plain", "entropy"], Mark("train", "score", "bound", decoder=True, premise=True)] = (
        "entropy"
    )
    """plain: uniform levels, 16-bit codebook, transmitted counts; entropy: one step and an adaptive code, which the end
    of training optimizes for."""
    levels: Annotated[int, Field(ge=2, le=255), Mark(decoder=True)] = 11
    """Levels of the plain quantizer."""
    extra_bits: Annotated[
        float,
        Field(ge=0.0, le=LARGEST_EXTRA_BITS),
        Mark("score", "bound", claim="condition", premise=True),
        Mark("yardsticks", when=anchors_on_the_base),
    ]
    """Bits owed for choices made by hand on these data: log2 of the number of alternatives tried."""


class Scoring(Section):
    """Per-document losses of the decoded model."""

    documents: Annotated[DocumentsToScore, IS_SCORED, IN_THE_OBJECTIVE]
    """m, the number of training documents (units, with data.unit: source) drawn with replacement after the message is
    frozen. all: each of the n once, with the full-sample inequality; needs no draw and no bound.delta_sample."""
    sources: Annotated[Extent | None, Mark("score", "bound", claim="source_bound")] = None
    """Source files drawn with replacement for a second bound, on the mean over source files, beside the one over
    documents; one training document of each is scored. Only for a corpus of packages with data.unit: document; null:
    no second bound."""
    sliding_window: Annotated[Extent, IS_SCORED, IN_THE_OBJECTIVE]
    """Tokens by which the window moves in documents longer than the context."""
    smoothing: Annotated[
        tuple[SmoothingName, ...], Field(min_length=1, max_length=1000), IS_SCORED, IN_THE_OBJECTIVE
    ] = tuple(f"document({k})" for k in (1, 2, 3, 4, 6, 8, 12, 16))
    """Candidates for the predictor that is bounded; one is chosen on val and named in the message.

    token(a): p_a = (1 - a) p + a / V for every token, 1e-30 <= a <= 0.999999; document(k): the mixture
    q(x) = (1 - 2^-k) prod_t p(x_t | x_<t) + 2^-k V^-T of network and guessing, 1 <= k <= 64.
    """
    anchor: Annotated[Literal["base", "guessing"] | None, IS_ANCHORED, IN_THE_OBJECTIVE] = None
    """What the certified predictor falls back on. base: q = (1 - 2^-k) P + 2^-k Q_b with the frozen base inside Q_b, so
    that the bound pays for what adapting changed; needs a base that is not random, document(k) alone among the
    smoothings, and the parts of delta in the section bound. guessing: the smoothing as it is. null: base unless the
    base is random."""
    anchor_k0: Annotated[Exponent | None, IS_ANCHORED, IN_THE_OBJECTIVE] = None
    """k0 of the anchor Q_b = (1 - 2^-k0) P_base + 2^-k0 V^-T; must not be chosen on these data. Needed with anchor:
    base."""
    base_documents: Annotated[DocumentsToScore | None, Mark(premise=True, null_counts=False)] = None
    """Training documents (units) on which the loss of the base is bounded, once for all runs: all of the n, or a number
    drawn by the hashes of base and data. Needed with anchor: base."""
    base_sources: Annotated[DocumentsToScore | None, Mark(claim="source_bound", null_counts=False)] = None
    """The same for the bound over source files; needed with anchor: base and a number of `sources`."""
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
    delta_base: Annotated[Probability | None, PART_OF_DELTA] = None
    """With scoring.anchor: base, the part of delta for the bound on the loss of the base; the rest of delta is for the
    bound on what adapting changed."""
    delta_base_sample: Annotated[Probability | None, PART_OF_DELTA] = None
    """Part of delta_base for the draw of scoring.base_documents; unused with all of them."""
    delta_excess_sample: Annotated[Probability | None, PART_OF_DELTA] = None
    """Part of delta - delta_base for the draw of scoring.documents; unused with all of them."""

    @model_validator(mode="after")
    def _sample_below_total(self) -> "Bound":
        if self.delta_sample >= self.delta:
            raise ValueError(f"delta_sample {self.delta_sample} must be smaller than delta {self.delta}")
        if self.delta_base is not None:
            if self.delta_base >= self.delta:
                raise ValueError(f"delta_base {self.delta_base} must be smaller than delta {self.delta}")
            parts = (
                ("delta_base_sample", self.delta_base_sample, "delta_base", self.delta_base),
                ("delta_excess_sample", self.delta_excess_sample, "delta - delta_base", self.delta - self.delta_base),
            )
            for name, part, of_name, whole in parts:
                if part is not None and part >= whole:
                    raise ValueError(f"{name} {part} must be smaller than {of_name} = {whole:g}")
        return self
