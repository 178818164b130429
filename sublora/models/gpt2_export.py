"""This library's GPT-2 and its adapters as transformers names and stores them.

Shape legend: I inputs, O outputs, R rank of an update, C width, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from sublora import config
from sublora.models.lora import Pair
from sublora.models.lora_gpt import AdaptedGPT
from sublora.models.lora_space import HEAD
from sublora.models.updates import Update, update_of
from sublora.models.weights import CONV1D, GPT2_FORM, Weights, weight_shapes

ATTENTION, MLP_IN, MLP_OUT = "attn.c_attn", "mlp.c_fc", "mlp.c_proj"
TARGET_MODULES = {"query": ATTENTION, "value": ATTENTION, "mlp_in": MLP_IN, "mlp_out": MLP_OUT}
"""The linear map that holds a target. Query, key and value are the thirds of one of 3 C outputs."""
HEAD_MODULE = "lm_head"


def gpt2_updates(model: AdaptedGPT) -> dict[str, Update]:
    """The update of every adapted linear map by its name in transformers' GPT2LMHeadModel.

    Query and value share one map, c_attn, whose update of rank 2 r (with random B 4 r) is made of blocks: the rows of
    its third that belong to neither are zero. Empty for a network without adapters.
    """
    if model.adapters is None:
        return {}
    found: dict[str, Update] = {}
    for layer in range(model.gpt.shape.n_layer):
        pairs = {target: model.adapters.pair(str(layer), target) for target in config.BLOCK_TARGETS}
        prefix = f"transformer.h.{layer}."
        thirds = [pairs["query"], None, pairs["value"]]
        if any(pair is not None for pair in thirds):
            found[prefix + ATTENTION] = _stacked(thirds, model.gpt.shape.n_embd)
        for target in ("mlp_in", "mlp_out"):
            if (pair := pairs[target]) is not None:
                found[prefix + TARGET_MODULES[target]] = update_of(pair)
    if (pair := model.adapters.pair(HEAD, HEAD)) is not None:
        found[HEAD_MODULE] = update_of(pair)
    return found


def _stacked(pairs: list[Pair | None], outputs: int) -> Update:
    """The update of maps of `outputs` outputs each that lie below one another in one weight and read one input."""
    present = {index: update_of(pair) for index, pair in enumerate(pairs) if pair is not None}
    down_RI = np.concatenate([each.down_RI for each in present.values()])
    up_OR = np.zeros((len(pairs) * outputs, len(down_RI)), dtype=np.float32)
    start = 0
    for index, each in present.items():
        up_OR[index * outputs : (index + 1) * outputs, start : start + each.rank] = each.up_OR
        start += each.rank
    return Update(down_RI, up_OR)


def gpt2_description(model: config.Model, vocab_size: int, end_id: int, *, tied_head: bool) -> dict[str, Any]:
    """config.json of a GPT2LMHeadModel that computes what this library's network does."""
    return GPT2_FORM | {
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": vocab_size,
        "n_positions": model.context_length,
        "n_embd": model.n_embd,
        "n_layer": model.n_layer,
        "n_head": model.n_head,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "bos_token_id": end_id,
        "eos_token_id": end_id,
        "torch_dtype": "float32",
        "tie_word_embeddings": tied_head,
    }


def gpt2_weights(model: AdaptedGPT) -> Weights:
    """The weights that a network computes with beside its adapters, float32."""
    names = weight_shapes(model.gpt.shape, model.vocab_size)
    return {name: model.gpt.weight(name).detach().float().cpu().numpy() for name in names}


def gpt2_tensors(weights: Weights, added: Mapping[str, Update]) -> dict[str, torch.Tensor]:
    """Tensors of a GPT2LMHeadModel by name, with the updates in their weights.

    An updated head has a tensor of its own, else it is the token embedding and has none.
    """
    tensors = {}
    for name, weight in weights.items():
        stored = f"transformer.{name}"
        update = added.get(stored.removesuffix(".weight")) if name.endswith(".weight") else None
        value = weight if update is None else weight + update.product()
        tensors[stored] = torch.from_numpy(np.array(value.T if name.endswith(CONV1D) else value, dtype=np.float32))
    if HEAD_MODULE in added:
        head_VC = weights["wte.weight"] + added[HEAD_MODULE].product()
        tensors[f"{HEAD_MODULE}.weight"] = torch.from_numpy(np.array(head_VC, dtype=np.float32))
    return {name: tensor.contiguous() for name, tensor in tensors.items()}
