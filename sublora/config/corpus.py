"""Where documents come from, how they are split and tokenized."""

import abc
import sys
from os.path import normpath
from pathlib import PurePath
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from sublora.config.section import LONGEST_LIST, Mark, Section
from sublora.system.validation import NonNegativeInt, PositiveInt

STDLIB = "stdlib"
SAME = "all of their documents"
"""What a corpus has in common with itself."""

Unit = Literal["document", "source"]


class AnyCorpus(Section, abc.ABC):
    """Base of the kinds of corpora: what the other settings ask of each."""

    has_sources: ClassVar[bool] = False
    """Whether the reader names the source of every document, so that sources can be drawn beside documents."""

    @abc.abstractmethod
    def overlap(self, other: Section) -> str | None:
        """Say what this corpus and another have in common, None if nothing is known; asked of both of them."""

    def unit_complaint(self, unit: Unit) -> str | None:
        """Return why documents cannot be grouped as `unit` says, None if they can."""
        if unit == "source":
            return self._no_sources()
        field = getattr(self, "unit_field", None)
        if field is None:
            return None
        return f"corpus.unit_field '{field}' has no effect with unit: document; set it to null"

    def _no_sources(self) -> str | None:
        """Return why documents have no sources to be grouped by, None if they have."""
        return None

    def token_complaint(self, tokenizer: str, smallest: dict[str, int]) -> str | None:
        """Return why a tokenizer, or one of these smallest lengths by key, does not fit; None if they do."""
        return None


class HuggingFaceCorpus(AnyCorpus):
    """A dataset of the Hugging Face hub, read from its parquet files."""

    kind: Literal["huggingface"]
    """A dataset of the Hugging Face hub."""
    dataset: str
    """Identifier on the hub, or a folder of parquet files (relative to the folder above config/, or absolute)."""
    revision: str = "refs/convert/parquet"
    """Branch or commit; refs/convert/parquet is the hub's own parquet conversion."""
    split: str = "train"
    """Split of the dataset, for example train."""
    text_field: str = "text"
    """Column of the text."""
    unit_field: str | None = None
    """Column of text or whole numbers that names the source of a document; given if and only if data.unit is source."""

    def overlap(self, other: Section) -> str | None:
        if not isinstance(other, HuggingFaceCorpus):
            return None
        same = (self.dataset, self.split) == (other.dataset, other.split)
        return f"the split {self.split} of {self.dataset}" if same else None

    def _no_sources(self) -> str | None:
        if self.unit_field is not None:
            return None
        return "unit: source needs corpus.unit_field, the column that names the source of a document; found null"


class FolderCorpus(AnyCorpus):
    """A folder of .txt files (one document each), .jsonl and .ndjson files (one document per line), and .csv and
    .parquet files (one document per row).

    All but .parquet may be compressed (.gz, .bz2, .xz, .zst). Linked folders are read, each once. Other files are not
    read, and `sublora prepare` names them.
    """

    kind: Literal["folder"]
    """Text files."""
    path: str
    """The folder, or one file of these kinds; relative to the folder above config/, or absolute."""
    text_field: str = "text"
    """Key of the text in a line, or the column of the text."""
    unit_field: str | None = None
    """Key or column of the text or whole number that names the source of a line or row, for data.unit: source; a .txt
    file is its own source. null with data.unit: document, and for a folder that has only .txt files."""

    def overlap(self, other: Section) -> str | None:
        if not isinstance(other, FolderCorpus):
            return None
        first, second = PurePath(normpath(self.path)), PurePath(normpath(other.path))
        apart = not (first.is_relative_to(second) or second.is_relative_to(first))
        return None if apart else f"the folder {max(first, second, key=lambda path: len(path.parts))}"


class PackageCorpus(AnyCorpus):
    """Base of the corpora made of the source files of Python packages."""

    packages: Annotated[tuple[str, ...], Field(min_length=1, max_length=LONGEST_LIST)]
    """Import names; 'stdlib' is the standard library."""

    has_sources: ClassVar[bool] = True

    def overlap(self, other: Section) -> str | None:
        if not isinstance(other, PackageCorpus):
            return None
        shared = sorted(
            _shared_packages(self.packages, other.packages) | _shared_packages(other.packages, self.packages)
        )
        return f"the packages {', '.join(shared)}" if shared else None


class DocstringCorpus(PackageCorpus):
    """Docstrings of the standard library and of installed packages, read without importing them.

    Folders named test or tests are left out: some installers strip them.
    """

    kind: Literal["docstrings"]
    """Docstrings of Python packages."""


class FunctionCorpus(PackageCorpus):
    """Functions and methods of the standard library and of installed packages, docstrings cut out.

    Files are found as for a docstring corpus. A nested function is part of the function around it.
    """

    kind: Literal["functions"]
    """Source text of Python functions."""


class JsonDocumentationCorpus(AnyCorpus):
    """Documentation strings in the JSON files of a wheel, HTML tags taken out; each text once."""

    kind: Literal["json_documentation"]
    """Documentation in JSON files of a wheel."""
    wheel: Annotated[str, Field(min_length=1)]
    """The .whl file, or another zip archive; relative to the folder above config/, or absolute."""
    without: str | None = None
    """An earlier wheel, whose texts are left out; null: none."""
    pattern: Annotated[str, Field(min_length=1)]
    """Shell-style pattern of the files' names in the archive; .gz files are unpacked."""
    key: Annotated[str, Field(min_length=1)]
    """Key of the text, at any depth of a file."""
    source_depth: PositiveInt
    """Number of leading parts of a file's path in the archive that name the source of its texts."""

    has_sources: ClassVar[bool] = True

    def overlap(self, other: Section) -> str | None:
        return SAME if self == other else None


class MarkovCorpus(AnyCorpus):
    """Independent documents of a Markov chain whose entropy rate is known: a source to test bounds against.

    A symbol is one ASCII byte, so the tokenizer must be 'bytes'. No document may occur twice, or deduplication
    would make the documents dependent: lengths too short for that are refused when the corpus is read.
    """

    kind: Literal["markov"]
    """A synthetic source of known entropy."""
    symbols: Annotated[int, Field(ge=2, le=94)]
    """Size of the alphabet."""
    concentration: Annotated[float, Field(ge=0.05, allow_inf_nan=False)]
    """Each row of the transition matrix is drawn from a symmetric Dirichlet distribution with this parameter."""
    documents: PositiveInt
    """Documents of the corpus, before it is split."""
    min_length: PositiveInt
    """Shortest document, in symbols; lengths are uniform on min_length ... max_length."""
    max_length: PositiveInt
    """Longest document, in symbols."""
    seed: NonNegativeInt
    """Seed of the transition matrix and of the documents."""

    @model_validator(mode="after")
    def _lengths_in_order(self) -> "MarkovCorpus":
        if self.min_length > self.max_length:
            raise ValueError(f"min_length {self.min_length} exceeds max_length {self.max_length}")
        return self

    def overlap(self, other: Section) -> str | None:
        return SAME if self == other else None

    def _no_sources(self) -> str | None:
        return "the documents of a markov corpus are independent and have no sources; set unit: document"

    def token_complaint(self, tokenizer: str, smallest: dict[str, int]) -> str | None:
        if tokenizer != "bytes":
            return f"a markov corpus needs tokenizer 'bytes', found '{tokenizer}'"
        too_long = [f"{key} {length}" for key, length in smallest.items() if length > self.min_length]
        return f"{too_long[0]} exceeds corpus.min_length {self.min_length}" if too_long else None


Corpus = Annotated[
    HuggingFaceCorpus | FolderCorpus | DocstringCorpus | FunctionCorpus | JsonDocumentationCorpus | MarkovCorpus,
    Field(discriminator="kind"),
]

DatasetName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
"""Name of a folder in data/."""


def kinds_with_sources() -> tuple[str, ...]:
    """Return the kinds whose readers name the source of every document, in the order of the union."""
    kinds = get_args(get_args(Corpus)[0])
    return tuple(get_args(kind.model_fields["kind"].annotation)[0] for kind in kinds if kind.has_sources)


def _shared_packages(first: tuple[str, ...], second: tuple[str, ...]) -> set[str]:
    """Return the packages of the first list that the second contains, by name or as a part of the standard library."""
    return {name for name in first if name in second or (STDLIB in second and name in sys.stdlib_module_names)}


IN_EVERY_BOUND = Mark("data", "train", "score", "yardsticks", "bound", decoder=True, premise=True)


class Data(Section):
    """Where documents come from and how they are split and tokenized."""

    name: Annotated[DatasetName, Mark(claim="population")]
    """Files lie in data/{name}/."""
    corpus: Annotated[Corpus, Mark(claim="population", premise=True)]
    """Where the documents come from."""
    unit: Annotated[Unit, IN_EVERY_BOUND]
    """What is drawn independently from the population, and what n counts. document: each document. source: the group
    that a document belongs to, fixed before the sample: the source file of docstrings and functions, the .txt file, the
    value of corpus.unit_field, the leading parts of a path in a wheel. A unit's loss is the mean over its documents,
    and no unit is split between train, val and test. A text that occurs in several sources stays with one of them; the
    claim is about sources without the texts that others keep."""
    tokenizer: Annotated[Literal["gpt2", "bytes", "base"], Mark("data", "base", "train")]
    """gpt2: byte-pair encoding, 50,257 tokens; bytes: 256 values and the end-of-text token; base: that of the
    pretrained base, byte-level byte-pair encoding."""
    min_characters: Annotated[int, Field(ge=1)] = 1
    """Shorter documents are left out."""
    max_characters: PositiveInt | None = None
    """Longer documents are not in the population; null: there is no limit."""
    min_tokens: Annotated[PositiveInt, IN_EVERY_BOUND]
    """Documents with fewer tokens, end-of-text not counted, are not in the population. The smallest number of scored
    targets is T_min = min_tokens + 1, which sets the range of the document mixture's loss."""
    val_documents: PositiveInt
    """Documents used for every choice made after looking at losses. With unit: source, whole units are taken until
    they hold at least this many documents; the same goes for every other number of val or test documents."""
    test_documents: PositiveInt
    """Documents whose losses are only ever reported."""
    train_documents: Annotated[PositiveInt | None, Mark(null_counts=False)] = None
    """n, for a study of how it matters: as many documents to train on, with unit: source as many units, whatever they
    hold (a unit is taken whole, and stopping at a number of documents would favour large ones). They come first in the
    order of the split, so val and test stay as they are, and the documents of a smaller number are among those of a
    larger one. Fewer than that many are refused. null: all that val and test leave."""
    shuffle_seed: Annotated[NonNegativeInt, Mark("data", "base", "train")] = 2357
    """Key of the hash of a text that decides whether it goes to train, val or test; with unit: source, key of two
    hashes of a source's name, one for which source keeps a text that several share, one for the split."""
    permute: Annotated[Literal["words", "tokens"] | None, Mark(claim="population", premise=True, null_counts=False)] = (
        None
    )
    """Control: puts what stands in a document into another order, by a permutation keyed with shuffle_seed and the
    document's text. words: what white space separates, which stays where it is; tokens: tokens. A model of text must
    lose by it, and with it the bound. Splits are those of the documents as they were. The corpus of a trained base
    stays in order. null: documents as they are."""
    workers: Annotated[PositiveInt, Mark(no_stage=True, claim="no_effect")] = 2
    """Processes that tokenize; does not change the result."""
    near_duplicates: Annotated[bool, Mark(no_stage=True, claim="no_effect")] = False
    """Whether the report says how many near duplicates there are and how much the bounds owe to them; `sublora
    duplicates` measures it in any case."""

    @model_serializer(mode="wrap")
    def _as_before_the_cap(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out a null train_documents, so that files written before the key was added keep their bytes."""
        values: dict[str, Any] = write(self)
        if self.train_documents is None:
            values.pop("train_documents", None)
        return values

    @property
    def knows_sources(self) -> bool:
        """Whether the dataset says which documents are of one source."""
        return self.unit == "source" or self.corpus.has_sources

    @model_validator(mode="after")
    def _lengths_in_order(self) -> "Data":
        if self.max_characters is not None and self.max_characters < self.min_characters:
            raise ValueError(f"max_characters {self.max_characters} is below min_characters {self.min_characters}")
        return self

    @model_validator(mode="after")
    def _documents_have_units(self) -> "Data":
        complaint = self.corpus.unit_complaint(self.unit)
        if complaint:
            raise ValueError(complaint)
        return self

    @model_validator(mode="after")
    def _tokens_fit_the_corpus(self) -> "Data":
        smallest = {"min_characters": self.min_characters, "min_tokens": self.min_tokens}
        complaint = self.corpus.token_complaint(self.tokenizer, smallest)
        if complaint:
            raise ValueError(complaint)
        return self
