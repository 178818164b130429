import errno
import fcntl
import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import lacking
from data_samples import FOLDER, folder_data, markov_corpus, write_documents
from fetch_gpt2_vocabulary import CACHE, is_cached

from sublora import config
from sublora.data import order as order_module
from sublora.data import tokenize as tokenize_module
from sublora.data import write as write_module
from sublora.data.dataset import TokenDataset
from sublora.data.dataset_files import FILES, META_FILE, SPLITS
from sublora.data.prepare import prepare_dataset
from sublora.data.tokenizers import load_tokenizer
from sublora.system.errors import UserError
from sublora.system.versions import NUMERICS_VERSIONS

DOCUMENTS = [f"Document {i}: " + "word " * (i % 37) + "ünïcode 🙂" for i in range(400)]


def all_bytes(folder):
    return {name: (folder / name).read_bytes() for name in (*FILES, META_FILE)}


def texts_of(dataset, split):
    tokenizer = load_tokenizer(dataset.tokenizer)
    count = dataset.meta.split(split).documents
    return [tokenizer.decode(dataset.document(split, i)) for i in range(count)]


@pytest.mark.parametrize("tokenizer", ["bytes", "gpt2"])
def test_text_to_files_to_text(tmp_path, tokenizer, monkeypatch):
    if tokenizer == "gpt2":
        if not is_cached():
            lacking("GPT-2's vocabulary is not here; get it with: python tests/fetch_gpt2_vocabulary.py")
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(CACHE))
    documents = [*DOCUMENTS, "about <|endoftext|> tokens", "<|endoftext|>"]
    write_documents(tmp_path, documents)
    data = folder_data(tokenizer=tokenizer)
    assert prepare_dataset(data, tmp_path) == tmp_path / "data" / "sample"
    dataset = TokenDataset.open(tmp_path, data)
    found = {split: texts_of(dataset, split) for split in SPLITS}
    assert sorted(found["train"] + found["val"] + found["test"]) == sorted(documents)
    assert [len(found[split]) for split in SPLITS] == [397, 2, 3]


def test_index_equals_a_search_for_the_end_of_text(tmp_path):
    write_documents(tmp_path, DOCUMENTS)
    folder = prepare_dataset(folder_data(), tmp_path)
    tokens = np.fromfile(folder / "train.bin", dtype="<u2")
    ends = np.load(folder / "eot_indices.npy")
    lengths = np.load(folder / "doc_lengths.npy")
    assert ends.dtype == lengths.dtype == np.int64
    brute, count = [], 0
    for position, token in enumerate(tokens.tolist()):
        if token == 256:
            brute.append((position, count))
            count = 0
        else:
            count += 1
    assert count == 0  # the last document is closed
    assert list(zip(ends.tolist(), lengths.tolist(), strict=True)) == brute


def test_meta_describes_the_files(tmp_path):
    write_documents(tmp_path, [*DOCUMENTS, *DOCUMENTS[:9], "short"])
    data = folder_data(min_characters=6, workers=1)
    folder = prepare_dataset(data, tmp_path)
    meta = json.loads((folder / META_FILE).read_text())
    assert (meta["tokenizer"], meta["vocab_size"], meta["eot_id"]) == ("bytes", 257, 256)
    assert meta["documents"] == {
        "read": 410,
        "too_short": 1,
        "too_long": 0,
        "too_few_tokens": 0,
        "duplicates": 9,
        "in_base_corpus": 0,
        "kept": 400,
    }
    assert meta["excluded_texts"] is None
    assert meta["numerics_version"] == NUMERICS_VERSIONS["data"]
    assert meta["provenance"] == {
        "files": 1,
        "bytes": (tmp_path / FOLDER / "all.jsonl").stat().st_size,
        "unparsable_files": 0,
    }
    expected = data.model_dump(mode="json")
    del expected["workers"], expected["near_duplicates"]  # neither touches what is written
    del expected["permute"]  # null is as if it were not there
    assert meta["settings"] == expected
    assert set(meta["files"]) == set(FILES)
    for name, facts in meta["files"].items():
        content = (folder / name).read_bytes()
        assert facts == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    for split in SPLITS:
        tokens = np.fromfile(folder / f"{split}.bin", dtype="<u2")
        assert meta["splits"][split] == {"documents": int((tokens == 256).sum()), "tokens": len(tokens)}
    assert sum(split["tokens"] for split in meta["splits"].values()) == sum(len(d.encode()) + 1 for d in DOCUMENTS)


def test_the_same_bytes_whatever_the_workers_the_batches_and_the_order(tmp_path, monkeypatch):
    write_documents(tmp_path, DOCUMENTS)
    first = all_bytes(prepare_dataset(folder_data(), tmp_path))
    assert all_bytes(prepare_dataset(folder_data(), tmp_path)) == first
    monkeypatch.setattr("sublora.data.corpora.reader.BATCH_CHARACTERS", 900)
    monkeypatch.setattr(order_module, "BUFFER_BYTES", 300)
    assert all_bytes(prepare_dataset(folder_data(workers=3), tmp_path)) == first
    (tmp_path / FOLDER / "all.jsonl").unlink()
    write_documents(tmp_path, DOCUMENTS[::-1])
    assert all_bytes(prepare_dataset(folder_data(), tmp_path)) == first


@pytest.mark.slow
def test_docstrings_do_not_depend_on_the_workers(tmp_path):
    corpus = config.DocstringCorpus(kind="docstrings", packages=("numpy",))
    folders = []
    for workers in (1, 2):
        data = folder_data(corpus=corpus, min_characters=200, workers=workers)
        folders.append(prepare_dataset(data, tmp_path / str(workers)))
    assert all_bytes(folders[0]) == all_bytes(folders[1])


def test_duplicates_are_removed_before_the_split(tmp_path):
    documents = [f"document {i}" for i in range(30)]
    write_documents(tmp_path, documents)
    alone = all_bytes(prepare_dataset(folder_data(), tmp_path))
    write_documents(tmp_path, documents * 20, name="copies.jsonl")
    folder = prepare_dataset(folder_data(), tmp_path)
    assert {name: (folder / name).read_bytes() for name in FILES} == {name: alone[name] for name in FILES}
    assert json.loads((folder / META_FILE).read_text())["documents"]["duplicates"] == 600
    dataset = TokenDataset.open(tmp_path, folder_data())
    splits = [set(texts_of(dataset, split)) for split in SPLITS]
    assert sum(map(len, splits)) == len(set.union(*splits)) == 30


def test_the_seed_draws_the_split_and_the_order(tmp_path):
    write_documents(tmp_path, DOCUMENTS[:10])
    splits = set()
    for seed in range(3):
        prepare_dataset(folder_data(shuffle_seed=seed), tmp_path)
        dataset = TokenDataset.open(tmp_path, folder_data(shuffle_seed=seed))
        found = [texts_of(dataset, split) for split in ("val", "test", "train")]
        order = sorted(DOCUMENTS[:10], key=lambda text, seed=seed: order_module.document_key(text.encode(), seed))
        assert sum(found, []) == order
        splits.add(tuple(order))
    assert len(splits) == 3


def test_every_document_is_drawn_equally_often():
    seeds, documents, drawn = 2000, 10, 2
    counts = np.zeros(documents)
    for seed in range(seeds):
        keys = [order_module.document_key(text.encode(), seed) for text in DOCUMENTS[:documents]]
        counts[np.argsort(keys)[:drawn]] += 1
    share = drawn / documents
    statistic = ((counts - seeds * share) ** 2).sum() / (seeds * share * (1 - share)) * (documents - 1) / documents
    assert statistic < 27.9  # chi-square, 9 degrees of freedom, 0.1 %


def test_lone_surrogates_are_replaced(tmp_path):
    write_documents(tmp_path, [*DOCUMENTS[:6], "bad \ud800 text"])
    prepare_dataset(folder_data(), tmp_path)
    dataset = TokenDataset.open(tmp_path, folder_data())
    assert "bad ? text" in sum((texts_of(dataset, split) for split in SPLITS), [])


def test_markov_documents_are_all_kept(tmp_path):
    data = folder_data(corpus=markov_corpus(documents=700))
    folder = prepare_dataset(data, tmp_path)
    assert json.loads((folder / META_FILE).read_text())["documents"]["duplicates"] == 0
    lengths = np.load(folder / "doc_lengths.npy")
    assert len(lengths) == 695
    assert lengths.min() >= 200
    assert lengths.max() <= 300


def test_golden_hash(tmp_path):
    """If this changes, raise NUMERICS_VERSIONS["data"]: prepared datasets are no longer reproduced."""
    write_documents(tmp_path, DOCUMENTS)
    prepare_dataset(folder_data(), tmp_path)
    assert NUMERICS_VERSIONS["data"] == 1
    found = TokenDataset.open(tmp_path, folder_data()).data_hash
    assert found == "0993b5670404c667ddc0c39d833fc0bcc7bb0c44d2b10291193a035eca702451"


def test_nothing_is_left_behind(tmp_path):
    write_documents(tmp_path, DOCUMENTS)
    folder = tmp_path / "data" / "sample"
    (folder / ".prepare").mkdir(parents=True)
    (folder / ".prepare" / "records").write_bytes(b"of a process that was killed")
    prepare_dataset(folder_data(), tmp_path)
    assert {path.name for path in folder.iterdir()} == {*FILES, META_FILE, ".prepare.lock", ".hashes.json"}


# Errors


def test_an_error_keeps_the_dataset_that_was_there(tmp_path):
    write_documents(tmp_path, DOCUMENTS)
    before = all_bytes(prepare_dataset(folder_data(), tmp_path))
    with pytest.raises(UserError):
        prepare_dataset(folder_data(val_documents=1000), tmp_path)
    assert all_bytes(tmp_path / "data" / "sample") == before
    assert {path.name for path in (tmp_path / "data" / "sample").iterdir()} == {
        *FILES,
        META_FILE,
        ".prepare.lock",
        ".hashes.json",
    }


def test_an_interrupted_replacement_leaves_no_meta(tmp_path, monkeypatch):
    write_documents(tmp_path, DOCUMENTS)
    prepare_dataset(folder_data(), tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(write_module, "_write_arrays", full)
    with pytest.raises(UserError, match=r"data/sample: cannot be written \(No space left on device\); free some space"):
        prepare_dataset(folder_data(shuffle_seed=8), tmp_path)
    with pytest.raises(UserError, match=r"meta.json: no such file, the dataset is not prepared; run: sublora prepare"):
        TokenDataset.open(tmp_path, folder_data(shuffle_seed=8))


def test_too_few_documents(tmp_path):
    write_documents(tmp_path, ["a", "b", "c", "d", "e", "a"])
    with pytest.raises(
        UserError,
        match=r"data.corpus: 5 documents are left \(1 duplicates removed\), expected at least 6: "
        r"data.val_documents 2 \+ data.test_documents 3 \+ 1 to train on; lower those or give more text",
    ):
        prepare_dataset(folder_data(), tmp_path)
    write_documents(tmp_path, ["f"], name="more.jsonl")
    prepare_dataset(folder_data(), tmp_path)


def test_a_corpus_without_documents(tmp_path):
    write_documents(tmp_path, [])
    with pytest.raises(UserError, match=r"data.corpus: folder .*/texts: read 0 documents"):
        prepare_dataset(folder_data(), tmp_path)
    write_documents(tmp_path, ["four", "five5"])
    with pytest.raises(UserError, match="read 2 documents, 2 of them shorter than data.min_characters 6, 0 longer"):
        prepare_dataset(folder_data(min_characters=6), tmp_path)


def test_documents_of_too_few_tokens_are_left_out(tmp_path):
    """Tokens are counted, not characters: "é" is two bytes. The files are those of the longer documents alone."""
    long_enough = [f"{i:02} " + "x" * (i % 5 + 4) for i in range(30)]
    short = ["1234", "ééé", "1234", "six678"]
    write_documents(tmp_path, [*long_enough, *short])
    data = folder_data(min_characters=4, min_tokens=7)
    folder = prepare_dataset(data, tmp_path)
    dataset = TokenDataset.open(tmp_path, data)
    assert dataset.min_tokens == min(min(dataset.document_lengths(split)) for split in SPLITS) == 7
    counts = dataset.meta.documents
    assert counts == {
        "read": 34,
        "too_short": 1,
        "too_long": 0,
        "too_few_tokens": 3,
        "duplicates": 0,
        "in_base_corpus": 0,
        "kept": 30,
    }
    assert dataset.in_words() == (
        "sample: 34 documents read; 25 to train on, 2 val, 3 test; left out: 1 shorter than 4 characters, "
        "3 of fewer than 7 tokens, 0 duplicates"
    )
    files = {name: (folder / name).read_bytes() for name in FILES}
    write_documents(tmp_path, long_enough)
    prepare_dataset(data, tmp_path)
    assert {name: (folder / name).read_bytes() for name in FILES} == files
    with pytest.raises(UserError, match="0 of them shorter than .* and 30 of fewer tokens than data.min_tokens 99"):
        prepare_dataset(folder_data(min_tokens=99), tmp_path)


def test_errors_of_the_reader_come_through_the_workers(tmp_path):
    write_documents(tmp_path, DOCUMENTS)
    (tmp_path / FOLDER / "last.jsonl").write_text("{")
    with pytest.raises(UserError, match="last.jsonl, line 1: not valid JSON"):
        prepare_dataset(folder_data(workers=2), tmp_path)


class Dying:
    def __len__(self):
        return 1

    def read(self):
        os._exit(1)


def read_batch(batch):
    return batch.read()


def test_a_dead_worker_is_an_error_with_a_mend():
    with pytest.raises(UserError, match=r"data.workers 2: a tokenizing process died .*; use fewer workers"):
        list(tokenize_module.map_in_processes(read_batch, [Dying()], 2))


def test_only_a_few_batches_are_held():
    taken = 0

    def batches():
        nonlocal taken
        for i in range(1000):
            taken += 1
            yield range(i)

    results = tokenize_module.map_in_processes(len, batches(), 2)
    assert [next(results), next(results)] == [0, 1]
    assert taken <= 2 * tokenize_module.QUEUED_BATCHES_PER_WORKER + 2
    results.close()


def test_two_processes_do_not_write_one_folder(tmp_path):
    write_documents(tmp_path, DOCUMENTS)
    folder = prepare_dataset(folder_data(), tmp_path)
    with open(folder / ".prepare.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another `sublora prepare` is writing here; wait for it or stop it"):
            prepare_dataset(folder_data(), tmp_path)


MEASURE_MEMORY = """
import json, resource, sys
from pathlib import Path
from sublora import config
from sublora.data.dataset import TokenDataset
from sublora.data.prepare import prepare_dataset

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

peaks = []
for value in json.loads(sys.argv[1]):
    data = config.Data.model_validate_json(json.dumps(value))
    prepare_dataset(data, Path(sys.argv[2]))
    peaks.append(peak())
dataset = TokenDataset.open(Path(sys.argv[2]), data)
dataset.verify_hashes()
dataset.unigram_entropy_bits("train")
dataset.document_lengths("val")
peaks.append(peak())
print(json.dumps(peaks))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """Peak memory of a corpus of 110 MB of tokens is that of one a third as large, within 10 MB."""
    for name, documents in (("small", 18_000), ("large", 54_000)):
        folder = tmp_path / name
        folder.mkdir()
        with open(folder / "texts.jsonl", "w") as handle:
            handle.writelines(f'{{"text": "{i} {"x" * 1024}"}}\n' for i in range(documents))
    corpora = {
        name: config.FolderCorpus(kind="folder", path=name, text_field="text", unit_field=None)
        for name in ("small", "large")
    }
    settings = [folder_data(name=name, corpus=corpus).model_dump() for name, corpus in corpora.items()]
    command = [sys.executable, "-c", MEASURE_MEMORY, json.dumps(settings), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    small, large, read = json.loads(result.stdout)
    assert (tmp_path / "data" / "large" / "train.bin").stat().st_size > 110e6
    assert large - small < 10e6
    assert read - small < 20e6
    assert result.stderr == ""  # no progress bar where stderr is no terminal


def test_documents_that_are_too_long_are_left_out(tmp_path):
    """They are counted, and the files are those of the shorter documents alone; without a limit all are kept."""
    write_documents(tmp_path, ["word " * length for length in range(1, 41)])
    prepare_dataset(folder_data(max_characters=150), tmp_path)
    meta = json.loads((tmp_path / "data/sample/meta.json").read_text())
    assert meta["documents"]["too_long"] == 10 and meta["documents"]["kept"] == 30
    limited = TokenDataset.open(tmp_path, folder_data(max_characters=150))
    assert max(max(limited.document_lengths(split)) for split in SPLITS) == 150
    assert "10 longer than 150 characters" in limited.in_words()
    prepare_dataset(folder_data(), tmp_path)
    assert TokenDataset.open(tmp_path, folder_data()).meta.documents["kept"] == 40
