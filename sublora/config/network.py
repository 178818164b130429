"""The network, its adapters, and the subspace they are trained in."""

import re
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from sublora.config.section import LARGEST_LAYERS, Extent, LayerCount, Mark, Section
from sublora.subspace.projections import IDENTITY, PROJECTIONS
from sublora.subspace.scales import parse_scale
from sublora.system.validation import NonNegativeInt, PositiveFloat, PositiveInt


class Size(NamedTuple):
    """Shape of a GPT-2."""

    n_layer: int
    n_head: int
    n_embd: int


PUBLISHED = {
    "gpt2": Size(12, 12, 768),
    "gpt2-medium": Size(24, 16, 1024),
    "gpt2-large": Size(36, 20, 1280),
    "gpt2-xl": Size(48, 25, 1600),
}
"""Radford et al., Language Models are Unsupervised Multitask Learners (2019)."""

FREE = re.compile(r"([1-9]\d{0,3})x([1-9]\d{0,3})x([1-9]\d{0,5})")


def parse_size(name: str) -> Size:
    """Return the size of a name: a published one, or <layers>x<heads>x<width>. ValueError for any other name."""
    if name in PUBLISHED:
        return PUBLISHED[name]
    found = FREE.fullmatch(name)
    if found is None:
        raise ValueError(
            f"size '{name[:40]}' is not one of {', '.join(PUBLISHED)} or <layers>x<heads>x<width> (for example 4x2x64)"
        )
    size = Size(*map(int, found.groups()))
    if size.n_layer > LARGEST_LAYERS:
        raise ValueError(f"size '{name}': {size.n_layer} layers, expected at most {LARGEST_LAYERS}")
    if size.n_embd % size.n_head:
        raise ValueError(f"size '{name}': width {size.n_embd} is not a multiple of {size.n_head} heads")
    return size


def _known_size(name: str) -> str:
    parse_size(name)
    return name


SizeName = Annotated[str, AfterValidator(_known_size)]


def _known_projection(name: str) -> str:
    if name not in PROJECTIONS:
        raise ValueError(f"projection '{name[:40]}' is not one of {', '.join(PROJECTIONS)}")
    return name


ProjectionName = Annotated[str, AfterValidator(_known_projection)]


def _canonical_scale(text: str) -> str:
    return str(parse_scale(text))


ScaleText = Annotated[str, AfterValidator(_canonical_scale)]
"""gradient(a) or fisher(a); spellings of one scale become the same text."""

Adapted = Literal["lora", "weights", "vectors", "cores"]
ADAPTED: tuple[Adapted, ...] = get_args(Adapted)


def named_part(name: str) -> tuple[Adapted, str]:
    """Split a name <adapt>-<projection> into its two parts. ValueError for any other name."""
    head, _, projection = name.partition("-")
    for adapt in ADAPTED:
        if adapt == head and projection in PROJECTIONS:
            return adapt, projection
    raise ValueError(f"'{name[:40]}' is not <adapt>-<projection> of {', '.join(ADAPTED)} and {', '.join(PROJECTIONS)}")


def is_whole(name: str) -> bool:
    """Return whether every parameter is trained by itself under that name, without a subspace."""
    return named_part(name)[1] == IDENTITY


def part_rank(name: str) -> tuple[int, int]:
    """Return a sort key for names of what is trained: adapters before weights, all parameters after their subspaces."""
    adapt, projection = named_part(name)
    return ADAPTED.index(adapt), list(PROJECTIONS).index(projection)


def _known_part(name: str) -> str:
    named_part(name)
    return name


TrainedPart = Annotated[str, AfterValidator(_known_part)]
"""What is trained, <adapt>-<projection>."""


class Model(Section):
    """GPT-2, computed by this library's own fast network; its weights come from base.

    A name in `size` (gpt2, gpt2-medium, gpt2-large, gpt2-xl, or 4x2x64: layers, heads, width) may replace
    n_layer, n_head and n_embd.
    """

    kind: Literal["gpt2"]
    """GPT-2."""
    n_layer: Annotated[LayerCount, Mark(decoder=True)]
    """Transformer blocks."""
    n_head: Annotated[Extent, Mark(decoder=True)]
    """Attention heads per block; divides n_embd."""
    n_embd: Annotated[Extent, Mark(decoder=True)]
    """Width of the residual stream."""
    context_length: Annotated[Extent, Mark(decoder=True)]
    """Tokens of a window, and positions that have an embedding."""
    init_std: PositiveFloat = 0.02
    """Standard deviation of the frozen weights; 0.02 in GPT-2."""

    @model_validator(mode="before")
    @classmethod
    def _size_by_name(cls, values: Any) -> Any:
        """`size` in place of the three numbers that it stands for."""
        if not isinstance(values, dict) or "size" not in values:
            return values
        shape = parse_size(str(values["size"]))._asdict()
        if twice := sorted(shape.keys() & values.keys()):
            raise ValueError(f"size '{values['size']}' already says {', '.join(twice)}; give one or the other")
        return {key: value for key, value in values.items() if key != "size"} | shape

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: Any) -> dict[str, Any]:
        """With `size`, which the validator takes apart before any field is looked at."""
        schema: dict[str, Any] = handler.resolve_ref_schema(handler(core_schema))
        shape = list(Size._fields)
        schema["properties"]["size"] = {
            "description": "In place of n_layer, n_head and n_embd: the name of a published size, or LxHxW.",
            "pattern": f"^({'|'.join(PUBLISHED)}|{FREE.pattern})$",
            "title": "Size",
            "type": "string",
        }
        schema["required"] = [key for key in schema["required"] if key not in shape]
        schema["oneOf"] = [{"required": shape}, {"required": ["size"]}]
        return schema

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "Model":
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        return self


class HuggingFaceModel(Section):
    """Any causal language model that transformers loads; architecture and weights are those of a pretrained base."""

    kind: Annotated[Literal["huggingface"], Mark(decoder=True)]
    """A causal language model of transformers."""
    n_layer: Annotated[LayerCount, Mark(decoder=True)]
    """Layers, as config.json counts them: one gate each where the allocation is learned."""
    context_length: Annotated[Extent, Mark(decoder=True)]
    """Tokens of a window; at most what the model was made for."""


AnyModel = Annotated[Model | HuggingFaceModel, Field(discriminator="kind")]

BLOCK_TARGETS = ("query", "value", "mlp_in", "mlp_out")
"""Linear maps of a block of GPT-2 that can have adapters: two projections of the attention, and the MLP's two maps."""
HEAD_TARGET = "head"


class Lora(Section):
    """Low-rank adapters on the frozen weights: W x + (alpha / rank) B A x."""

    rank: Annotated[Extent, Mark(decoder=True, premise=True)] = 4
    """r, the inner dimension of B A."""
    alpha: Annotated[PositiveFloat, Mark(decoder=True, premise=True)] = 16.0
    """Adapters are scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0), Mark(claim="no_effect")] = 0.0
    """Dropout on the input of an adapter during training."""
    targets: Annotated[tuple[str, ...], Field(min_length=1, max_length=1000), Mark(decoder=True)]
    """Linear maps that have adapters. GPT-2: query and value projections and the two maps of the MLP (mlp_in, mlp_out)
    of every block, and the LM head. A model of transformers: names or shell-style patterns of its linear maps, for
    example q_proj, and head."""
    init: Annotated[Literal["zero_b", "both_random"], Mark(decoder=True, premise=True)] = "zero_b"
    """zero_b: A random, B zero, so that only B learns at first; both_random: both random, and their product is
    subtracted from the frozen weight. Either way training starts from the base model."""


class SubspaceSettings(Section):
    """What is trained, and through which projection."""

    adapt: Annotated[Adapted, Mark(premise=True)] = "lora"
    """Which parameters w stands for. lora: the matrices of section lora, beside frozen weights; weights: every weight
    of the network, which starts from the base, and no adapters; vectors: those of one dimension alone, the gains and
    biases of its norms and the biases of its linear maps; cores: an r x r matrix for each adapter of section lora,
    between the r largest singular vectors of the frozen weight (LoRA-XS), and no lora.init."""
    projection: Annotated[ProjectionName, Mark(decoder=True, premise=True)] = "kronecker_qr"
    """How w is mapped to the parameters; kronecker_qr: Kronecker products of orthonormal factors; kronecker_feistel:
    the same for many million parameters, with a permutation that is not stored; identity: no subspace, w is the
    parameters' difference from their start, and grid.budgets is [all]."""
    projection_seed: NonNegativeInt = 137
    """Seed of the projection, combined with the seed of the run."""
    scale: Annotated[ScaleText | None, Mark("train", decoder=True, premise=True, null_counts=False)] = None
    """Scales s of the subspace, theta = init + s * P w, with mean square 1, from the gradient of the base on its own
    corpus; needs base.kind trained. gradient(a): one scale for each trained matrix, proportional to g^a with g the root
    mean square of its gradient; fisher(a): one for each input of an A and output of a B, proportional to F^a with F the
    mean square of its gradient; -2 <= a <= 2. null: none."""

    @model_serializer(mode="wrap")
    def _without_a_null_scale(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out a null: certificates from before there was the key keep their bytes."""
        values: dict[str, Any] = handler(self)
        return {key: value for key, value in values.items() if key != "scale" or value is not None}


class Gating(Section):
    """The learned allocation: soft masks that narrow, then hard splits."""

    sharing: Annotated[Literal["shared", "per_layer"], Mark(decoder=True)] = "shared"
    """shared: every gate splits all of w; per_layer: each gate splits its layer's (or the head's) own part of w."""
    learning_rate: Annotated[PositiveFloat, Mark(claim="no_effect")] = 0.05
    """Peak learning rate of the gates."""
    mask_width_start: Annotated[PositiveFloat, Mark(claim="no_effect")] = 0.25
    """Temperature tau of the mask at the first step, as a share of the coordinates that a gate splits."""
    mask_width_end: Annotated[PositiveFloat, Mark(claim="no_effect")] = 0.3
    """Temperature tau, in coordinates, at the end of the soft phase."""
    soft_fraction: Annotated[float, Field(gt=0.0, lt=1.0), Mark(claim="no_effect")] = 0.5
    """Share of the steps with soft masks; the rest trains with the hard split."""
    trace_interval_steps: Annotated[PositiveInt, Mark(claim="no_effect")] = 10
    """Steps between rows of gating_trace.csv, over which a row's gradient_snr is taken."""
