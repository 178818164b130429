"""What every group of settings is made of: their base class, types of values, and the marks beside keys."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field
from pydantic.fields import FieldInfo

from sublora.bounds.smoothing_names import parse_name
from sublora.system.validation import Strict


class Section(Strict):
    """Base of all groups of settings."""


LARGEST_LAYERS = 1000
LayerCount = Annotated[int, Field(gt=0, le=LARGEST_LAYERS)]
LARGEST_BUDGET = 10**6
"""Coefficients of a message, as many as the codes hold (`sublora.coding.magnitudes.MAX_COEFFICIENTS`)."""
LONGEST_LIST = 10_000
"""Entries of a list in the settings: whoever is handed a certificate reads all of them."""
LARGEST_SIZE = 10**7
"""Largest width, rank, context, batch or draw in the settings."""
Extent = Annotated[int, Field(gt=0, le=LARGEST_SIZE)]
Budget = Annotated[int, Field(gt=0, le=LARGEST_BUDGET)]


def _canonical_smoothing(text: str) -> str:
    return str(parse_name(text))


SmoothingName = Annotated[str, AfterValidator(_canonical_smoothing)]
"""token(a) or document(k); spellings of one smoothing become the same text, and so the same digest."""


Stage = Literal["data", "base", "train", "score", "yardsticks", "bound"]
STAGES: tuple[Stage, ...] = get_args(Stage)


ClaimPart = Literal["charged", "condition", "population", "source_bound", "no_effect"]
"""What a key is to the claim that a bound makes.

charged      picks the predictor or the sample; `bound_strict` pays for its difference from a reference
condition    what the bound promises, or has paid for; has to fit the reference (`claim.unfit`), and is not charged
population   names the population and the base that the claim is about. It picks the sample (data.corpus) and the
             hypothesis that w = 0 stands for (base.corpus), and no bound pays for that: a reader has to have named both
source_bound reaches the bound over source files alone, which `bound_strict` does not speak of
no_effect    by such keys messages are found and machines chosen: a bound holds whatever they are
"""


@dataclass(frozen=True, init=False)
class Mark:
    """What stands beside a key or a section: the stages that it reaches, and its part in decoder, claim and premises.

    What a key's marks leave open, those of the section around it decide. Several marks on one key add up.
    """

    stages: tuple[Stage, ...] | None
    """Stages that read the key themselves; what an earlier stage reads reaches them through its files. None: left open;
    empty: the key changes how fast or how visibly a stage runs, never its numbers."""
    when: Callable[[Any], bool] | None
    """The condition on the whole `Settings` (not importable here) under which `stages` counts; None: always."""
    claim: ClaimPart | None
    """What the key is to the claim; None: left open, and charged where the section leaves it open, too."""
    decoder: bool
    """Whether the decoded predictor, or the draw of documents, depends on the value itself."""
    premise: bool
    """Whether the key is shown with every verdict of `sublora verify`."""
    null_counts: bool
    """Whether a null is among the settings of a stage. Not for keys that were added later: results from before there
    was such a key stay valid."""

    def __init__(
        self,
        *stages: Stage,
        no_stage: bool = False,
        when: Callable[[Any], bool] | None = None,
        claim: ClaimPart | None = None,
        decoder: bool = False,
        premise: bool = False,
        null_counts: bool = True,
    ) -> None:
        object.__setattr__(self, "stages", stages if stages or no_stage else None)
        object.__setattr__(self, "when", when)
        object.__setattr__(self, "claim", claim)
        object.__setattr__(self, "decoder", decoder)
        object.__setattr__(self, "premise", premise)
        object.__setattr__(self, "null_counts", null_counts)


def marks_of(field: FieldInfo) -> list[Mark]:
    """All marks beside a key or a section."""
    return [mark for mark in field.metadata if isinstance(mark, Mark)]


def stage_marks(field: FieldInfo) -> list[Mark]:
    """The marks that say which stages a key or a section reaches; empty if that is left open."""
    return [mark for mark in marks_of(field) if mark.stages is not None]


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


def anchors_on_the_base(settings: Any) -> bool:
    """Whether the bound is anchored on the base."""
    return bool(settings.anchors_on_the_base)


def tokenizes_as_the_base(settings: Any) -> bool:
    """Whether the data are made with the tokenizer of the pretrained base."""
    return bool(settings.data.tokenizer == "base")
