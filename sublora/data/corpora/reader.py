"""What a reader of a corpus is, and the batches it cuts the corpus into.

A reader's batches are cheap to make and to send to another process; `Batch.read` does the work there. The order of
batches and documents is of no meaning: `sublora.data.prepare` orders documents by a keyed digest of their text.

This module knows no reader; `sublora.data.corpora` registers them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

BATCH_CHARACTERS = 1 << 20
"""A batch of texts is closed once it holds this many characters."""


class Texts(NamedTuple):
    """What a batch holds."""

    documents: list[str]
    unparsable_files: int = 0
    """Source files left out because they are not valid Python of this interpreter's version."""
    sources: list[str | None] | None = None
    """Name of the source of each document, such as its file; None, of one or of all, where the corpus knows none."""


class Batch(Protocol):
    """A picklable part of a corpus."""

    def __len__(self) -> int:
        """Units of work, as the reader counts them."""
        ...

    def read(self) -> Texts: ...


class Reader(Protocol):
    """A corpus, opened."""

    @property
    def where(self) -> str:
        """The corpus in words, for errors and progress."""
        ...

    @property
    def unit(self) -> str:
        """What `total` and the lengths of batches count."""
        ...

    @property
    def total(self) -> int | None:
        """Units in the corpus, None where only reading it tells."""
        ...

    def batches(self) -> Iterator[Batch]: ...

    def provenance(self) -> dict[str, object]:
        """Facts beyond the settings that say which text this is, as JSON values without paths or times."""
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
