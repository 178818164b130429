"""Which networks of transformers may be a base: the listed ones are causal, what could look ahead is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_samples import FALCON, GPT2, LLAMA, MAMBA, NEOX, tiny_model

from sublora import config
from sublora.losses.causality import CausalityTest
from sublora.losses.documents import ScoringRule, score_documents
from sublora.losses.windows import WindowRule
from sublora.models import architectures
from sublora.models.adapted import AdaptedModel
from sublora.models.architectures import CAUSAL_KEYS, WITHOUT_EFFECT, known_architecture, quiet_transformers
from sublora.models.huggingface import (
    HuggingFaceBackbone,
    HuggingFaceBase,
    load_huggingface_base,
    read_pretrained,
    save_base,
)
from sublora.system.errors import UserError
from sublora.system.streams import generator

pytest.importorskip("transformers")

VOCABULARY, CONTEXT = 50, 32
OPT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "ffn_dim": 24,
    "word_embed_proj_dim": 16,
    "max_position_embeddings": 64,
}
MPT = {"d_model": 16, "n_heads": 2, "n_layers": 2, "max_seq_len": 64}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "cohere": ("Cohere", LLAMA | {"logit_scale": 1.0}),
    "falcon": ("Falcon", FALCON),
    "gemma": ("Gemma", LLAMA | {"head_dim": 8}),
    "gemma3_text": ("Gemma3Text", LLAMA | {"head_dim": 8, "sliding_window": 12}),
    "gpt2": ("GPT2", GPT2),
    "gpt_bigcode": ("GPTBigCode", GPT2),
    "gpt_neox": ("GPTNeoX", NEOX),
    "granite": ("Granite", LLAMA),
    "llama": ("Llama", LLAMA),
    "mamba": ("Mamba", MAMBA),
    "mistral": ("Mistral", LLAMA | {"sliding_window": 12}),
    "mpt": ("Mpt", MPT),
    "olmo": ("Olmo", LLAMA),
    "olmo2": ("Olmo2", LLAMA),
    "opt": ("OPT", OPT),
    "phi3": ("Phi3", LLAMA),
    "qwen2": ("Qwen2", LLAMA | {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1}),
    "qwen3": ("Qwen3", LLAMA | {"head_dim": 8}),
    "smollm3": ("SmolLM3", LLAMA),
    "stablelm": ("StableLm", LLAMA),
    "starcoder2": ("Starcoder2", LLAMA),
}
"""A small model of every listed architecture whose head can be one matrix; the class's name and its sizes."""
HEADS = {"GPT2": "GPT2LMHeadModel", "Gemma3Text": "Gemma3ForCausalLM"}


def written(kind: str, folder: Path, **changes: Any) -> Path:
    name, sizes = SHAPES[kind]
    model: Any = tiny_model(name, VOCABULARY, head=HEADS.get(name), **sizes | {"pad_token_id": 0} | changes)
    model.save_pretrained(folder)
    return folder


def backbone(base: HuggingFaceBase) -> AdaptedModel:
    model = config.HuggingFaceModel(kind="huggingface", n_layer=2, context_length=CONTEXT)
    lora = config.Lora(rank=2, alpha=4.0, dropout=0.0, targets=("*",), init="zero_b")
    device = torch.device("cpu")
    return AdaptedModel(HuggingFaceBackbone(base, model, lora, device=device, dtype=torch.float32), None)


def causality(base: HuggingFaceBase) -> CausalityTest:
    """The test of a base on texts of all lengths."""
    stream = generator(1, "documents to score")
    documents = [stream.integers(1, VOCABULARY, size=int(n)) for n in stream.integers(4, 60, size=40)]
    test = CausalityTest(generator(2, "causality of tests"))
    rule = ScoringRule(WindowRule(CONTEXT, 20), 0, 512, fixed_shapes=True)
    score_documents(backbone(base), documents, rule, torch.device("cpu"), test)
    return test


@pytest.mark.parametrize("kind", SHAPES)
def test_listed_architectures_are_read_and_pass_the_test(kind: str, tmp_path: Path) -> None:
    base = read_pretrained(written(kind, tmp_path / kind))
    assert base.architecture["model_type"] == kind
    save_base(tmp_path / "base.safetensors", base)
    again = load_huggingface_base(tmp_path / "base.safetensors")
    assert again.sha256 == base.sha256
    test = causality(again)
    assert test.tested >= 15
    assert test.failed == 0
    assert test.largest_nats < 1e-4


def test_every_listed_architecture_is_tried() -> None:
    """Phi's head has a bias, so no file of it can be a base; Gemma 3 with images is tried in test_model_folders.py."""
    assert CAUSAL_KEYS.keys() - SHAPES.keys() == {"phi", "gemma3"}


@pytest.mark.parametrize("kind", CAUSAL_KEYS)
def test_the_list_has_every_key_of_this_version_of_transformers(kind: str) -> None:
    """A key that is not listed must keep its default value: one that a published model sets would refuse the model."""
    transformers = quiet_transformers()
    of_all = transformers.PretrainedConfig().to_dict().keys() - {"tie_word_embeddings"}
    keys = transformers.AutoConfig.for_model(kind).to_dict().keys() - of_all
    assert {key for key in keys if not WITHOUT_EFFECT.fullmatch(key)} <= CAUSAL_KEYS[kind] | {"model_type"}


REFUSED = [
    ("llama", {"is_causal": False}, "is_causal is False: its attention looks ahead"),
    ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True: its attention looks ahead"),
    ("gemma3_text", {"use_bidirectional_attention": "all"}, "its attention looks ahead"),
    ("llama", {"auto_map": {"AutoModelForCausalLM": "code.py"}}, "computed by code of its own"),
    ("llama", {"_attn_implementation": "someone/attention"}, "names another implementation"),
    ("llama", {"attn_implementation": "flex_attention"}, "names another implementation"),
    ("gpt2", {"add_cross_attention": True}, "reads a second text"),
    ("falcon", {"alibi": True}, "its mask is a summand"),
    ("bloom", {}, "not among the causal architectures"),
    ("llama", {"per_layer_config": {"0": {"hidden_size": 8}}}, "layers are of different architectures"),
    ("llama", {"quantization_config": {"bits": 4}}, "its weights are packed"),
    (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        "rope_type is 'dynamic'",
    ),
    ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "length of the whole text"),
    ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1]}}, "mrope_section"),
    ("qwen2", {"num_hidden_layers": 1, "layer_types": ["chunked_attention"]}, "layer_types is 'chunked_attention'"),
    ("bert", {}, "model_type is 'bert': not among the causal architectures"),
    ("gemma3", {"text_config": {"is_causal": False}}, "is_causal is False: its attention looks ahead"),
    ("gemma3", {"text_config": {"use_bidirectional_attention": True}}, "its attention looks ahead"),
    ("mpt", {"attn_config": {"prefix_lm": True}}, "prefix_lm is True: its attention looks ahead"),
    ("mixtral", {}, "not among the causal architectures"),
    (["llama"], {}, "not among the causal architectures"),
]


@pytest.mark.parametrize(("kind", "changes", "words"), REFUSED)
def test_what_could_look_ahead_is_refused_by_name(kind: Any, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        known_architecture({"model_type": kind} | changes, fix="give another base.path")
    assert words in str(caught.value)
    assert str(caught.value).endswith("; give another base.path")
    assert "\n" not in str(caught.value)


def test_longrope_is_refused_by_name() -> None:
    factors = {"short_factor": [1.0] * 48, "long_factor": [4.0] * 48}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 4096} | factors
    with pytest.raises(
        UserError, match="rope_type is 'longrope': its positions depend on the length of the whole text"
    ):
        known_architecture({"model_type": "phi3", "rope_parameters": rope}, fix="x")


def test_a_key_that_only_a_later_version_knows_is_refused_where_it_acts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CAUSAL_KEYS, "llama", CAUSAL_KEYS["llama"] - {"mlp_bias"})
    assert "mlp_bias" not in known_architecture({"model_type": "llama", "mlp_bias": False}, fix="x")
    with pytest.raises(UserError, match="mlp_bias is True: this release does not know the key for llama"):
        known_architecture({"model_type": "llama", "mlp_bias": True}, fix="x")


@pytest.mark.parametrize("where", ["folder", "file"])
def test_a_forged_description_is_refused_wherever_it_is_read(where: str, tmp_path: Path) -> None:
    folder = written("gemma", tmp_path / "gemma")
    base = read_pretrained(folder)
    if where == "folder":
        facts = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(facts | {"use_bidirectional_attention": True}))
        with pytest.raises(UserError, match="use_bidirectional_attention is True"):
            read_pretrained(folder)
        return
    forged = HuggingFaceBase(base.architecture | {"use_bidirectional_attention": True}, base.tensors)
    save_base(tmp_path / "base.safetensors", forged)
    with pytest.raises(UserError, match="use_bidirectional_attention is True"):
        load_huggingface_base(tmp_path / "base.safetensors")
    with pytest.raises(UserError, match="use_bidirectional_attention is True"):
        backbone(forged)


def test_a_network_that_the_list_lets_through_is_found_by_the_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two forgeries of real networks, with the refusal by name switched off: full attention, and LongRoPE."""
    base = read_pretrained(written("gemma", tmp_path / "gemma"))
    monkeypatch.setattr(architectures, "_NEVER", ())
    test = causality(HuggingFaceBase(base.architecture | {"use_bidirectional_attention": True}, base.tensors))
    assert test.failed > 0.8 * test.tested
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 16}
    rope |= {"short_factor": [1.0, 1.0], "long_factor": [8.0, 8.0]}
    monkeypatch.setattr(architectures, "ROPE_TYPES", (*architectures.ROPE_TYPES, "longrope"))
    monkeypatch.setattr(architectures, "ROPE_KEYS", architectures.ROPE_KEYS | rope.keys())
    changes = {"rope_parameters": rope, "original_max_position_embeddings": 16}
    switching = read_pretrained(written("phi3", tmp_path / "phi3", **changes))
    test = causality(switching)
    assert 0 < test.failed <= 4  # the windows that were cut
    assert test.largest_nats > 0.01


def test_honest_scores_do_not_depend_on_the_test(tmp_path: Path) -> None:
    base = read_pretrained(written("llama", tmp_path / "llama"))
    model, rule = backbone(base), ScoringRule(WindowRule(CONTEXT, 20), 0, 256, fixed_shapes=True)
    stream = generator(1, "documents to score")
    documents = [stream.integers(1, VOCABULARY, size=int(n)) for n in stream.integers(4, 60, size=40)]
    plain = score_documents(model, documents, rule, torch.device("cpu"))
    tested = score_documents(model, documents, rule, torch.device("cpu"), CausalityTest(generator(9, "x")))
    assert np.array_equal(plain.log_p_S, tested.log_p_S)
