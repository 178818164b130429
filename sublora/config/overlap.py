"""Whether the documents of a trained base and those of `data` can be set apart before anything is read."""

import sys
from os.path import normpath
from pathlib import PurePath

from sublora.config.base import TrainedBase
from sublora.config.data import (
    Corpus,
    Data,
    FolderCorpus,
    HuggingFaceCorpus,
    PackageCorpus,
    markov_complaint,
    unit_complaint,
)

STDLIB = "stdlib"


def complaints(base: TrainedBase, data: Data) -> list[str]:
    """What a trained base and `data` must not share, one line each; empty if they are apart."""
    complaint = markov_complaint(base.corpus, data.tokenizer, {"min_characters": base.min_characters})
    complaint = complaint or unit_complaint(base.corpus, "document")
    found = [f"base: {complaint}"] if complaint else []
    if base.name == data.name:
        found.append(f"base.name and data.name are both '{data.name}', but each needs a folder of its own in data/")
    overlap = _overlap(base.corpus, data.corpus)
    if overlap:
        found.append(f"base.corpus and data.corpus share {overlap}; the base must not have seen documents of data")
    return found


def _overlap(base: Corpus, data: Corpus) -> str | None:
    """What two corpora have in common, in words."""
    if isinstance(base, PackageCorpus) and isinstance(data, PackageCorpus):
        shared = sorted(_shared_packages(base.packages, data.packages) | _shared_packages(data.packages, base.packages))
        return f"the packages {', '.join(shared)}" if shared else None
    if isinstance(base, FolderCorpus) and isinstance(data, FolderCorpus):
        first, second = PurePath(normpath(base.path)), PurePath(normpath(data.path))
        apart = not (first.is_relative_to(second) or second.is_relative_to(first))
        return None if apart else f"the folder {max(first, second, key=lambda path: len(path.parts))}"
    if isinstance(base, HuggingFaceCorpus) and isinstance(data, HuggingFaceCorpus):
        same = (base.dataset, base.split) == (data.dataset, data.split)
        return f"the split {data.split} of {data.dataset}" if same else None
    return "all of their documents" if base == data else None


def _shared_packages(first: tuple[str, ...], second: tuple[str, ...]) -> set[str]:
    """Packages of the first list that the second contains, by name or as a part of the standard library."""
    return {name for name in first if name in second or (STDLIB in second and name in sys.stdlib_module_names)}
