"""Settings and data of the measurements: config/config.yaml at full size, random tokens in documents of natural length.

How fast a training or a scoring is does not depend on which tokens it reads, only on how many and in what documents.
"""

from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from rich.progress import Progress

from sublora import config
from sublora.data.dataset import TokenDataset, dataset_folder
from sublora.data.order import Spill, make_record
from sublora.data.tokenize import TokenizedBatch
from sublora.data.tokenizers import token_type, tokenizer_facts
from sublora.data.write import write_dataset
from sublora.system.streams import generator

CONFIG = Path(__file__).resolve().parents[1] / "config" / "config.yaml"

OPENWEBTEXT_MEAN_TOKENS = 1130.0
"""GPT-2 tokens of a document: 9.04e9 in the 8,013,769 documents of OpenWebText."""
LENGTH_SIGMA = 1.0
"""Standard deviation of the lengths' logarithm: web text is about lognormal, and this is a round number near it."""
LENGTH_LIMITS = (20, 100_000)


def document_lengths(count: int, *, mean_tokens: float = OPENWEBTEXT_MEAN_TOKENS) -> np.ndarray:
    """Lengths (count,) at evenly spaced quantiles of a lognormal distribution, clipped to LENGTH_LIMITS, ascending.

    Quantiles in place of draws: a small sample has about the distribution's share of long documents, and the same
    lengths on every machine.
    """
    normal = NormalDist(np.log(mean_tokens) - LENGTH_SIGMA**2 / 2, LENGTH_SIGMA)
    lengths = np.exp([normal.inv_cdf((i + 0.5) / count) for i in range(count)])
    return np.clip(np.rint(lengths), *LENGTH_LIMITS).astype(np.int64)


def evenly_spread(documents: list[np.ndarray], count: int) -> list[np.ndarray]:
    """`count` of the documents, at evenly spaced quantiles of their lengths."""
    ordered = sorted(documents, key=len)
    return [ordered[int((i + 0.5) / count * len(ordered))] for i in range(count)]


def settings_with(changes: dict[str, dict[str, Any]]) -> config.Settings:
    """The settings of config/config.yaml with changes by section."""
    values = config.load_settings(CONFIG).model_dump(mode="json")
    for section, keys in changes.items():
        values[section] |= keys
    return config.parse_settings(values, source=f"{CONFIG}, with the changes of the benchmark")


def write_random_dataset(root: Path, data: config.Data, lengths: np.ndarray) -> TokenDataset:
    """A dataset of documents of random tokens with these lengths, written as `sublora prepare` writes one."""
    folder = dataset_folder(root, data)
    folder.mkdir(parents=True)
    tokenizer = tokenizer_facts(data.tokenizer)
    dtype = token_type(tokenizer.vocab_size)
    with Spill(folder / "records") as spill, Progress(disable=True) as progress:
        for index, length in enumerate(lengths):
            tokens = generator("benchmark document", index).integers(0, tokenizer.eot_id, length, dtype=dtype)
            spill.add(make_record(tokens.tobytes(), tokens, data.shuffle_seed))
        counts = TokenizedBatch(units=len(lengths), documents=len(lengths))
        write_dataset(folder, data, tokenizer, spill, counts, {"text": "random tokens"}, progress)
    return TokenDataset.open(root, data)
