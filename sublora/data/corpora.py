"""Where documents come from: a reader for each kind of corpus.

A reader cuts its corpus into batches that are cheap to make and to send to another process; `Batch.read` does
the work there. The order of batches and documents is of no meaning: `sublora.data.prepare` orders documents by
a keyed digest of their text.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from sublora import config

BATCH_CHARACTERS = 1 << 20
"""A batch of texts is closed once it holds this many characters."""


class Texts(NamedTuple):
    """What a batch holds."""

    documents: list[str]
    unparsable_files: int = 0
    """Source files left out because they are not valid Python of this interpreter's version."""


class Batch(Protocol):
    """A picklable part of a corpus."""

    def __len__(self) -> int:
        """Units of work, as the reader counts them."""

    def read(self) -> Texts: ...


class Reader(Protocol):
    """A corpus, opened."""

    where: str
    """The corpus in words, for errors and progress."""
    unit: str
    """What `total` and the lengths of batches count."""
    total: int | None
    """Units in the corpus, None where only reading it tells."""

    def batches(self) -> Iterator[Batch]: ...

    def provenance(self) -> dict[str, object]:
        """Facts beyond the settings that say which text this is, as JSON values without paths or times."""


@dataclass(frozen=True)
class TextBatch:
    """Texts that the reader has already loaded."""

    documents: list[str]

    def __len__(self) -> int:
        return len(self.documents)

    def read(self) -> Texts:
        return Texts(self.documents)


def batch_texts(documents: Iterable[str]) -> Iterator[TextBatch]:
    """Group texts so that a batch holds about BATCH_CHARACTERS characters."""
    batch: list[str] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document) + 1
        if characters >= BATCH_CHARACTERS:
            yield TextBatch(batch)
            batch, characters = [], 0
    if batch:
        yield TextBatch(batch)


def open_reader(corpus: config.Section, root: Path) -> Reader:
    """Reader of the corpus that settings describe; `root` is what relative paths are relative to.

    Raises UserError if the corpus cannot be found.
    """
    if isinstance(corpus, config.HuggingFaceCorpus):
        from sublora.data.huggingface import HuggingFaceReader

        return HuggingFaceReader(corpus, root)
    if isinstance(corpus, config.FolderCorpus):
        from sublora.data.folder import FolderReader

        return FolderReader(corpus, root)
    if isinstance(corpus, config.DocstringCorpus):
        from sublora.data.docstrings import DocstringReader

        return DocstringReader(corpus)
    if isinstance(corpus, config.MarkovCorpus):
        from sublora.data.markov import MarkovReader

        return MarkovReader(corpus)
    raise TypeError(f"no reader for {type(corpus).__name__}")
