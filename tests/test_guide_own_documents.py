"""What docs/guide/own_documents.md tells a reader to type works, in order, on tiny models and a JSONL file.

test_tools_adapt.py compares what its first commands print with the page.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from adapt_samples import VOCABULARY as ADAPT_VOCABULARY
from adapt_samples import write_adapt_inputs
from conftest import REPOSITORY, TINY, merged
from huggingface_samples import texts, tiny_model, tiny_tokenizer
from typer.testing import CliRunner

from sublora import config
from sublora.cli import app

transformers = pytest.importorskip("transformers")

PAGE = (REPOSITORY / "docs/guide/own_documents.md").read_text(encoding="utf-8")
SETTINGS = "config/own_documents.yaml"
VOCABULARY, LAYERS = 320, 2


def commands() -> list[list[str]]:
    """Words of every command on the page."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def write_inputs(folder: Path) -> None:
    """Documents of several customers, and a model with its tokenizer."""
    corpus = texts(400)
    (folder / "documents").mkdir(parents=True)
    lines = [json.dumps({"text": text, "customer": f"customer {i % 60}"}) for i, text in enumerate(corpus)]
    (folder / "documents/tickets.jsonl").write_text("\n".join(lines), encoding="utf-8")
    tiny_model("GPT2", VOCABULARY, n_embd=64).save_pretrained(folder / "model")  # type: ignore[operator]
    tiny_tokenizer(corpus, VOCABULARY).save_pretrained(folder / "model")


def edit(path: Path) -> None:
    """What the reader changes, and sizes for a test; everything else is as shipped."""
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    changes = {
        "model": {"n_layer": LAYERS, "context_length": 32},
        "data": {"val_documents": 30, "test_documents": 30, "workers": 1, "min_tokens": 4},
        "training": TINY["training"],
        "rate_phase": {"val_documents": 20, "choice_interval_steps": 4},
        "scoring": {"val_documents": 20, "test_documents": 30, "sliding_window": 16},
        "compute": {"threads": 1},
    }
    path.write_text(yaml.safe_dump(merged(values, changes)), encoding="utf-8")


def call(words: list[str]) -> str:
    """Output of one of the page's commands; it must succeed."""
    if words[0] == "sublora":
        result = CliRunner().invoke(app, words[1:])
        assert result.exit_code == 0, (words, result.output, result.exception)
        return result.output
    if words[0] == "snakemake":
        words = [str(Path(sys.executable).parent / "snakemake"), *words[1:]]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout + done.stderr


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of a repository, with what the reader and the receiver have."""
    for name in ("config", "workflow"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    write_inputs(tmp_path / "by_hand")
    write_adapt_inputs(tmp_path / "tickets", documents=400)
    for name in ("documents", "model"):
        shutil.copytree(tmp_path / "tickets" / name, tmp_path / "auditor" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_page_from_its_first_command_to_its_last(folder: Path) -> None:
    output, named, found = {}, re.search(r"(?<=tickets/results/runs/)\w+", PAGE)[0], ""
    for words in commands():
        words = [word.replace(named, found or named) for word in words]
        if words[1] == "adapt":
            words += ["--device", "cpu", "--steps", "20", "--anyway"]
        output.setdefault(tuple(words[:2]), call(words))
        if words[1] == "adapt" and not found:
            (run,) = (folder / "tickets/results/runs").iterdir()
            found = run.name
            shutil.copytree(folder / "tickets/config", folder / "auditor/config")
        if words[0] == "cp":
            edit(folder / words[-1])
    text = output["sublora", "plan"]
    assert "d = 1,000: n = " in text and "is too small" in text  # a few hundred documents are no sample
    assert re.search(r"train +29\n", output["snakemake", "--directory"])  # of 30, one was done by hand
    assert "verified" in output["sublora", "verify"]
    assert output["sublora", "generate"].startswith("the model")
    assert not (folder / "auditor/results/runs").exists()

    from peft import PeftModel

    tokens = torch.from_numpy(np.random.default_rng(1).integers(0, ADAPT_VOCABULARY, (2, 32)))
    load = transformers.AutoModelForCausalLM.from_pretrained
    whole = load(folder / "merged").eval()
    adapted = PeftModel.from_pretrained(load(folder / "tickets/model"), folder / "adapters").eval()
    with torch.no_grad():
        torch.testing.assert_close(whole(tokens).logits, adapted(tokens).logits, rtol=1e-4, atol=1e-4)
        assert (whole(tokens).logits - load(folder / "tickets/model")(tokens).logits).abs().max() > 1e-3
    assert transformers.AutoTokenizer.from_pretrained(folder / "merged")("the model").input_ids


def test_the_settings_that_are_shipped_are_complete_and_every_command_is_on_the_page() -> None:
    settings = config.load_settings(REPOSITORY / SETTINGS)
    assert len(settings.grid.runs()) == 30
    assert {words[1] for words in commands() if words[0] == "sublora"} >= {
        "adapt",
        "prepare",
        "plan",
        "train",
        "verify",
    }
    marked = set(re.findall(r"^ *(\w+):.*# change", (REPOSITORY / SETTINGS).read_text(encoding="utf-8"), re.MULTILINE))
    assert {"corpus", "unit", "path", "independence", "model", "lora", "compute", "message"} == marked
