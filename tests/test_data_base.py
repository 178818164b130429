"""Base and target share no text."""

import hashlib
import json
import shutil

import numpy as np
import pytest
from conftest import PRETRAINED, TINY, TRAINED, demo_values, merged
from data_samples import FOLDER, folder_data, markov_corpus, write_documents

from sublora import config
from sublora.data import order as order_module
from sublora.data.base_and_target import (
    KEY_BYTES,
    TEXT_KEYS_FILE,
    TextKeys,
    base_data,
    open_target,
    open_text_keys,
    write_text_keys,
)
from sublora.data.dataset import TokenDataset
from sublora.data.dataset_files import FILES, META_FILE, SPLITS
from sublora.data.order import Spill, document_key, make_record, record_of_key
from sublora.data.prepare import prepare_all, prepare_base_dataset, prepare_dataset
from sublora.data.tokenizers import load_tokenizer
from sublora.system.errors import UserError

FOLDER_CORPUS = {"kind": "folder", "text_field": "text", "unit_field": None}
BASE_TEXTS = [f"text of the base {i} " + "é" * (i % 7) for i in range(60)]
TOO_SHORT, TOO_FEW_TOKENS, SURROGATE = "short", "12345678", "lone \ud800 surrogate"
BASE_CORPUS = [*BASE_TEXTS, *BASE_TEXTS[:5], TOO_SHORT, TOO_FEW_TOKENS, SURROGATE]
TARGET_TEXTS = [f"text of the target {i}" for i in range(40)]
COMMON = [*BASE_TEXTS[::2], TOO_SHORT, TOO_FEW_TOKENS, "lone ? surrogate"]


def settings_of(data: config.Data | None = None, kind: str = "trained", **base: object) -> config.Settings:
    """Settings with a folder corpus each for target and base, keys of a trained base changed as said."""
    own = {"corpus": FOLDER_CORPUS | {"path": "base_texts"}, "name": "base", "min_characters": 8, "val_documents": 4}
    kinds = {"trained": TRAINED | own | base, "pretrained": PRETRAINED, "random": {"kind": "random"}}
    values = merged(merged(demo_values(), TINY), {"scoring": {"val_documents": 1, "test_documents": 1}})
    plain = (data or folder_data()).model_dump(mode="json")
    return config.parse_settings(values | {"data": plain, "base": kinds[kind]}, source="sample")


@pytest.fixture
def root(tmp_path):
    """A corpus of each, with common texts."""
    write_corpora(tmp_path, BASE_CORPUS, [*TARGET_TEXTS, *COMMON, *COMMON[:3]])
    return tmp_path


def write_corpora(root, base, target):
    write_documents(root, base)
    shutil.rmtree(root / "base_texts", ignore_errors=True)
    (root / FOLDER).rename(root / "base_texts")
    write_documents(root, target)


def texts_of(dataset):
    decode = load_tokenizer(dataset.tokenizer).decode
    counts = {split: dataset.meta.split(split).documents for split in SPLITS}
    return {split: [decode(dataset.document(split, i)) for i in range(counts[split])] for split in SPLITS}


def bytes_of(folder, names=FILES):
    return {name: (folder / name).read_bytes() for name in names}


def test_the_target_is_what_it_would_be_without_the_texts_of_the_base(root):
    """Also of texts that the base's own dataset leaves out: too short, of too few tokens, in val or test."""
    settings = settings_of(folder_data(min_tokens=9), min_characters=6)
    folder = prepare_all(settings, root)
    assert folder == root / "data/sample"
    counts = json.loads((folder / META_FILE).read_text())["documents"]
    assert counts == {
        "read": 76,
        "too_short": 0,
        "too_long": 0,
        "too_few_tokens": 2,
        "duplicates": 3,
        "in_base_corpus": 31,
        "kept": 40,
    }
    dataset = open_target(settings, root)
    assert dataset.in_words().endswith("3 duplicates, 31 whose text is also in the base's corpus")
    assert sorted(sum(texts_of(dataset).values(), [])) == sorted(TARGET_TEXTS)
    found = bytes_of(folder)
    write_documents(root, TARGET_TEXTS)
    assert bytes_of(prepare_dataset(settings.data, root)) == found


def test_every_text_of_the_base_corpus_counts(root):
    """A base that keeps next to nothing for itself still excludes all of its texts."""
    settings = settings_of(min_characters=25)
    prepare_all(settings, root)
    dataset = open_target(settings, root)
    base = TokenDataset.open(root, base_data(settings))
    assert base.meta.documents["kept"] < 30
    assert sorted(sum(texts_of(dataset).values(), [])) == sorted(TARGET_TEXTS)
    assert dataset.meta.documents["in_base_corpus"] == len(set(COMMON))


def test_the_base_has_a_dataset_of_its_own(root):
    settings = settings_of(folder_data(min_tokens=9))
    assert prepare_base_dataset(settings, root) == root / "data/base"
    data = base_data(settings)
    assert (data.tokenizer, data.shuffle_seed, data.min_tokens) == ("bytes", 7, 9)
    dataset = TokenDataset.open(root, data)
    dataset.verify_hashes()
    found = texts_of(dataset)
    assert (len(found["val"]), len(found["test"])) == (4, 1)
    assert sorted(sum(found.values(), [])) == sorted([*BASE_TEXTS, "lone ? surrogate"])
    assert dataset.excluded_texts is None


@pytest.mark.parametrize("workers", [1, 2])
def test_keys_are_the_sorted_digests_of_all_texts(root, workers, monkeypatch):
    monkeypatch.setattr("sublora.data.corpora.reader.BATCH_CHARACTERS", 100)
    settings = settings_of(folder_data(workers=workers))
    folder = prepare_base_dataset(settings, root)
    secret = order_module.stream_key(7, "order of documents").to_bytes(KEY_BYTES, "little")
    texts = {text.encode(errors="replace") for text in BASE_CORPUS}
    expected = sorted(hashlib.blake2b(text, digest_size=KEY_BYTES, key=secret).digest() for text in texts)
    content = (folder / TEXT_KEYS_FILE).read_bytes()
    assert content == b"".join(expected)
    keys = open_text_keys(settings, root)
    assert (keys.texts, keys.sha256) == (len(texts), hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("kind", ["random", "pretrained"])
def test_a_base_that_is_not_trained_here_excludes_nothing(root, kind):
    settings = settings_of(kind=kind)
    folder = prepare_all(settings, root)
    assert [path.name for path in (root / "data").iterdir()] == ["sample"]
    before = bytes_of(folder, (*FILES, META_FILE))
    assert bytes_of(prepare_dataset(settings.data, root), (*FILES, META_FILE)) == before
    assert open_target(settings, root).excluded_texts is None
    with pytest.raises(ValueError, match="the base is not trained here"):
        base_data(settings)


def test_the_hash_says_which_texts_were_excluded_even_if_none_was_there(root):
    """Files are equal, but "no text of this base is here" is a fact about them."""
    write_documents(root, TARGET_TEXTS)
    hashes, files = set(), []
    for number in range(2):
        write_corpora(root, BASE_CORPUS[: len(BASE_CORPUS) - number], TARGET_TEXTS)
        files.append(bytes_of(prepare_all(settings_of(), root)))
        hashes.add(open_target(settings_of(), root).data_hash)
    files.append(bytes_of(prepare_dataset(folder_data(), root)))
    hashes.add(TokenDataset.open(root, folder_data()).data_hash)
    assert files[0] == files[1] == files[2]
    assert len(hashes) == 3


def test_keys_by_first_byte(tmp_path):
    rng = np.random.default_rng(0)
    for count in (0, 1, 5000):
        values = sorted({rng.bytes(KEY_BYTES) for _ in range(count)})
        values = [key for key in values if key[0] not in (0, 7, 255)]
        path = tmp_path / TEXT_KEYS_FILE
        keys = TextKeys.open(path, shuffle_seed=0, **write_text_keys(path, values))
        parts = [keys.starting_with(byte) for byte in range(256)]
        assert all(key[0] == byte for byte, part in enumerate(parts) for key in part)
        assert sorted(set.union(*parts)) == values


def test_spill_leaves_out_excluded_keys(tmp_path, monkeypatch):
    monkeypatch.setattr(order_module, "BUFFER_BYTES", 100)
    tokens = np.arange(3, dtype=np.uint16)
    with Spill(tmp_path / "texts") as texts:
        for i in [*range(0, 3000, 3), *range(0, 3000, 6)]:
            texts.add(record_of_key(document_key(b"%d" % i, 1)))
        facts = write_text_keys(tmp_path / "keys", texts.sorted_keys())
    assert facts["texts"] == 1000
    exclude = TextKeys.open(tmp_path / "keys", shuffle_seed=1, **facts)
    with Spill(tmp_path / "records", exclude) as spill:
        for i in [*range(2000), *range(500)]:
            spill.add(make_record(b"%d" % i, tokens, 1))
        found = list(spill.sorted_keys())
        excluded = spill.excluded
    assert found == sorted(document_key(b"%d" % i, 1) for i in range(2000) if i % 3)
    assert excluded == len(range(0, 2000, 3))


# Errors


def test_a_target_that_was_made_for_another_base_is_refused(root):
    settings = settings_of()
    prepare_dataset(settings.data, root)
    with pytest.raises(UserError, match="data/base/meta.json: no such file, the dataset is not prepared"):
        open_target(settings, root)
    prepare_base_dataset(settings, root)
    with pytest.raises(UserError, match=r"made without the texts of no other corpus, expected without the t"):
        open_target(settings, root)
    prepare_all(settings, root)
    with pytest.raises(UserError, match=r"made without the texts of the base's corpus \(keys \w+\), expected without"):
        open_target(settings_of(kind="random"), root)
    write_corpora(root, BASE_CORPUS[:-1], TARGET_TEXTS)
    prepare_base_dataset(settings, root)
    with pytest.raises(UserError, match=r"sample/meta.json: made without .*, as section base of the settings says"):
        open_target(settings, root)


def test_damaged_or_missing_keys(root):
    settings = settings_of()
    path = prepare_base_dataset(settings, root) / TEXT_KEYS_FILE
    content = path.read_bytes()
    for damaged in (content[:-KEY_BYTES], content + bytes(KEY_BYTES), content[:-1] + bytes([content[-1] ^ 1])):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"text_keys.bin: {len(damaged)} bytes of sha256 \w+, expected 63 keys"):
            open_text_keys(settings, root)
    path.unlink()
    with pytest.raises(UserError, match=r"base/text_keys.bin: no such file; run: sublora prepare"):
        open_text_keys(settings, root)


def test_keys_of_another_seed_are_refused(root):
    settings = settings_of()
    prepare_base_dataset(settings, root)
    keys = open_text_keys(settings, root)
    with pytest.raises(ValueError, match="keys of seed 7 say nothing of keys of seed 8"):
        prepare_dataset(folder_data(shuffle_seed=8), root, exclude=keys)


def test_a_target_without_own_texts_says_why(root):
    write_documents(root, [*TARGET_TEXTS[:4], *COMMON])
    with pytest.raises(
        UserError,
        match=r"4 documents are left \(0 duplicates removed, 33 whose text is in the base's corpus\), expected at ",
    ):
        prepare_all(settings_of(), root)


def test_an_error_of_the_base_keeps_its_dataset_and_says_whose_it_is(root):
    settings = settings_of()
    folder = prepare_base_dataset(settings, root)
    names = (*FILES, META_FILE, TEXT_KEYS_FILE)
    before = bytes_of(folder, names)
    (root / "base_texts/all.jsonl").write_text('{"text": "alone and long enough"}')
    with pytest.raises(UserError, match=r"dataset of the base \(its keys are base.corpus and so on, .*1 documents"):
        prepare_all(settings, root)
    assert bytes_of(folder, names) == before
    assert {path.name for path in folder.iterdir()} == {*names, ".prepare.lock", ".hashes.json"}
    assert not (root / "data/sample").exists()


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ({"name": "sample"}, "base.name and data.name are both 'sample'"),
        ({"min_characters": 0}, "base.min_characters: .*greater than 0, found 0"),
        ({"val_documents": 0}, "base.val_documents: "),
    ],
)
def test_settings_that_make_no_sense_are_refused(base, expected):
    with pytest.raises(UserError, match=expected):
        settings_of(**base)


def test_a_base_whose_documents_are_shorter_than_the_population_admits_is_refused():
    """min_tokens is the target's, so that the base's corpus alone may not fit it."""
    corpus = markov_corpus(min_length=200).model_dump(mode="json")
    with pytest.raises(UserError, match=r"^base: min_tokens 201 exceeds corpus.min_length 200"):
        base_data(settings_of(folder_data(min_tokens=201), corpus=corpus))
    assert base_data(settings_of(folder_data(min_tokens=200), corpus=corpus)).min_tokens == 200
