"""Sizes of GPT-2 by name, and the number of their parameters."""

import re
from typing import Annotated, NamedTuple

from pydantic import AfterValidator


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
    """The size of that name: a published one, or <layers>x<heads>x<width>. ValueError if it is none."""
    if name in PUBLISHED:
        return PUBLISHED[name]
    found = FREE.fullmatch(name)
    if found is None:
        raise ValueError(
            f"size '{name}' is none of {', '.join(PUBLISHED)} or <layers>x<heads>x<width> (for example 4x2x64)"
        )
    size = Size(*map(int, found.groups()))
    if size.n_embd % size.n_head:
        raise ValueError(f"size '{name}': width {size.n_embd} is not a multiple of {size.n_head} heads")
    return size


def _known(name: str) -> str:
    parse_size(name)
    return name


SizeName = Annotated[str, AfterValidator(_known)]
