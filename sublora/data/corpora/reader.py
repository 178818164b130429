"""The interface of a reader of a corpus, and of the batches into which it cuts the corpus.

A reader's batches are cheap to make and to send to another process, where `Batch.read` does the work. The order of
batches and documents does not matter: `sublora.data.prepare` orders documents by a keyed digest of their text.

This module knows no particular reader; `sublora.data.corpora` registers them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

BATCH_CHARACTERS = 1 << 20
"""A batch of texts is closed once it holds this many characters."""


class Texts(NamedTuple):
    """The contents of a batch."""

    documents: list[str]
    unparsable_files: int = 0
    """Source files left out because they are not valid Python of this interpreter's version."""
    sources: list[str | None] | None = None
    """Name of each document's source, such as its file; None, for one document or for all, if it is not known."""


class Batch(Protocol):
    """A part of a corpus that can be pickled."""

    def __len__(self) -> int:
        """Return the number of units of work, as the reader counts them."""
        ...

    def read(self) -> Texts:
        """Read the texts."""
        ...


class Reader(Protocol):
    """An open corpus."""

    @property
    def where(self) -> str:
        """The corpus in words, for errors and progress."""
        ...

    @property
    def unit(self) -> str:
        """The unit in which `total` and the lengths of batches are counted."""
        ...

    @property
    def total(self) -> int | None:
        """The number of units in the corpus, None if only reading the corpus shows it."""
        ...

    def batches(self) -> Iterator[Batch]:
        """Yield the corpus in batches, in any order."""
        ...

    def provenance(self) -> dict[str, object]:
        """Return facts beyond the settings that identify the text, as JSON values without paths or times."""
        ...


@dataclass(frozen=True)
class TextBatch:
    """Texts that the reader has already loaded."""

    documents: list[str]
    sources: list[str | None] | None = None
    """As in `Texts`."""

    def __len__(self) -> int:
        return len(self.documents)

    def read(self) -> Texts:
        return Texts(self.documents, sources=self.sources)


def source_name(value: object) -> str | None:
    """Return the name of a source from the field that holds it; None if it is neither text nor a whole number.

    A whole number and its digits as text are one author, customer or file.
    """
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None


def batch_texts(documents: Iterable[tuple[str, str | None]]) -> Iterator[TextBatch]:
    """Group texts, each with the name of its source, so that a batch holds about BATCH_CHARACTERS characters."""
    texts: list[str] = []
    sources: list[str | None] = []
    characters = 0
    for text, source in documents:
        texts.append(text)
        sources.append(source)
        characters += len(text) + 1
        if characters >= BATCH_CHARACTERS:
            yield TextBatch(texts, sources)
            texts, sources, characters = [], [], 0
    if texts:
        yield TextBatch(texts, sources)
