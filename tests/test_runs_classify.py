"""sublora classify: local files with the columns of QQP and CoLA to bounds, and back from the message alone."""

import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import REPOSITORY

import sublora
from sublora import cli
from sublora.config.classify import load_classify_settings
from sublora.data.classification import read_examples
from sublora.system.errors import UserError

WORDS = [f"w{i}" for i in range(12)]
KINDS = {0: ["calm", "slow"], 1: ["loud", "fast"]}
"""Words that give a label away."""
SIZES = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def sentences(count: int, seed: int) -> list[tuple[str, int]]:
    stream = np.random.default_rng(seed)
    found: dict[str, int] = {}
    while len(found) < count:
        label = int(stream.random() < 0.6)
        words = [*stream.choice(WORDS, 4), *stream.choice(KINDS[label], 2)]
        found[" ".join(stream.permutation(words))] = label
    return list(found.items())


def write_model(folder: Path, kind: str) -> None:
    """A tokenizer of whole words and a tiny network: BERT without weights, GPT-2 with."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *WORDS, *KINDS[0], *KINDS[1]])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    if kind == "bert":
        BertConfig(vocab_size=len(vocabulary), max_position_embeddings=32, **SIZES).save_pretrained(folder)
    else:
        ids = {"bos_token_id": None, "eos_token_id": None}
        torch.manual_seed(1)
        GPT2LMHeadModel(
            GPT2Config(vocab_size=len(vocabulary), n_embd=32, n_layer=1, n_head=2, n_positions=32, **ids)
        ).save_pretrained(folder)


def write_settings(root: Path, **changes: dict) -> Path:
    """config/glue.yaml, made small."""
    values = yaml.safe_load((REPOSITORY / "config/glue.yaml").read_text())
    values["data"] |= {"path": "qqp.tsv", "test_examples": 200, "max_tokens": 24}
    values["model"] |= {"path": "bert", "weights": "random"}
    values["adapters"] |= {"budget": 30, "targets": ["query", "value", "classifier"]}
    values["training"] |= {"steps": 80, "batch_examples": 64, "learning_rate": 0.1, "threads": 1}
    for section, changed in changes.items():
        values[section] |= changed
    path = root / "config" / "glue.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(values))
    return path


def call(monkeypatch, capfd, *arguments: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["sublora", "classify", *map(str, arguments)])
    status = 0
    try:
        cli.main()
    except SystemExit as stop:
        status = int(stop.code or 0)
    captured = capfd.readouterr()
    return status, captured.out, captured.err


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("glue")
    write_model(folder / "bert", "bert")
    write_model(folder / "gpt2", "gpt2")
    found = sentences(900, 0)
    qqp = [f"{i}\t{i}\t{2 * i}\t{text[:14]}\t{text[14:]}\t{label}" for i, (text, label) in enumerate(found)]
    (folder / "qqp.tsv").write_text("\n".join(["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", *qqp]) + "\n")
    (folder / "cola.tsv").write_text("".join(f"gj04\t{label}\t\t{text}\n" for text, label in found))
    long = "\t".join(["0", "0", "1", " ".join(WORDS * 2), " ".join(WORDS * 2), "1"])
    (folder / "long.tsv").write_text((folder / "qqp.tsv").read_text() + long + "\n")
    shutil.copytree(folder / "bert", folder / "small")
    small = json.loads((folder / "small/config.json").read_text()) | {"vocab_size": 9}
    (folder / "small/config.json").write_text(json.dumps(small))
    rows = [json.dumps({"sentence": text, "label": label}) for text, label in found]
    (folder / "cola.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def test_pairs_are_adapted_encoded_decoded_and_bounded(root, tmp_path, monkeypatch, capfd) -> None:
    config = write_settings(root)
    status, text, error = call(monkeypatch, capfd, "--config", config, "--out", tmp_path / "a")
    assert status == 0, error
    record = json.loads((tmp_path / "a" / "bounds.json").read_text())
    assert record["n"] == 700 and record["test_examples"] == 200
    assert record["code_bits"] == sum(record["items"].values()) and record["items"]["choice"] == 3
    assert record["error"]["mean_loss"] < record["error"]["value"] < 1.0
    assert record["error_held_out"]["mean_loss"] <= record["error"]["value"]
    assert record["error"]["value"] < record["error_majority_class"]["value"]
    with np.load(tmp_path / "a" / "losses.npz") as losses:
        again = sublora.certify(losses["errors"], code_bits=record["code_bits"], n=700, lower=0, upper=1)
        assert again.value == record["error"]["value"] and set(np.unique(losses["errors"])) <= {0.0, 1.0}
        a = record["smoothing"]
        assert losses["bits"].max() <= np.log2(2 / a) and losses["bits"].min() >= -np.log2(1 - a / 2) - 1e-12
    assert "held-out bound" in text.replace("\n", " ") and "cross_entropy_bits" in text

    status, _, error = call(
        monkeypatch, capfd, "--config", config, "--out", tmp_path / "b", "--message", tmp_path / "a" / "message.bin"
    )
    assert status == 0, error
    for name in ("message.bin", "bounds.json", "losses.npz"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_causal_language_model_with_its_weights_classifies_sentences(root, tmp_path, monkeypatch, capfd) -> None:
    changes = {
        "data": {"path": "cola.tsv", "task": "cola"},
        "model": {"path": "gpt2", "weights": "pretrained"},
        "adapters": {"targets": ["c_attn", "score"], "rank": 2, "allocation": "learned"},
        "training": {"steps": 20},
    }
    status, _, error = call(monkeypatch, capfd, "--config", write_settings(root, **changes), "--out", tmp_path)
    assert status == 0, error
    record = json.loads((tmp_path / "bounds.json").read_text())
    assert record["items"]["gates"] == 2 * 5 and record["n"] == 700


def test_the_forms_of_cola_hold_the_same_examples(root) -> None:
    tsv, jsonl = read_examples(root / "cola.tsv", "cola"), read_examples(root / "cola.jsonl", "cola")
    assert tsv == jsonl and len(tsv.distinct) == 900
    assert [len(e.texts) for e in read_examples(root / "qqp.tsv", "qqp").distinct] == [2] * 900


def test_a_text_that_comes_again_counts_once(tmp_path) -> None:
    (tmp_path / "a.tsv").write_text('sentence\tlabel\n"a "b\t1\nc\t0\n"a "b\t1\n')
    found = read_examples(tmp_path / "a.tsv", "cola").distinct
    assert [(e.texts, e.label) for e in found] == [(('"a "b',), 1), (("c",), 0)]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.tsv", "sentence\tlabel\na\t2\n", "line 2: label '2', expected 0 or 1"),
        ("a.tsv", "sentence\tlabel\na\t1\textra\n", "line 2 has 3 cells, expected 2"),
        ("a.tsv", "sentence\tlabel\na\t1\na\t0\n", "line 3 repeats a text with the other label"),
        ("a.tsv", "text\tlabel\na\t1\n", "expected the columns sentence, label in its first line, found 'text, label'"),
        ("a.tsv", "", "expected the columns"),
        ("a.tsv", "sentence\tlabel\n", "holds no examples"),
        ("a.tsv", b"sentence\tlabel\n\xff\t1\n", "not text in UTF-8"),
        ("a.jsonl", '{"sentence": "a"}\n', "line 1 has no 'label'"),
        ("a.jsonl", '{"sentence": 3, "label": 1}\n', "line 1: 'sentence' is int, expected text"),
        ("a.jsonl", "nothing\n", "line 1 is not JSON"),
        ("a.jsonl", '{"sentence": "a \\ud83d", "label": 1}\n', "line 1: a text with half of a surrogate pair"),
        ("a.jsonl", '{"sentence": "a", "label": ' + "9" * 5000 + "}\n", "line 1 is not JSON: Exceeds the limit"),
        ("a.jsonl", '{"sentence": "a", "label": ' + "[" * 10**5 + "}\n", "line 1 is nested too deep"),
        ("a.jsonl", json.dumps({"sentence": "x" * 200_000, "label": 1}), "line 1: a text of 200,000 characters"),
        ("a.tsv", "sentence\tlabel\n" + "x" * 200_000 + "\t1\n", "line 2: a text of 200,000 characters, expected at"),
        (
            "a.tsv",
            "sentence\tlabel\n" + "a\n" * 3 + "b\t1\n" + "c\n" * 30,
            "line 3 has 1 cells, expected 2; line 4 has 1 cells, expected 2; line 6 has",
        ),
        ("a.tsv", "sentence\tlabel\n" + "a\n" * 33, "; and 13 more; fix the rows, or set data.broken_rows: skip"),
        ("a.csv", "sentence,label\n", "expected a name that ends in .tsv or .jsonl"),
        ("b.tsv", None, "no such file"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, name, content, expected) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match="^[^\n]*$") as error:
        read_examples(path, "cola")
    assert expected in str(error.value)


def test_broken_rows_are_left_out_and_counted_if_the_settings_say_so(tmp_path) -> None:
    """As in GLUE's own train.tsv of QQP, where a line break inside a question makes two rows of one."""
    (tmp_path / "a.tsv").write_text('sentence\tlabel\na\t1\n"b\n\t0\textra\nc\t0\nd\tmaybe\n')
    found = read_examples(tmp_path / "a.tsv", "cola", broken_rows="skip")
    assert [e.texts for e in found.distinct] == [("a",), ("c",)] and found.broken_rows == 3


def test_a_byte_order_mark_and_blank_lines_are_no_examples(tmp_path) -> None:
    rows = ['{"sentence": "a", "label": 1}', "", '{"sentence": "b", "label": 0}', " ", ""]
    for name, newline in (("a.jsonl", "\n"), ("b.jsonl", "\r\n")):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + newline.join(rows).encode())
        assert [e.texts for e in read_examples(tmp_path / name, "cola").distinct] == [("a",), ("b",)]


def test_skipped_rows_stand_in_the_record(root, tmp_path, monkeypatch, capfd) -> None:
    rows = (root / "qqp.tsv").read_text() + "9\t9\t9\tonly a part\n"
    (root / "broken.tsv").write_text(rows)
    changes = {"data": {"path": "broken.tsv"}, "training": {"steps": 4}}
    skip, refuse = ({**changes, "data": {"path": "broken.tsv", "broken_rows": how}} for how in ("skip", "refuse"))
    status, _, error = call(monkeypatch, capfd, "--config", write_settings(root, **skip), "--out", tmp_path)
    assert status == 0 and "1 broken rows are left out" in error
    assert json.loads((tmp_path / "bounds.json").read_text())["broken_rows_left_out"] == 1
    status, _, error = call(monkeypatch, capfd, "--config", write_settings(root, **refuse), "--out", tmp_path)
    assert status == 2 and "line 902 has 4 cells, expected 6" in error


@pytest.mark.parametrize("prefix", ["transformer.", "_orig_mod.", "base_model.model."])
def test_an_encoder_that_lacks_tensors_is_refused(prefix, root, tmp_path, monkeypatch, capfd) -> None:
    """transformers would draw them at random; the head alone is meant to be new."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(root / "gpt2", tmp_path / "gpt2")
    path = tmp_path / "gpt2" / "model.safetensors"
    tensors = load_file(path)
    if prefix == "transformer.":  # what is left lacks a layer
        tensors = {name: value for name, value in tensors.items() if ".h.0." not in name}
    else:
        tensors = {prefix + name: value for name, value in tensors.items()}
    save_file(tensors, path, metadata={"format": "pt"})
    changes = {
        "data": {"path": str(root / "cola.tsv"), "task": "cola"},
        "model": {"path": str(tmp_path / "gpt2"), "weights": "pretrained"},
        "adapters": {"targets": ["c_attn"], "rank": 2},
    }
    status, _, error = call(monkeypatch, capfd, "--config", write_settings(root, **changes), "--out", tmp_path / "x")
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert status == 2 and len(lines) == 1 and "tensors of the model are missing" in lines[0]
    assert ("with '" in lines[0]) == (prefix != "transformer.")


def test_code_of_the_model_folder_never_runs(root, tmp_path, monkeypatch, capfd) -> None:
    shutil.copytree(root / "bert", tmp_path / "bert")
    (tmp_path / "bert" / "tok.py").write_text(f"open({str(tmp_path / 'EXECUTED')!r}, 'w')")
    path = tmp_path / "bert" / "tokenizer_config.json"
    facts = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["tok.Own", "tok.Own"]}}
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))
    monkeypatch.setattr(sys, "stdin", io.StringIO("yes\n" * 9))
    config = write_settings(root, model={"path": str(tmp_path / "bert")})
    status, _, error = call(monkeypatch, capfd, "--config", config, "--out", tmp_path / "x")
    assert status == 2 and "the tokenizer is code of its own (auto_map, class Own)" in error
    assert not (tmp_path / "EXECUTED").exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"data": {"task": "sst"}}, "data.task: input should be 'qqp' or 'cola', found 'sst'"),
        ({"data": {"pth": "x"}}, "unknown key 'data.pth'; did you mean 'data.path'?"),
        ({"data": {"test_examples": 899}}, "900 distinct examples leave none beside data.test_examples 899"),
        ({"model": {"path": "absent"}}, "absent: no tokenizer of transformers"),
        ({"model": {"weights": "pretrained"}}, "bert: no classifier of transformers"),
        ({"adapters": {"targets": ["q_proj"]}}, "adapters: target 'q_proj' fits no linear map"),
        ({"adapters": {"budget": 10**6}}, "adapters: budget 1000000 exceeds"),
        ({"data": {"path": "long.tsv", "max_tokens": 64}}, "cannot read inputs of 48 tokens"),
        ({"model": {"path": "small"}}, "its tokenizer has token 17, its network knows 9; the two do not fit"),
    ],
)
def test_wrong_settings_stop_with_one_line(root, tmp_path, monkeypatch, capfd, changes, expected) -> None:
    status, _, error = call(monkeypatch, capfd, "--config", write_settings(root, **changes), "--out", tmp_path / "x")
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert status == 2 and len(lines) == 1 and expected in lines[0], error
    assert not (tmp_path / "x").exists()


def test_another_message_is_refused(root, tmp_path, monkeypatch, capfd) -> None:
    config = write_settings(root)
    (tmp_path / "message.bin").write_bytes(b"not one")
    status, _, error = call(
        monkeypatch, capfd, "--config", config, "--out", tmp_path / "x", "--message", tmp_path / "message.bin"
    )
    assert status == 2 and "not a certificate" in error and "Traceback" not in error


def test_the_settings_that_come_along_are_valid() -> None:
    assert load_classify_settings(REPOSITORY / "config/glue.yaml").data.task == "qqp"
