"""Models in GGUF files: a tiny Llama written here, and SmolLM2 where it has been fetched.

The second is slow: SUBLORA_SMOLLM2=FOLDER (`make fetch-smollm2` makes smollm2/model) pytest tests/test_models_gguf.py
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_samples import LLAMA, SPECIAL, texts, tiny_model, tiny_tokenizer

from sublora import config
from sublora.data.tokenizers import import_tokenizer
from sublora.models.adapted import LoraNetwork, lora_network
from sublora.models.huggingface import HuggingFaceBackbone, read_pretrained
from sublora.system.errors import UserError

gguf = pytest.importorskip("gguf")
pytest.importorskip("accelerate")

VOCABULARY = 300
SMOLLM2_PARAMETERS = 134_515_008
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def interleaved(weight_OI: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys in the order in which GGUF rotates them."""
    rows, columns = weight_OI.shape
    return weight_OI.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(path: Path, model: Any, tokenizer: Any) -> None:
    """A Llama of transformers and its tokenizer as one file, unquantized."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(LLAMA["num_hidden_layers"])
    writer.add_context_length(LLAMA["max_position_embeddings"])
    writer.add_embedding_length(LLAMA["hidden_size"])
    writer.add_feed_forward_length(LLAMA["intermediate_size"])
    writer.add_head_count(LLAMA["num_attention_heads"])
    writer.add_head_count_kv(LLAMA["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(VOCABULARY)
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    tokens += [f"<unused {i}>" for i in range(VOCABULARY - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", state["model.norm.weight"])
    writer.add_tensor("output.weight", state["lm_head.weight"])
    for layer in range(LLAMA["num_hidden_layers"]):
        for name, short in NAMES.items():
            value = state[f"model.layers.{layer}.{name}.weight"]
            heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(short)
            value = value if heads is None else interleaved(value, LLAMA[heads])
            writer.add_tensor(f"blk.{layer}.{short}.weight", np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def network(folder: Path, n_layer: int, targets: tuple[str, ...]) -> LoraNetwork:
    model = config.HuggingFaceModel(kind="huggingface", n_layer=n_layer, context_length=32)
    lora = config.Lora(rank=2, alpha=4.0, dropout=0.0, targets=targets, init="zero_b")
    base = read_pretrained(folder)
    backbone = HuggingFaceBackbone(base, model, lora, device=torch.device("cpu"), dtype=torch.float32)
    return lora_network(backbone, backbone.space, lora, base_sha256=base.sha256, seed=0)[0]


@torch.no_grad()
def log_p(net: LoraNetwork, tokens_NT: torch.Tensor) -> torch.Tensor:
    model = net.at(torch.zeros(net.space.size))
    return model.target_scores(model.hidden(tokens_NT[:, :-1]).flatten(0, 1), tokens_NT[:, 1:].flatten())[0]


def test_a_gguf_file_gives_the_logits_and_the_tokens_of_the_model_it_was_written_from(tmp_path: Path) -> None:
    model, tokenizer = tiny_model("Llama", VOCABULARY), tiny_tokenizer(texts(200), VOCABULARY - 10)
    write_gguf(tmp_path / "tiny.gguf", model, tokenizer)
    net = network(tmp_path, 2, ("q_proj", "v_proj", "head"))
    tokens_NT = torch.randint(VOCABULARY, (2, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(input_ids=tokens_NT[:, :-1]).logits.flatten(0, 1).log_softmax(1)
    expected = expected.gather(1, tokens_NT[:, 1:].flatten()[:, None])[:, 0]
    torch.testing.assert_close(log_p(net, tokens_NT), expected, atol=1e-5, rtol=1e-5)
    facts = import_tokenizer(tmp_path, tmp_path / "data")
    assert (facts.vocab_size, facts.eot_id) == (VOCABULARY, 0)
    for text in texts(20, seed=6):
        expected_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert facts.load().encode_batch([text])[0].tolist() == expected_ids


def test_two_gguf_files_are_ambiguous(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"one \.gguf file, found a.gguf, b.gguf"):
        read_pretrained(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif("SUBLORA_SMOLLM2" not in os.environ, reason="SUBLORA_SMOLLM2 does not name SmolLM2's folder")
def test_smollm2_predicts_english_better_than_its_shuffled_words() -> None:
    folder = Path(os.environ["SUBLORA_SMOLLM2"])
    net = network(folder, 30, ("q_proj", "v_proj"))
    base = read_pretrained(folder)
    assert base.parameters == SMOLLM2_PARAMETERS
    facts = import_tokenizer(folder, Path(os.environ.get("TMPDIR", "/tmp")) / "sublora-smollm2")
    text = "The model of a bound holds for new documents that nobody has seen before, with high probability."
    words = text.split()
    shuffled = [words[i] for i in np.random.default_rng(0).permutation(len(words))]
    losses = []
    for order in (words, shuffled):
        tokens = facts.load().encode_batch([" ".join(order)])[0].astype(np.int64)
        losses.append(-float(log_p(net, torch.from_numpy(tokens)[None]).mean()) / np.log(2.0))
    assert losses[0] < 7.0 < losses[1]
