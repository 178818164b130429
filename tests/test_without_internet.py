"""Compute nodes: jobs need neither the tokenizer's vocabulary nor a network, and say at once what is missing."""

import socket
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import write_settings

from sublora import config
from sublora.data import tokenizers
from sublora.data.prepare import prepare_dataset
from sublora.runs.bound import bound_run
from sublora.runs.score import score_run
from sublora.runs.train import train_run
from sublora.runs.verify.verify import verify_run
from sublora.system.errors import UserError


class Pretended:
    """GPT-2's vocabulary size and end of text, on bytes: what a login node would have prepared."""

    name, vocab_size, eot_id = "gpt2", tokenizers.Gpt2Tokenizer.vocab_size, tokenizers.Gpt2Tokenizer.eot_id

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint16) for text in texts]

    def given_back(self, texts: list[str], encoded: list[np.ndarray]) -> list[str]:
        return texts


@pytest.mark.slow
def test_training_scoring_and_verifying_need_no_vocabulary_and_no_network(tmp_path: Path, monkeypatch) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for i in range(60):
        (texts / f"{i}.txt").write_text(f"document {i}: " + "some words " * (5 + i % 7))
    folder_corpus = {
        "name": "words",
        "unit": "document",
        "tokenizer": "gpt2",
        "val_documents": 10,
        "test_documents": 10,
        "corpus": {"kind": "folder", "path": str(texts), "text_field": "text", "unit_field": None},
    }
    scoring = {"documents": 20, "val_documents": 10, "test_documents": 10}
    changes = {"data": folder_corpus, "scoring": scoring, "rate_phase": {"val_documents": 10}}
    settings = config.load_settings(write_settings(tmp_path, changes))
    with monkeypatch.context() as login_node:
        login_node.setitem(tokenizers.TOKENIZERS, "gpt2", Pretended)
        prepare_dataset(settings.data, tmp_path)

    def no_network(*arguments: object) -> None:
        raise OSError("this is a compute node")

    monkeypatch.setitem(sys.modules, "tiktoken", None)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    run = config.RunSpec(budget=40, allocation="uniform", seed=1)
    out = tmp_path / "results/runs" / run.name
    train_run(settings, run, root=tmp_path, out=out)
    score_run(out, root=tmp_path)
    bound_run(out)
    assert verify_run(out, root=tmp_path).verified


def test_data_that_were_not_prepared_stop_a_job_before_anything_else(tmp_path: Path) -> None:
    settings = config.load_settings(write_settings(tmp_path))
    run = config.RunSpec(budget=40, allocation="uniform", seed=1)
    with pytest.raises(UserError, match="data/markov.*sublora prepare"):
        train_run(settings, run, root=tmp_path, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
