import json
import math
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from data_samples import folder_data, write_documents

from sublora import config
from sublora.data import dataset as module
from sublora.data.dataset import TokenDataset
from sublora.data.dataset_files import FILES, SPLITS, ExcludedTexts, FileFacts
from sublora.data.prepare import prepare_dataset
from sublora.system.errors import UserError

DOCUMENTS = [f"{i} " + "abc" * (i % 11) for i in range(60)]


@pytest.fixture
def root(tmp_path):
    write_documents(tmp_path, DOCUMENTS)
    prepare_dataset(folder_data(), tmp_path)
    return tmp_path


def change_meta(root, change):
    path = root / "data" / "sample" / "meta.json"
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))


def test_importing_and_opening_need_no_heavy_module(root):
    code = (
        "import sys; from pathlib import Path; from sublora import config\n"
        "from sublora.data.dataset import TokenDataset\n"
        "data = config.Data.model_validate_json(sys.argv[1])\n"
        "TokenDataset.open(Path(sys.argv[2]), data).tokens('train')[:3]\n"
        "heavy = {'torch', 'datasets', 'tiktoken', 'pyarrow', 'pandas', 'rich', 'requests', 'scipy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, folder_data().model_dump_json(), str(root)], check=True)


def test_attributes(root):
    dataset = TokenDataset.open(root, folder_data(workers=5))
    assert (dataset.vocab_size, dataset.eot_id, dataset.tokenizer, dataset.n_documents) == (257, 256, "bytes", 55)
    assert dataset.meta.split("val").documents == 2
    tokens = dataset.tokens("test")
    assert isinstance(tokens, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 1
    with pytest.raises(ValueError, match="no split 'dev'"):
        dataset.tokens("dev")


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_documents_and_lengths_equal_a_split_at_the_end_of_text(root, monkeypatch, block):
    monkeypatch.setattr(module, "BLOCK_TOKENS", block)
    dataset = TokenDataset.open(root, folder_data())
    for split in SPLITS:
        pieces = "".join(map(chr, dataset.tokens(split))).split(chr(256))
        assert pieces.pop() == ""
        assert dataset.document_lengths(split).tolist() == [len(piece) for piece in pieces]
        assert ["".join(map(chr, dataset.document(split, i))) for i in range(len(pieces))] == pieces
        for beyond in (-1, len(pieces)):
            with pytest.raises(IndexError, match=f"document {beyond} of {split}, which has {len(pieces)}"):
                dataset.document(split, beyond)


def test_many_documents_need_no_many_open_files(root):
    dataset = TokenDataset.open(root, folder_data())
    before = len(os.listdir("/proc/self/fd"))
    held = [dataset.document(split, 0) for split in SPLITS * 20]
    assert len(os.listdir("/proc/self/fd")) - before <= len(SPLITS)
    assert len(held) == 60


@pytest.mark.parametrize("block", [5, 1 << 20])
def test_unigram_entropy_equals_its_definition(root, monkeypatch, block):
    monkeypatch.setattr(module, "BLOCK_TOKENS", block)
    dataset = TokenDataset.open(root, folder_data())
    counts = Counter(dataset.tokens("train").tolist())
    total = sum(counts.values())
    expected = math.fsum(-c / total * math.log2(c / total) for c in counts.values())
    assert dataset.unigram_entropy_bits("train") == pytest.approx(expected, abs=1e-12)


def test_data_hash_follows_the_tokens_and_nothing_else(root, tmp_path_factory):
    dataset = TokenDataset.open(root, folder_data())
    assert len(dataset.data_hash) == 64
    other = tmp_path_factory.mktemp("other")
    write_documents(other, DOCUMENTS[30:], name="b.jsonl")
    write_documents(other, DOCUMENTS[:30] + DOCUMENTS[:2], name="a.jsonl")
    moved = folder_data(name="renamed", workers=2)
    prepare_dataset(moved, other)
    change_order = lambda meta: meta.update({key: meta.pop(key) for key in list(meta)[::-1]})  # noqa: E731
    change_meta(root, change_order)
    assert TokenDataset.open(other, moved).data_hash == dataset.data_hash
    assert TokenDataset.open(root, folder_data()).data_hash == dataset.data_hash
    hashes = {dataset.data_hash}
    for key in ("tokenizer", "vocab_size", "eot_id"):
        hashes.add(TokenDataset(dataset.folder, dataset.meta.model_copy(update={key: 1})).data_hash)
    for name in FILES:
        files = dataset.meta.files | {name: FileFacts(bytes=1, sha256="0" * 64)}
        hashes.add(TokenDataset(dataset.folder, dataset.meta.model_copy(update={"files": files})).data_hash)
    for sha256 in ("0", "1"):
        hashes.add(
            TokenDataset(
                dataset.folder, dataset.meta.model_copy(update={"excluded_texts": ExcludedTexts(sha256=64 * sha256)})
            ).data_hash
        )
    assert len(hashes) == 1 + 3 + len(FILES) + 2


def test_a_changed_byte_is_found_by_its_hash(root):
    dataset = TokenDataset.open(root, folder_data())
    dataset.verify_hashes()
    for name in FILES:
        path = root / "data" / "sample" / name
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(
            UserError, match=f"{name}: sha256 [0-9a-f]+, expected [0-9a-f]+ as in meta.json: .* run: sublora"
        ):
            dataset.verify_hashes()
        path.write_bytes(content)


# What `open` refuses


def test_not_prepared(tmp_path):
    with pytest.raises(UserError, match="data/sample/meta.json: no such file, the dataset is not prepared; run: subl"):
        TokenDataset.open(tmp_path, folder_data())


@pytest.mark.parametrize("name", FILES)
def test_missing_and_truncated_files(root, name):
    path = root / "data" / "sample" / name
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-2])
    message = f"data/sample/{name}: found {size - 2} bytes, expected {size}; run: sublora prepare --config FILE"
    with pytest.raises(UserError, match=message):
        TokenDataset.open(root, folder_data())
    path.unlink()
    with pytest.raises(UserError, match=f"{name}: no such file, expected {size} bytes"):
        TokenDataset.open(root, folder_data())


def test_another_tokenizer(root):
    message = "made with tokenizer 'bytes', data.tokenizer is 'gpt2'; change the setting or run: sublora prepare"
    with pytest.raises(UserError, match=message):
        TokenDataset.open(root, folder_data(tokenizer="gpt2"))


@pytest.mark.parametrize(("key", "value"), [("vocab_size", 50257), ("eot_id", 0)])
def test_a_vocabulary_that_is_not_the_tokenizers(root, key, value):
    change_meta(root, lambda meta: meta.update({key: value}))
    with pytest.raises(UserError, match=f"{key} {value} does not fit tokenizer 'bytes', which has 25"):
        TokenDataset.open(root, folder_data())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_documents": 4}, "made with data.val_documents 2, the settings say 4; change the setting or run:"),
        ({"shuffle_seed": 8}, "data.shuffle_seed 7, the settings say 8"),
        (
            {"corpus": config.FolderCorpus(kind="folder", path="texts", text_field="body", unit_field=None)},
            r'data.corpus \{.*"text_field": "text".*\}, the settings say \{.*"text_field": "body".*\}',
        ),
    ],
)
def test_other_settings(root, changes, message):
    with pytest.raises(UserError, match=message):
        TokenDataset.open(root, folder_data(**changes))


def test_counts_that_do_not_fit(root):
    tokens = TokenDataset.open(root, folder_data()).meta.split("train").tokens
    folder = root / "data" / "sample"
    ends = np.load(folder / "eot_indices.npy")
    np.save(folder / "eot_indices.npy", ends - 1)
    with pytest.raises(UserError, match=f"the last document ends at token {tokens - 2}, expected {tokens - 1}"):
        TokenDataset.open(root, folder_data())
    np.save(folder / "eot_indices.npy", ends)
    change_meta(root, lambda meta: meta["splits"]["train"].update(documents=54))
    with pytest.raises(
        UserError, match=r"eot_indices.npy: found int64 of shape \(55,\), expected int64 of shape \(54,"
    ):
        TokenDataset.open(root, folder_data())
    change_meta(root, lambda meta: meta["splits"]["train"].update(documents=55, tokens=tokens + 1))
    with pytest.raises(UserError, match=f"{tokens + 1} tokens of train do not fit the {2 * tokens} bytes of train.bin"):
        TokenDataset.open(root, folder_data())


def test_val_documents_that_do_not_fit(root):
    change_meta(root, lambda meta: meta["splits"]["val"].update(documents=3))
    with pytest.raises(UserError, match="val.bin: 2 end-of-text tokens, expected 3 documents"):
        TokenDataset.open(root, folder_data()).document_lengths("val")


def test_documents_of_too_few_tokens(root):
    change_meta(root, lambda meta: meta["settings"].update(min_tokens=3))
    data = folder_data(min_tokens=3)
    lengths = np.load(root / "data/sample/doc_lengths.npy")
    shorter = np.flatnonzero(lengths < 3)
    assert 0 < len(shorter) < len(lengths)
    with pytest.raises(
        UserError,
        match=rf"doc_lengths.npy: document {shorter[0]} has 2 tokens \({len(shorter)} documents are too short\), "
        "expected at least data.min_tokens 3; run: sublora prepare",
    ):
        TokenDataset.open(root, data)
    np.save(root / "data/sample/doc_lengths.npy", np.maximum(lengths, 3))
    tokens = np.fromfile(root / "data/sample/val.bin", dtype="<u2")
    tokens[tokens == 256] = 0
    tokens[[2, -1]] = 256
    tokens.tofile(root / "data/sample/val.bin")
    dataset = TokenDataset.open(root, data)
    with pytest.raises(UserError, match=r"val.bin: document 0 has 2 tokens \(1 documents are too short\)"):
        dataset.document("val", 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not valid JSON"), ("[]", "expected keys with values, found"), ("{}", "key 'tokenizer' is missing")],
)
def test_a_damaged_meta(root, content, message):
    (root / "data" / "sample" / "meta.json").write_text(content)
    with pytest.raises(UserError, match=f"meta.json: {message}"):
        TokenDataset.open(root, folder_data())
