"""Two datasets without common text: one that a base is trained on, and the target, which the bounds are about.

A base that was trained on documents of the target's sample would not be fixed before the sample is drawn. Base and
target therefore come from corpora without common sources, and a text that still occurs in both is left out of the
target's train, val and test documents. Every text of the base's corpus counts, including texts that are too short for
the base's dataset and texts in none of its splits.

The base's dataset keeps the keys of its corpus's texts: sorted 16-byte digests in a file. They are the keys that order
documents (`sublora.data.order.document_key`), so two corpora can be compared only under the same shuffle seed. Two
different texts have the same key with probability 2^-128.
"""

import bisect
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from sublora import config
from sublora.data.dataset import TokenDataset
from sublora.data.dataset_files import META_FILE, PREPARE_AGAIN
from sublora.system.errors import UserError
from sublora.system.files import sha256_of_file
from sublora.system.validation import describe

KEY_BYTES = 16
TEXT_KEYS_FILE = "text_keys.bin"


@dataclass(frozen=True)
class TextKeys:
    """A file of distinct keys, ascending."""

    path: Path
    shuffle_seed: int
    """The seed that the keys were made with."""
    texts: int
    """Number of keys."""
    sha256: str
    """The sha256 of the file, in hexadecimal."""

    @classmethod
    def open(cls, path: Path, *, shuffle_seed: int, texts: int, sha256: str) -> "TextKeys":
        """Open a file of keys with known contents; UserError if the file is missing or has other contents."""
        if not path.is_file():
            raise UserError(f"{path}: no such file; {PREPARE_AGAIN}")
        found = sha256_of_file(path)
        if (found, path.stat().st_size) != (sha256, texts * KEY_BYTES):
            raise UserError(
                f"{path}: {path.stat().st_size} bytes of sha256 {found}, expected {texts} keys of {KEY_BYTES} bytes of "
                f"sha256 {sha256}; {PREPARE_AGAIN}"
            )
        return cls(path, shuffle_seed, texts, sha256)

    def facts(self) -> dict[str, object]:
        """Return what meta.json holds about the keys."""
        return {"texts": self.texts, "sha256": self.sha256}

    def starting_with(self, byte: int) -> set[bytes]:
        """Return the keys with this first byte, about 1/256 of all."""
        with open(self.path, "rb") as handle:

            def first_byte(index: int) -> int:
                handle.seek(index * KEY_BYTES)
                return handle.read(1)[0]

            first = bisect.bisect_left(range(self.texts), byte, key=first_byte)
            end = bisect.bisect_right(range(self.texts), byte, lo=first, key=first_byte)
            handle.seek(first * KEY_BYTES)
            data = handle.read((end - first) * KEY_BYTES)
        return {data[start : start + KEY_BYTES] for start in range(0, len(data), KEY_BYTES)}


def write_text_keys(path: Path, sorted_keys: Iterable[bytes]) -> dict[str, object]:
    """Write ascending keys, and return the facts of the file as `TextKeys.facts` does."""
    digest = hashlib.sha256()
    texts = 0
    with open(path, "wb", buffering=1 << 20) as handle:
        for key in sorted_keys:
            handle.write(key)
            digest.update(key)
            texts += 1
    return {"texts": texts, "sha256": digest.hexdigest()}


def base_data(settings: config.Settings) -> config.Data:
    """Return the settings of the dataset that the base is trained on, for `TokenDataset.open`.

    Tokenizer, seed, workers and `min_tokens` are the target's. Documents are not grouped, since no claim is made about
    them. One document goes to test, which nothing reads.

    Raises UserError if the settings contradict each other, and ValueError if the base is not trained.
    """
    base = settings.base
    if not isinstance(base, config.TrainedBase):
        raise ValueError("the base is not trained here and has no dataset")
    values = {key: getattr(settings.data, key) for key in config.Data.model_fields}
    own = {key: getattr(base, key) for key in ("name", "corpus", "min_characters", "val_documents")}
    try:
        fixed = {"unit": "document", "test_documents": 1}
        fixed |= dict.fromkeys(("train_documents", "max_characters", "permute"))
        return config.Data.model_validate(values | own | fixed)
    except ValidationError as error:
        raise UserError(f"base: {describe(error, config.Data.model_json_schema())}") from None


def open_text_keys(settings: config.Settings, root: Path) -> TextKeys:
    """Open the keys of all texts in the base's corpus.

    UserError if the base's dataset is not prepared, or was prepared from other settings.
    """
    dataset = TokenDataset.open(root, base_data(settings))
    facts = dataset.meta.provenance.text_keys
    if facts is None:
        raise UserError(f"{dataset.folder / META_FILE}: lacks provenance.text_keys; {PREPARE_AGAIN}")
    return TextKeys.open(dataset.folder / TEXT_KEYS_FILE, shuffle_seed=settings.data.shuffle_seed, **facts.model_dump())


def open_target(settings: config.Settings, root: Path) -> TokenDataset:
    """Open the dataset that the bounds are about; with a trained base, the one without the base's texts.

    Raises UserError where `TokenDataset.open` does, and if the texts that were left out are not those of the base's
    corpus as the settings describe it and as it is prepared now.
    """
    dataset = TokenDataset.open(root, settings.data)
    trained = isinstance(settings.base, config.TrainedBase)
    expected = open_text_keys(settings, root).sha256 if trained else None
    if dataset.excluded_texts != expected:
        raise UserError(
            f"{dataset.folder / META_FILE}: made without {_texts(dataset.excluded_texts)}, expected without "
            f"{_texts(expected)}, as section base of the settings says; {PREPARE_AGAIN}"
        )
    return dataset


def _texts(sha256: str | None) -> str:
    """Return in words which texts a dataset was made without."""
    return "the texts of no other corpus" if sha256 is None else f"the texts of the base's corpus (keys {sha256})"
