"""Two datasets that share no text: the one that a base is trained on, and the target, which the bounds are about.

A base that was trained on documents of the target's sample would not be fixed before the sample is drawn. Base and
target therefore come from corpora without common sources, and a text that still occurs in both is left out of the
target's train, val and test documents alike. Every text of the base's corpus counts, also one that is too short for
the base's dataset or that is neither in its train nor in its val split.
"""

from pathlib import Path

from pydantic import ValidationError

from sublora import config
from sublora.config.loading import describe
from sublora.data.dataset import PREPARE_AGAIN, TokenDataset
from sublora.data.meta import META_FILE
from sublora.data.text_keys import TEXT_KEYS_FILE, TextKeys
from sublora.system.errors import UserError


def base_data(settings: config.Settings) -> config.Data:
    """Settings of the dataset that the base is trained on, for `TokenDataset.open`.

    Tokenizer, seed, workers and `min_tokens` are the target's. Documents are not grouped: nothing is claimed of them.
    One document is test: nothing reads it.

    Raises UserError if the settings contradict each other, and ValueError if the base is not trained.
    """
    base = settings.base
    if not isinstance(base, config.TrainedBase):
        raise ValueError("the base is not trained here and has no dataset")
    values = {key: getattr(settings.data, key) for key in config.Data.model_fields}
    own = {key: getattr(base, key) for key in ("name", "corpus", "min_characters", "val_documents")}
    try:
        fixed = {"unit": "document", "test_documents": 1, "max_characters": None, "permute": None}
        return config.Data.model_validate(values | own | fixed)
    except ValidationError as error:
        raise UserError(f"base: {describe(error, config.Data.model_json_schema())}") from None


def open_text_keys(settings: config.Settings, root: Path) -> TextKeys:
    """Keys of all texts in the base's corpus; UserError if the base's dataset is not prepared or is another."""
    dataset = TokenDataset.open(root, base_data(settings))
    facts = dataset.meta["provenance"].get("text_keys")
    if facts is None:
        raise UserError(f"{dataset.folder / META_FILE}: lacks provenance.text_keys; {PREPARE_AGAIN}")
    return TextKeys.open(dataset.folder / TEXT_KEYS_FILE, shuffle_seed=settings.data.shuffle_seed, **facts)


def open_target(settings: config.Settings, root: Path) -> TokenDataset:
    """The dataset that the bounds are about; where the base is trained, one without the texts of the base's corpus.

    Raises UserError where `TokenDataset.open` does, and if the texts that were left out are not those of the base that
    the settings describe, as it is prepared now.
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
    return "the texts of no other corpus" if sha256 is None else f"the texts of the base's corpus (keys {sha256})"
