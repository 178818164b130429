"""The frozen network that is adapted: random, trained on documents set apart, or pretrained elsewhere."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, WithJsonSchema

from sublora.config.corpus import Corpus, DatasetName
from sublora.config.section import Mark, Section, tokenizes_as_the_base
from sublora.config.training import Optimization
from sublora.system.validation import NonNegativeInt, PositiveInt


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("blank; say in words what is known, because the bound depends on it")
    return text


Statement = Annotated[str, AfterValidator(_not_blank), WithJsonSchema({"type": "string", "pattern": r"\S"})]


BASE_KIND = Mark("base", "train", "yardsticks", decoder=True, premise=True)


class RandomBase(Section):
    """Weights drawn from the seed of the run: independent of every document."""

    kind: Annotated[Literal["random"], BASE_KIND]
    """Weights drawn from the seed of the run."""


class TrainedBase(Optimization):
    """All weights, trained once for all runs on a separate corpus that shares no source with data.corpus.

    It uses data.tokenizer and data.shuffle_seed, and model for its shape. Texts that occur in both corpora are dropped
    from the documents of `data`.
    """

    kind: Annotated[Literal["trained"], BASE_KIND]
    """Weights trained in the workflow."""
    name: Annotated[DatasetName, Mark("base", "data", claim="population")]
    """Files lie in data/{name}/; the trained weights in results/base/."""
    corpus: Annotated[Corpus, Mark("base", "data", claim="population")]
    """Where the documents of the base come from."""
    min_characters: Annotated[PositiveInt, Mark("base", "data")]
    """Shorter documents are left out."""
    val_documents: Annotated[PositiveInt, Mark("base", "data")]
    """Documents on which the best step is chosen."""
    seed: NonNegativeInt
    """Seed of the initial weights and of the batches."""
    threads: PositiveInt = 1
    """CPU threads of the training."""


class Independence(Section):
    """Why a pretrained base was fixed without the documents of `data`: stored in the certificate, not checked."""

    training_cutoff: Statement
    """When the collection of the base's training data ended."""
    document_dates: Statement
    """When the documents of `data` were written."""
    how_checked: Statement
    """How it was checked that none of them is among the base's training data."""


TOKENIZES = Mark("data", when=tokenizes_as_the_base)


class PretrainedBase(Section):
    """Weights trained elsewhere."""

    kind: Annotated[Literal["pretrained"], BASE_KIND]
    """Weights from a folder or from the Hugging Face hub."""
    path: Annotated[str, Field(min_length=1), Mark("base", "train"), TOKENIZES]
    """A folder (relative to the folder above config/, or absolute) with config.json and safetensors or with a .gguf
    file, or a hub id."""
    revision: Annotated[str | None, Mark("base", "train"), TOKENIZES] = None
    """Branch, tag or commit on the hub; null for a folder."""
    independence: Annotated[Independence, Mark("score", "bound", claim="population")]
    """The assumption under which the bound holds."""


Base = Annotated[RandomBase | TrainedBase | PretrainedBase, Field(discriminator="kind")]
