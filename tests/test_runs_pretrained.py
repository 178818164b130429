"""A pretrained model of transformers through the whole pipeline: tokenizer, training, message, bound, verification."""

import json
import shutil
from pathlib import Path

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

from sublora import config
from sublora.data.base_and_target import open_target
from sublora.data.prepare import prepare_all
from sublora.data.tokenizers import import_tokenizer
from sublora.runs.base import make_base
from sublora.runs.bound import bound_run
from sublora.runs.score import score_run
from sublora.runs.train import train_run
from sublora.runs.verify.files import Claim, Options
from sublora.runs.verify.verify import verify_claim
from sublora.runs.yardsticks import make_yardsticks
from sublora.system.errors import UserError

pytest.importorskip("transformers")

SPEC = config.RunSpec(budget=40, allocation="learned", seed=1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a finished run on a tiny Llama; tests do not write into it."""
    root = tmp_path_factory.mktemp("llama")
    path = pretrained_root(root)
    settings = config.load_settings(path)
    prepare_all(settings, root)
    make_base(settings, root=root)
    out = root / "results/runs" / SPEC.name
    train_run(settings, SPEC, root=root, out=out)
    score_run(out, config_path=path)
    bound_run(out, config_path=path)
    return root


def run_folder(root: Path) -> Path:
    return root / "results/runs" / SPEC.name


def test_training_lowers_the_loss_and_the_claim_is_verified(finished: Path) -> None:
    record = json.loads((run_folder(finished) / "bounds.json").read_text())
    metrics = (run_folder(finished) / "metrics.csv").read_text().splitlines()
    column = metrics[0].split(",").index("val_loss_bits")
    assert float(metrics[-1].split(",")[column]) < float(metrics[1].split(",")[column])
    assert record["vocab_size"] == 300
    assert set(record["gates"]) == {"0", "1", "head"}
    assert verify_claim(Claim.of(run_folder(finished)), Options()).verified


def test_a_training_that_was_stopped_goes_on_to_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    settings = config.load_settings(finished / "config/config.yaml")

    class Stop(Exception):
        pass

    def stop(step: int) -> None:
        if step == 14:
            raise Stop

    with pytest.raises(Stop):
        train_run(settings, SPEC, root=finished, out=tmp_path, before_step=stop)
    train_run(settings, SPEC, root=finished, out=tmp_path)
    weights = [torch.load(f / "best_ckpt.pt", weights_only=True)["raw_model"] for f in (tmp_path, run_folder(finished))]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name])


def test_another_base_is_refused(finished: Path, tmp_path: Path) -> None:
    """The same architecture with other weights, and the same weights computed differently."""
    from sublora.models.huggingface import HuggingFaceBase, load_huggingface_base, save_base

    base = load_huggingface_base(finished / "results/base/base.safetensors")
    name = next(name for name in base.tensors if name.endswith("q_proj.weight"))
    others = [
        HuggingFaceBase(base.architecture, {**base.tensors, name: base.tensors[name] * 1.01}),
        HuggingFaceBase(base.architecture | {"rms_norm_eps": 0.01}, base.tensors),
    ]
    for other in others:
        save_base(tmp_path / "base.safetensors", other)
        claim = Claim.of(run_folder(finished), base=tmp_path / "base.safetensors", root=finished)
        assert not verify_claim(claim, Options()).verified


def test_the_frozen_base_is_a_yardstick(finished: Path) -> None:
    settings = config.load_settings(finished / "config/config.yaml")
    rows = json.loads(make_yardsticks(settings, root=finished).read_text())["rows"]
    assert {"unigram", "order3", "frozen_base"} <= rows.keys()


def test_special_tokens_in_a_text_are_ordinary_text(tmp_path: Path) -> None:
    """Were they not, a document could hold the end-of-text token and be counted as two."""
    documents = [f"{text} {SPECIAL[0]} {SPECIAL[1]}" for text in texts(80)]
    path = pretrained_root(tmp_path)
    write_documents(tmp_path, documents)
    settings = config.load_settings(path)
    prepare_all(settings, tmp_path)
    dataset = open_target(settings, tmp_path)
    assert sum(dataset.meta.split(split).documents for split in ("train", "val", "test")) == len(documents)
    decode, found = dataset.load_tokenizer().decode, set()
    for split in ("train", "val", "test"):
        for i in range(len(dataset.document_lengths(split))):
            tokens = dataset.document(split, i)
            assert dataset.eot_id not in tokens
            found.add(decode(tokens))
    assert found == set(documents)


@pytest.mark.slow
def test_a_large_vocabulary_has_tokens_of_four_bytes(tmp_path: Path) -> None:
    path = pretrained_root(tmp_path, "GPT2", vocab_size=300)
    corpus = texts(400)
    values = pretrained_values("GPT2")
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    tiny_model("GPT2", 70_000).save_pretrained(tmp_path / "model")  # type: ignore[operator]
    tokenizer = tiny_tokenizer(corpus, 290)
    # Ids beyond 65,535: the largest are tokens of the text.
    tokenizer.add_tokens([f"<unused {i}>" for i in range(69_000 - len(tokenizer))] + ["probability"])
    tokenizer.save_pretrained(tmp_path / "model")
    settings = config.load_settings(path)
    prepare_all(settings, tmp_path)
    dataset = open_target(settings, tmp_path)
    assert dataset.tokens("train").dtype == np.dtype("<u4")
    assert dataset.tokens("train").max() > 1 << 16
    assert dataset.vocab_size == 70_000
    assert (tmp_path / "data/sentences/train.bin").stat().st_size == 4 * dataset.meta.split("train").tokens
    documents = {dataset.load_tokenizer().decode(dataset.document("train", i)) for i in range(dataset.n_documents)}
    assert documents <= set(corpus)


def test_a_tokenizer_that_changes_text_is_refused(tmp_path: Path) -> None:
    import tokenizers

    pretrained_root(tmp_path)
    tokenizer = tiny_tokenizer(texts(50), 290)
    tokenizer.backend_tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="does not give text back as it was"):
        import_tokenizer(tmp_path / "model", tmp_path)


def test_a_network_of_another_vocabulary_stops_with_one_line(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "copy")
    root = tmp_path / "copy"
    tiny_model("Llama", 310).save_pretrained(root / "model")  # type: ignore[operator]
    settings = config.load_settings(root / "config/config.yaml")
    make_base(settings, root=root)
    with pytest.raises(UserError, match="predicts 310 tokens, data/sentences was made with a vocabulary of 300"):
        train_run(settings, SPEC, root=root, out=tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base": {"kind": "random"}}, "model.kind huggingface needs base.kind pretrained"),
        ({"data": {"tokenizer": "base"}, "base": {"kind": "random"}}, "data.tokenizer base needs base.kind pretrained"),
        ({"training": {"keep_initialization": True}}, "training.keep_initialization writes the files of a GPT-2"),
    ],
)
def test_settings_that_contradict_each_other(changes: dict, words: str) -> None:
    values = pretrained_values()
    for section, keys in changes.items():
        values[section] = keys if section == "base" else values[section] | keys
    with pytest.raises(UserError, match=words):
        config.parse_settings(values, source="x")
