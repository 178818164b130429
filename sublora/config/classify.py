"""Settings of `sublora classify`: one classifier of sentences or pairs of sentences, adapted, encoded and bounded."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from sublora.config.loading import parse_section, read_values
from sublora.config.section import Section
from sublora.system.validation import NonNegativeFloat, PositiveFloat, PositiveInt, Probability


class ClassifyData(Section):
    """Labelled examples in a local file."""

    path: str
    """A .tsv or .jsonl file; relative paths start at the folder above config/."""
    task: Literal["qqp", "cola"]
    """qqp: columns question1, question2, is_duplicate; cola: sentence, label, or its own four without a header."""
    test_examples: PositiveInt
    """Examples set apart at random for the held-out bound; the others are the n."""
    shuffle_seed: Annotated[int, Field(ge=0)]
    max_tokens: PositiveInt
    """Longer inputs are cut."""
    broken_rows: Literal["refuse", "skip"] = "refuse"
    """What is done about rows with another number of cells, without a label of 0 or 1, or without proper text, as
    GLUE's own QQP file has some. refuse: all are named; skip: they are left out, counted in bounds.json, and the claim
    is about the others."""


class ClassifyModel(Section):
    """The frozen network, an encoder or a causal language model of transformers, with a new head for two classes."""

    path: str
    """Local folder with config.json, a tokenizer and, if pretrained, weights."""
    weights: Literal["pretrained", "random"]


class ClassifyAdapters(Section):
    """Arguments of sublora.wrap."""

    targets: Annotated[tuple[str, ...], Field(min_length=1)]
    rank: PositiveInt | None
    alpha: PositiveFloat
    budget: PositiveInt
    allocation: str
    seed: Annotated[int, Field(ge=0)]
    """Seed of the projection, of the head's random weights and of the batches."""


class ClassifyTraining(Section):
    """Adam with a cosine to zero on cross-entropy and the price of the message."""

    steps: PositiveInt
    batch_examples: PositiveInt
    learning_rate: PositiveFloat
    """Learning rate of w and the gates."""
    step_learning_rate: PositiveFloat
    """Learning rate of the logarithm of the quantization step."""
    price: NonNegativeFloat
    """What a bit of the message adds to the objective, in units of ln(2) / n nats."""
    round_from: Probability
    """Share of the steps after which w is rounded."""
    threads: PositiveInt
    """CPU threads."""


class ClassifyBound(Section):
    """The candidates for the bounded predictor, and the confidence."""

    delta: Probability
    """Failure probability of each bound, on the error and on the cross-entropy."""
    smoothing: Annotated[tuple[Probability, ...], Field(min_length=1)]
    """Candidates a of (1 - a) p + a / 2, without which the cross-entropy has no range; the message names the chosen."""
    extra_bits: NonNegativeFloat
    """log2 of the number of settings tried by hand on these data."""


class ClassifySettings(Section):
    """A whole settings file of `sublora classify`."""

    data: ClassifyData
    model: ClassifyModel
    adapters: ClassifyAdapters
    training: ClassifyTraining
    bound: ClassifyBound


def load_classify_settings(path: Path) -> ClassifySettings:
    """Read and check a settings file; UserError names the file, the key and the fix."""
    return parse_section(ClassifySettings, read_values(path), str(path))
