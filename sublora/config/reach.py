"""Which stages of the pipeline a key reaches, said beside the key.

A key or a section is annotated with `Reaches`; a key without a mark of its own has that of the section around it.
`stage_settings` reads the marks: they decide which change of the settings reruns which stage.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

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
