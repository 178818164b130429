"""Folders of pretrained models as people have them: what is refused, what is cleared, and whose code never runs."""

import io
import json
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from huggingface_samples import (
    SPECIAL,
    pretrained_root,
    pretrained_values,
    texts,
    tiny_model,
    tiny_tokenizer,
    write_documents,
)
from safetensors.torch import load_file, save_file

from sublora import cli, config
from sublora.data.base_and_target import open_target
from sublora.data.dataset import TokenDataset
from sublora.data.prepare import prepare_all
from sublora.data.tokenizers import pretrained_tokenizer, tokenizer_facts
from sublora.models.huggingface import (
    HuggingFaceBackbone,
    HuggingFaceBase,
    build_module,
    load_huggingface_base,
    read_pretrained,
    save_base,
)
from sublora.models.lora import Adapters
from sublora.runs.base import make_base
from sublora.system.errors import UserError
from sublora.system.pretrained import renaming_hint

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

VOCABULARY = 300
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 988097824\n"


def refusal(function: Callable[[], object]) -> str:
    """The one line with which `function` refuses."""
    with pytest.raises(UserError) as caught:
        function()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The tokenizer


def prepared(root: Path, tokenizer: Any, documents: list[str], **data: Any) -> TokenDataset:
    """Prepare documents with the tokenizer of a model's folder."""
    path = pretrained_root(root)
    write_documents(root, documents)
    tokenizer.save_pretrained(root / "model")
    values = pretrained_values()
    values["data"] |= data
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    settings = config.load_settings(path)
    prepare_all(settings, root)
    return open_target(settings, root)


def split_texts(dataset: TokenDataset, split: str) -> list[str]:
    decode = dataset.load_tokenizer().decode
    return [decode(dataset.document(split, i)) for i in range(len(dataset.document_lengths(split)))]


@pytest.mark.parametrize("habit", ["padding", "truncation", "dropout"])
def test_habits_of_a_stored_tokenizer_do_not_reach_the_data(habit: str, tmp_path: Path, capsys: Any) -> None:
    """One call with padding=True leaves it in tokenizer.json: every document had the length of the longest."""
    documents = texts(80)
    clean = tiny_tokenizer(documents, VOCABULARY - 4)
    tokenizer = tiny_tokenizer(documents, VOCABULARY - 4)
    if habit == "padding":
        tokenizer.pad_token = SPECIAL[1]
        tokenizer(documents, padding=True)
    elif habit == "truncation":
        tokenizer(documents, truncation=True, max_length=8)
    else:
        tokenizer.backend_tokenizer.model.dropout = 0.5
    tokenizer.save_pretrained(tmp_path / "stored")
    stored = json.loads((tmp_path / "stored/tokenizer.json").read_text())
    assert stored["model"][habit] if habit == "dropout" else stored[habit]
    one, other = prepared(tmp_path / "one", tokenizer, documents), prepared(tmp_path / "other", clean, documents)
    assert one.data_hash == other.data_hash
    assert f"switched off in its tokenizer: {habit}" in capsys.readouterr().err
    assert not json.loads((one.folder / "tokenizer.json").read_text())["padding"]
    # A reader of a certificate tokenizes prompts with the folder's own file.
    (long,) = pretrained_tokenizer(tmp_path / "one/model").encode_batch([max(documents, key=len)])
    (plain,) = pretrained_tokenizer(tmp_path / "other/model").encode_batch([max(documents, key=len)])
    assert long.tolist() == plain.tolist()


def test_a_tokenizer_that_normalizes_makes_no_duplicates(tmp_path: Path, capsys: Any) -> None:
    """NFC makes the composed and the decomposed spelling equal; as two documents both were counted, in any split."""
    spellings = [f"café {text}" for text in texts(120)]
    documents = [unicodedata.normalize(form, text) for text in spellings for form in ("NFC", "NFD")]
    tokenizer = tiny_tokenizer(documents, VOCABULARY - 4)
    tokenizer.backend_tokenizer.normalizer = tokenizers.normalizers.NFC()
    dataset = prepared(tmp_path, tokenizer, documents)
    counts = dataset.meta.documents
    assert (counts["read"], counts["normalized"], counts["duplicates"], counts["kept"]) == (240, 120, 120, 120)
    found = [text for split in ("train", "val", "test") for text in split_texts(dataset, split)]
    assert sorted(found) == sorted(spellings)
    assert "120 are spelled as the tokenizer normalizes Unicode" in dataset.in_words()


def test_the_spelling_does_not_decide_the_split(tmp_path: Path) -> None:
    spellings = [f"café {text}" for text in texts(120)]
    tokenizer = tiny_tokenizer(spellings, VOCABULARY - 4)
    tokenizer.backend_tokenizer.normalizer = tokenizers.normalizers.NFC()
    decomposed = [unicodedata.normalize("NFD", text) for text in spellings]
    one, other = (prepared(tmp_path / name, tokenizer, found) for name, found in (("a", spellings), ("b", decomposed)))
    assert one.data_hash == other.data_hash


def without_bytes(documents: list[str]) -> Any:
    """Byte-level pairs that know only the bytes of these texts: others are dropped without a word."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=VOCABULARY - 4, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator([*documents, "Zażółć\n\tgęślą  jaźń 漢字, f(x)==1; "], trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SPECIAL[0])


def stripping(documents: list[str]) -> Any:
    """A token of a chat format that eats the space after it."""
    tokenizer = tiny_tokenizer(documents, VOCABULARY - 8)
    tokenizer.add_tokens([tokenizers.AddedToken("<|user|>", rstrip=True, special=False)])
    return tokenizer


def lowering(documents: list[str]) -> Any:
    tokenizer = tiny_tokenizer(documents, VOCABULARY - 4)
    tokenizer.backend_tokenizer.normalizer = tokenizers.normalizers.Replace("Ω", "ω")
    return tokenizer


@pytest.mark.parametrize(
    ("kind", "mark", "words"),
    [
        (without_bytes, "Ω", "'Ω "),
        (stripping, "<|user|> ", "'<|user|> "),
        (lowering, "Ω", "'Ω "),
    ],
)
def test_a_tokenizer_that_changes_some_documents_is_refused_with_their_number(
    kind: Callable[[list[str]], Any], mark: str, words: str, tmp_path: Path
) -> None:
    plain = texts(80)
    documents = plain[:77] + [f"{mark} {text}" for text in plain[77:]]
    tokenizer = kind(plain)
    line = refusal(lambda: prepared(tmp_path, tokenizer, documents))
    assert f"changes the text of 3 of 80 documents ({words}" in line and "becomes" in line
    assert not (tmp_path / "data/sentences/meta.json").exists()


def test_words_in_another_order_are_compared_as_they_were(tmp_path: Path) -> None:
    documents = texts(80)
    tokenizer = tiny_tokenizer(documents, VOCABULARY - 4)
    dataset = prepared(tmp_path, tokenizer, documents, permute="words")
    assert dataset.meta.documents["kept"] == 80 and "normalized" not in dataset.meta.documents


def test_an_end_of_text_that_is_not_special_is_text_in_documents(tmp_path: Path) -> None:
    """As an ordinary added token it was found in texts, and a document became two."""
    documents = [f"{text} </s>" for text in texts(80)]
    tokenizer = tiny_tokenizer(documents, VOCABULARY - 8)
    raw = json.loads(tokenizer.backend_tokenizer.to_str())
    raw["added_tokens"] = [t for t in raw["added_tokens"] if t["content"] != SPECIAL[0]]
    raw["model"]["vocab"] = {("<|other|>" if t == SPECIAL[0] else t): i for t, i in raw["model"]["vocab"].items()}
    renamed = tokenizers.Tokenizer.from_str(json.dumps(raw))
    renamed.add_tokens([tokenizers.AddedToken("</s>", special=False)])
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=renamed)
    wrapped.save_pretrained(tmp_path / "saved")
    facts = json.loads((tmp_path / "saved/tokenizer_config.json").read_text())
    dataset = prepared(tmp_path, Saved(tmp_path / "saved", facts | {"eos_token": "</s>"}), documents)
    assert sorted(text for split in ("train", "val", "test") for text in split_texts(dataset, split)) == sorted(
        documents
    )


class Saved:
    """A tokenizer's files, with another tokenizer_config.json."""

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        self.folder, self.facts = folder, facts

    def save_pretrained(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_bytes((self.folder / "tokenizer.json").read_bytes())
        (folder / "tokenizer_config.json").write_text(json.dumps(self.facts))


@pytest.mark.parametrize("eos", ["ab", None])
def test_an_end_of_text_that_texts_are_made_of_is_refused(eos: str | None, tmp_path: Path) -> None:
    """A word of the vocabulary as the end of a text: documents that hold the word would be cut there."""
    pretrained_root(tmp_path)
    vocabulary = tokenizers.models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")])
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(vocabulary), eos_token=eos)
    wrapped.save_pretrained(tmp_path / "model")
    line = refusal(lambda: tokenizer_facts("base", tmp_path / "model"))
    assert ("its end-of-text token 'ab' stands for text as well" if eos else "no end-of-sequence token") in line


# Code of the folder


@pytest.fixture
def coded(tmp_path: Path) -> Path:
    """A root whose model has a tokenizer and a configuration in Python; running either leaves a file."""
    pretrained_root(tmp_path)
    code = f"open({str(tmp_path / 'EXECUTED')!r}, 'w').write('ran')\nfrom transformers import *\n"
    for name in ("tok.py", "conf.py"):
        (tmp_path / "model" / name).write_text(code + "class Own(PreTrainedTokenizerFast): pass\n")
    return tmp_path


def change(path: Path, **facts: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def run(monkeypatch: pytest.MonkeyPatch, capsys: Any, *arguments: object) -> tuple[int, str]:
    """Run a command with somebody at the keyboard who says yes to everything."""
    monkeypatch.setattr(sys, "argv", ["sublora", *map(str, arguments)])
    monkeypatch.setattr(sys, "stdin", io.StringIO("yes\n" * 9))
    with pytest.raises(SystemExit) as stop:
        cli.main()
    captured = capsys.readouterr()
    assert "[y/N]" not in captured.out + captured.err
    return int(stop.value.code or 0), captured.err.strip().splitlines()[-1]


@pytest.mark.parametrize("command", ["prepare", "base"])
@pytest.mark.parametrize("part", ["tokenizer", "model"])
def test_code_of_a_model_folder_never_runs(
    command: str, part: str, coded: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    maps = {"AutoTokenizer": ["tok.Own", "tok.Own"]}
    if part == "tokenizer":
        change(coded / "model/tokenizer_config.json", tokenizer_class="Own", auto_map=maps)
    else:
        maps = {"AutoConfig": "conf.Own", "AutoModelForCausalLM": "conf.Own"}
        change(coded / "model/config.json", model_type="own", auto_map=maps)
    status, line = run(monkeypatch, capsys, command, "--config", coded / "config/config.yaml")
    assert status == 2 and line.startswith("error: ")
    assert not (coded / "EXECUTED").exists()


def test_a_tokenizer_class_of_transformers_is_taken_instead_of_code(coded: Path) -> None:
    change(
        coded / "model/tokenizer_config.json",
        tokenizer_class="PreTrainedTokenizerFast",
        auto_map={"AutoTokenizer": ["tok.Own", "tok.Own"]},
    )
    assert tokenizer_facts("base", coded / "model").eot_id == 0
    assert not (coded / "EXECUTED").exists()


# The weights


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tiny_model("Llama", VOCABULARY).save_pretrained(tmp_path / "model")  # type: ignore[operator]
    return tmp_path / "model"


def rewrite(folder: Path, rename: Callable[[str], str | None]) -> None:
    """Rename the tensors in model.safetensors, or leave those out for which `rename` returns None."""
    path = folder / "model.safetensors"
    named = {rename(name): value for name, value in load_file(path).items()}
    save_file({name: value for name, value in named.items() if name is not None}, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("rename", "words"),
    [
        (
            lambda name: None if name == "lm_head.weight" else name,
            "are missing, and would be drawn at random: lm_head.weight; save",
        ),
        (
            lambda name: None if ".layers.1." in name else name,
            "model.layers.1.mlp.gate_proj.weight and 6 more; save the model again",
        ),
        (lambda name: f"_orig_mod.{name}", "with '_orig_mod.' in the name; save them without it"),
        (lambda name: f"module.{name}", "with 'module.' in the name"),
        (lambda name: f"base_model.model.{name}", "with 'base_model.model.' in the name"),
        (lambda name: name.replace("_proj.", "_proj.base_layer."), "after merging the adapters (merge_and_unload"),
    ],
)
def test_missing_weights_are_refused_by_name(rename: Callable[[str], str | None], words: str, model: Path) -> None:
    """transformers would draw them at random, anew in each process."""
    rewrite(model, rename)
    line = refusal(lambda: read_pretrained(model))
    assert words in line and "would be drawn at random" in line


def test_a_stale_index_of_shards_is_refused(tmp_path: Path) -> None:
    tiny_model("Llama", VOCABULARY).save_pretrained(tmp_path, max_shard_size="40KB")  # type: ignore[operator]
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    first = sorted(set(index["weight_map"].values()))[0]
    index["weight_map"] = {name: file for name, file in index["weight_map"].items() if file != first}
    path.write_text(json.dumps(index))
    assert "are missing" in refusal(lambda: read_pretrained(tmp_path))


def test_spare_tensors_are_named_and_ignored(model: Path, capsys: Any) -> None:
    expected = read_pretrained(model).sha256
    tensors = load_file(model / "model.safetensors") | {"spare.weight": torch.ones(2)}
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    assert read_pretrained(model).sha256 == expected
    assert "tensors that the model does not have are ignored: spare.weight" in capsys.readouterr().err


def test_tied_weights_are_not_missing(tmp_path: Path) -> None:
    tiny_model("Llama", VOCABULARY, tie_word_embeddings=True).save_pretrained(tmp_path)  # type: ignore[operator]
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert read_pretrained(tmp_path).sha256 == read_pretrained(tmp_path).sha256


def test_a_base_file_that_lacks_a_tensor_is_refused(model: Path, tmp_path: Path) -> None:
    """Its hash covers the tensors that are there: what is computed would differ from reader to reader."""
    base = read_pretrained(model)
    for change in ({"model.norm.weight": None}, {"spare": torch.ones(2)}):
        tensors = {**base.tensors, **change}
        changed = HuggingFaceBase(
            base.architecture, {name: value for name, value in tensors.items() if value is not None}
        )
        save_base(tmp_path / "base.safetensors", changed)
        line = refusal(lambda: build_module(load_huggingface_base(tmp_path / "base.safetensors"), torch.float32))
        assert ("model.norm.weight is missing" if None in change.values() else "no tensor spare") in line


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_pointer_of_git_lfs_is_called_one(name: str, tmp_path: Path) -> None:
    path = pretrained_root(tmp_path)
    (tmp_path / "model" / name).write_text(POINTER)
    settings = config.load_settings(path)
    for command in (make_base, prepare_all):
        line = refusal(lambda command=command: command(settings, root=tmp_path))
        assert f"{name}: a pointer of Git LFS and not the file itself; fetch it (git lfs pull)" in line


def test_the_adapter_of_another_model_is_no_base(model: Path) -> None:
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    assert "the adapter of another model; merge the two" in refusal(lambda: read_pretrained(model))


def test_the_hint_names_the_part_that_fits_most() -> None:
    missing = ["a.weight", "b.c.weight"]
    assert renaming_hint(missing, ["x.a.weight", "x.b.c.weight", "b.y.c.weight"]) is not None
    assert "'x.'" in str(renaming_hint(missing, ["x.a.weight", "x.b.c.weight", "b.y.c.weight"]))
    assert renaming_hint(missing, ["other", "a.bias"]) is None
    assert renaming_hint(missing, []) is None


# Sizes under other names


def gemma3() -> Any:
    """A language model that reads images as well: its sizes are in a part of config.json."""
    text = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8}
    text |= {"num_key_value_heads": 1, "vocab_size": VOCABULARY, "max_position_embeddings": 64, "sliding_window": 64}
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    tokens = {"boi_token_index": 2, "eoi_token_index": 3, "image_token_index": 1, "mm_tokens_per_image": 4}
    torch.manual_seed(0)
    settings = transformers.Gemma3Config(text_config=text, vision_config=vision, **tokens)
    return transformers.Gemma3ForConditionalGeneration(settings).eval()


def backbone(folder: Path, targets: tuple[str, ...], **sizes: int) -> HuggingFaceBackbone:
    lora = config.Lora(rank=2, alpha=4.0, dropout=0.0, targets=targets, init="zero_b")
    model = config.HuggingFaceModel(kind="huggingface", **({"n_layer": 2, "context_length": 16} | sizes))
    base = read_pretrained(folder)
    return HuggingFaceBackbone(base, model, lora, device=torch.device("cpu"), dtype=torch.float32)


@pytest.mark.parametrize("target", ["q_proj", "language_model.*.q_proj"])
def test_the_language_model_of_a_model_with_images_is_adapted(target: str, tmp_path: Path) -> None:
    gemma3().save_pretrained(tmp_path)
    found = backbone(tmp_path, (target,))
    assert len(found.maps) == 2 and all(".language_model.layers." in each.name for each in found.maps)
    rng = np.random.default_rng(0)
    theta_D = torch.from_numpy(rng.normal(0, 0.3, found.space.size).astype(np.float32))
    tokens_NT = torch.arange(4, 16)[None]
    hidden = [
        found.hidden(tokens_NT, a) for a in (None, Adapters(found.space, theta_D, scale=1.0, dtype=torch.float32))
    ]
    assert not torch.allclose(*hidden)
    assert "3, the pretrained model has 2 layers" in refusal(lambda: backbone(tmp_path, (target,), n_layer=3))
    assert "at most 64 positions" in refusal(lambda: backbone(tmp_path, (target,), context_length=65))


def test_the_longest_context_of_mpt_is_known(tmp_path: Path) -> None:
    sizes = {"d_model": 16, "n_heads": 2, "n_layers": 2, "max_seq_len": 32, "vocab_size": VOCABULARY}
    transformers.MptForCausalLM(transformers.MptConfig(**sizes)).save_pretrained(tmp_path)
    assert len(backbone(tmp_path, ("Wqkv",), context_length=32).maps) == 2
    assert "at most 32 positions; lower it" in refusal(lambda: backbone(tmp_path, ("Wqkv",), context_length=64))
