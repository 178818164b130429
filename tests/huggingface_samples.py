"""Tiny causal language models and tokenizers in the format of Hugging Face, and an experiment on them."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from conftest import PRETRAINED, TINY, demo_values, merged

from sublora.system.streams import generator

TEXT = "the model of a bound on new documents holds with probability one minus delta for each message"
WORDS = TEXT.split()
SPECIAL = ["<|endoftext|>", "<|im_start|>"]
LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
NEOX = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
MAMBA = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
FALCON = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
TARGETS = {
    "Llama": ["q_proj", "v_proj"],
    "GPT2": ["c_attn", "mlp.c_fc"],
    "GPTNeoX": ["query_key_value"],
    # dt_proj is never called: Mamba reads its weight.
    "Mamba": ["dt_proj", "x_proj"],
    # A subclass of torch.nn.Linear.
    "Falcon": ["query_key_value", "dense_h_to_4h"],
}
SIZES = {"Llama": LLAMA, "GPT2": GPT2, "GPTNeoX": NEOX, "Mamba": MAMBA, "Falcon": FALCON}


def tiny_model(kind: str, vocab_size: int, *, head: str | None = None, **changes: Any) -> torch.nn.Module:
    """A model of transformers none of whose parameters has a special value. `head`: another name of the class."""
    import transformers

    settings = getattr(transformers, f"{kind}Config")(
        vocab_size=vocab_size, bos_token_id=0, eos_token_id=0, **SIZES.get(kind, {}) | changes
    )
    heads = {"GPT2": "GPT2LMHeadModel"}
    torch.manual_seed(0)
    model = getattr(transformers, head or heads.get(kind, f"{kind}ForCausalLM"))(settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2)
    return model


def tiny_tokenizer(text: list[str], vocab_size: int) -> Any:
    """Byte-level byte-pair encoding learned from text, with SPECIAL tokens."""
    import tokenizers
    import transformers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SPECIAL[0])


def texts(count: int, seed: int = 5) -> list[str]:
    """Distinct sentences of random words."""
    rng = generator(seed, "sentences of tests")
    return [f"{i} " + " ".join(rng.choice(WORDS, size=int(rng.integers(6, 30)))) for i in range(count)]


def write_documents(root: Path, documents: list[str]) -> None:
    folder = root / "documents"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": text, "author": f"author {i % 40}"}) for i, text in enumerate(documents)]
    (folder / "all.jsonl").write_text("\n".join(lines), encoding="utf-8")


def pretrained_root(root: Path, kind: str = "Llama", *, vocab_size: int = 300, documents: int = 400) -> Path:
    """A folder with a pretrained model, documents, and config/config.yaml; returns the last."""
    corpus = texts(documents)
    write_documents(root, corpus)
    tiny_model(kind, vocab_size).save_pretrained(root / "model")  # type: ignore[operator]
    tiny_tokenizer(corpus, vocab_size - 4).save_pretrained(root / "model")
    path = root / "config" / "config.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(pretrained_values(kind)), encoding="utf-8")
    return path


def pretrained_values(kind: str = "Llama") -> dict[str, Any]:
    """Settings of a tiny experiment on the model of `pretrained_root`."""
    values = merged(merged(demo_values(), TINY), {"lora": {"targets": [*TARGETS[kind], "head"]}})
    values["model"] = {"kind": "huggingface", "n_layer": 2, "context_length": 16}
    values["base"] = PRETRAINED | {"path": "model"}
    values["data"] |= {
        "name": "sentences",
        "corpus": {"kind": "folder", "path": "documents", "text_field": "text", "unit_field": None},
        "tokenizer": "base",
        "min_tokens": 4,
    }
    return values
