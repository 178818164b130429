"""Models of transformers with their adapters as files of transformers and peft, and their text."""

from pathlib import Path

import numpy as np
import pytest
import torch
from base_samples import PRETRAINED, VOCABULARY, complaint
from conftest import TINY, demo_values, merged
from huggingface_samples import pretrained_root

from sublora import config
from sublora.data.prepare import prepare_all, prepare_dataset
from sublora.runs.base import make_base
from sublora.runs.decode import CertificateFiles, decode_certificate
from sublora.runs.encode import encode_run
from sublora.runs.train import train_run
from sublora.system.streams import generator
from sublora.tools.export import export_network
from sublora.tools.generate import Choice, Writing, continuation, write

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

CPU = torch.device("cpu")
SIZES = {"vocab_size": VOCABULARY, "max_position_embeddings": 40, "bos_token_id": 256, "eos_token_id": 256}
LLAMA = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 4} | SIZES
CASES = {
    "llama": (
        lambda: transformers.LlamaConfig(num_key_value_heads=2, tie_word_embeddings=False, **LLAMA),
        ["q_proj", "v_proj", "down_proj", "head"],
    ),
    "llama tied": (lambda: transformers.LlamaConfig(tie_word_embeddings=True, **LLAMA), ["q_proj", "head"]),
    "neox": (lambda: transformers.GPTNeoXConfig(**LLAMA), ["query_key_value", "dense_4h_to_h"]),
    "gpt2": (
        lambda: transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=40, vocab_size=VOCABULARY),
        ["c_attn", "mlp.c_proj", "head"],
    ),
}


def model_of(name: str) -> "transformers.PreTrainedModel":
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(CASES[name][0]()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2)
    return model


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    prepare_dataset(settings_for("llama", "zero_b").data, root)
    return root


def settings_for(name: str, init: str) -> config.Settings:
    values = merged(merged(demo_values(), TINY), {"lora": {"targets": CASES[name][1], "init": init}})
    values["model"] = {"kind": "huggingface", "n_layer": 2, "context_length": TINY["model"]["context_length"]}
    values["base"] = PRETRAINED
    values["training"] |= {"steps": 4, "eval_interval_steps": 2, "learning_rate": 0.3}
    return config.parse_settings(values, source="tiny")


def certified(name: str, init: str, data_root: Path, root: Path) -> Path:
    (root / "data").symlink_to(data_root / "data")
    model_of(name).save_pretrained(root / PRETRAINED["path"])
    settings = settings_for(name, init)
    make_base(settings, root=root)
    folder = root / "results/runs/d60_fixed-0.5_seed1"
    train_run(settings, config.parse_run(60, "fixed-0.5", 1), root=root, out=folder)
    encode_run(folder, root=root)
    return folder


@pytest.mark.parametrize(("name", "init"), [*((name, "zero_b") for name in CASES), ("llama tied", "both_random")])
def test_both_formats_compute_what_was_certified(data_root: Path, tmp_path: Path, name: str, init: str) -> None:
    files = CertificateFiles.of(certified(name, init, data_root, tmp_path))
    with torch.no_grad():
        compare(files, model_of(name), tmp_path)


def compare(files: CertificateFiles, frozen: torch.nn.Module, folder: Path) -> None:
    """What was decoded, the merged model and the adapters compute the same; greedy text too."""
    shape = (3, TINY["model"]["context_length"])
    tokens_NT = torch.from_numpy(np.random.default_rng(2).integers(0, VOCABULARY, shape))
    own = decode_certificate(files, CPU).model
    expected = own.logits(own.hidden(tokens_NT))
    assert (expected - frozen(tokens_NT).logits).abs().max() > 0.05

    merged_folder, adapters = (
        export_network(files, folder / "merged", "merged"),
        export_network(files, folder / "peft", "peft"),
    )
    model, info = transformers.AutoModelForCausalLM.from_pretrained(merged_folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(model.eval()(tokens_NT).logits, expected, rtol=2e-5, atol=1e-4)
    adapted = peft.AutoPeftModelForCausalLM.from_pretrained(adapters).eval()
    torch.testing.assert_close(adapted(tokens_NT).logits, expected, rtol=2e-5, atol=1e-4)

    prompt = [256, 97]
    generated = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, 2), do_sample=False, max_length=16, eos_token_id=256
    )[0, 2:].tolist()
    options = {"end_id": 256, "most_tokens": 14, "choice": Choice(0.0), "stream": generator(0), "device": CPU}
    written = continuation(own, np.array(prompt), **options)
    assert written.tolist() == [token for token in generated if token != 256]


def test_the_tokenizer_of_a_base_is_found_in_the_data_or_in_the_folder_that_is_named(tmp_path: Path) -> None:
    path = pretrained_root(tmp_path)
    settings = config.load_settings(path)
    prepare_all(settings, tmp_path)
    make_base(settings, root=tmp_path)
    folder = tmp_path / "results/runs/d40_uniform_seed1"
    train_run(settings, config.parse_run(40, "uniform", 1), root=tmp_path, out=folder)
    encode_run(folder, root=tmp_path)
    files, writing = CertificateFiles.of(folder), Writing("the model of", 8, Choice(0.0), 0)

    def written(files: CertificateFiles) -> str:
        return write(decode_certificate(files, CPU), writing)

    expected = written(files)
    assert expected.startswith("the model of")
    (tmp_path / "data").rename(tmp_path / "gone")
    # The model is where the settings say, which are a prover's: nobody looks there.
    assert "its tokenizer is that of the base, and there is no " in complaint(lambda: written(files))
    assert written(CertificateFiles.of(folder, pretrained=tmp_path / "model")) == expected
    (tmp_path / "other").mkdir()
    pretrained_root(tmp_path / "other", vocab_size=310)
    wrong = CertificateFiles.of(folder, pretrained=tmp_path / "other/model")
    assert "its tokenizer has 310 tokens" in complaint(lambda: written(wrong))


def test_a_base_of_another_kind_is_refused(data_root: Path, tmp_path: Path) -> None:
    folder = certified("llama", "zero_b", data_root, tmp_path)
    (tmp_path / "results/base/base.safetensors").write_bytes(b"")
    assert "not a readable safetensors file" in complaint(lambda: decode_certificate(CertificateFiles.of(folder), CPU))
