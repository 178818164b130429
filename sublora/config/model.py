"""The network, its adapters, and the subspace they are trained in."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sublora.config.section import NonNegativeInt, PositiveFloat, PositiveInt, Section


class Model(Section):
    """GPT-2 with frozen random weights."""

    n_layer: PositiveInt
    n_head: PositiveInt
    n_embd: PositiveInt
    context_length: PositiveInt
    init_std: PositiveFloat
    """Standard deviation of the frozen weights; 0.02 in GPT-2."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "Model":
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        return self


class Lora(Section):
    """Low-rank adapters on the frozen weights: W x + (alpha / rank) B A x."""

    rank: PositiveInt
    alpha: PositiveFloat
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)]
    targets: Annotated[tuple[Literal["query", "value", "head"], ...], Field(min_length=1)]
    init: Literal["zero_b", "both_random"]
    """zero_b: A random, B zero, so at first only B learns; both_random: both random, and their product is subtracted
    from the frozen weight. Either way training starts from the base model."""


class Subspace(Section):
    """The random projection from w to the LoRA parameters."""

    projection: Literal["kronecker_qr"]
    projection_seed: NonNegativeInt


class Gating(Section):
    """The learned allocation: soft masks that narrow, then hard splits."""

    sharing: Literal["shared", "per_layer"]
    """shared: every gate splits all of w; per_layer: its layer's (or the head's) own part of w, d / groups of it."""
    learning_rate: PositiveFloat
    mask_width_start: PositiveFloat
    """Temperature tau of the mask at the first step, as a share of the coordinates that a gate splits."""
    mask_width_end: PositiveFloat
    """Temperature tau, in coordinates, at the end of the soft phase."""
    soft_fraction: Annotated[float, Field(gt=0.0, lt=1.0)]
    """Share of the steps with soft masks; the rest trains with the hard split."""
    trace_interval_steps: PositiveInt
    """Steps between rows of gating_trace.csv, over which a row's gradient_snr is taken."""
