"""A network's adapters in the format of peft, and whole models of transformers with the adapters in their weights.

Shape legend: I inputs, O outputs, R rank of an update, C width, V vocabulary.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sublora import config
from sublora.models.adapted import AdaptedModel
from sublora.models.gpt import GPT
from sublora.models.huggingface import HuggingFaceBackbone, HuggingFaceBase, build_module, head_of
from sublora.models.linear_maps import is_linear
from sublora.models.lora import Adapters, Pair
from sublora.models.spaces import HEAD
from sublora.models.weights import CONV1D, GPT2_FORM, Base, Weights, weight_shapes

ATTENTION, MLP_IN, MLP_OUT = "attn.c_attn", "mlp.c_fc", "mlp.c_proj"
TARGET_MODULES = {"query": ATTENTION, "value": ATTENTION, "mlp_in": MLP_IN, "mlp_out": MLP_OUT}
"""The linear map that holds a target. Query, key and value are the three blocks of C outputs of one map."""
HEAD_MODULE = "lm_head"


@dataclasses.dataclass(frozen=True, eq=False)
class Update:
    """An update that is added to the weight of a linear map: up down (O x I), in float32."""

    down_RI: NDArray[np.float32]
    up_OR: NDArray[np.float32]

    @property
    def rank(self) -> int:
        return len(self.down_RI)

    def product(self) -> NDArray[np.float32]:
        """Return up down (O x I), summed in float64."""
        return (self.up_OR.astype(np.float64) @ self.down_RI.astype(np.float64)).astype(np.float32)


def update_of(pair: Pair) -> Update:
    """Return the update that an adapter's factors make."""
    down_RI, up_OR = (np.ascontiguousarray(part.detach().cpu().float().numpy()) for part in pair)
    return Update(down_RI, up_OR)


def peft_description(added: Mapping[str, Update], base_name: str, *, transposed: bool) -> dict[str, Any]:
    """Return adapter_config.json for the updates: every map has its own rank, and a scale alpha / rank of 1.

    The scale is already in the matrices, so ranks of several maps may differ. `transposed`: some of the maps are
    transformers' Conv1D.
    """
    # Ranks that differ from the largest are listed one by one.
    ranks = {name: update.rank for name, update in added.items()}
    common = max(ranks.values())
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "revision": None,
        "inference_mode": True,
        "r": common,
        "lora_alpha": common,
        "rank_pattern": {name: rank for name, rank in ranks.items() if rank != common},
        "alpha_pattern": {name: rank for name, rank in ranks.items() if rank != common},
        "target_modules": sorted(added),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": transposed,
    }


def peft_tensors(added: Mapping[str, Update]) -> dict[str, torch.Tensor]:
    """Return the tensors of adapter_model.safetensors for the updates, by the names that peft uses."""
    tensors = {}
    for name, update in added.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.from_numpy(update.down_RI)
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.from_numpy(update.up_OR)
    return tensors


def updates(model: AdaptedModel, base: Base | HuggingFaceBase) -> tuple[dict[str, Update], bool]:
    """Return the update of every adapted linear map, and whether some of the maps are transformers' Conv1D.

    The maps have their names in the model of transformers. The updates are empty for a network without adapters.
    """
    if model.adapters is None:
        return {}, True
    if isinstance(model.backbone, GPT):
        found = _gpt2_updates(model.backbone, model.adapters)
        return found, set(found) != {HEAD_MODULE}
    assert isinstance(model.backbone, HuggingFaceBackbone) and isinstance(base, HuggingFaceBase)
    return _huggingface_updates(model.backbone, model.adapters, base)


def _gpt2_updates(gpt: GPT, adapters: Adapters) -> dict[str, Update]:
    """Return the update of every adapted linear map by its name in transformers' GPT2LMHeadModel.

    Query and value share one map, c_attn, whose update of rank 2 r (4 r with random B) consists of blocks: the rows
    that belong to neither are zero.
    """
    found: dict[str, Update] = {}
    for layer in range(gpt.shape.n_layer):
        pairs = {target: adapters.pair(str(layer), target) for target in config.BLOCK_TARGETS}
        prefix = f"transformer.h.{layer}."
        thirds = [pairs["query"], None, pairs["value"]]
        if any(pair is not None for pair in thirds):
            found[prefix + ATTENTION] = _stacked(thirds, gpt.shape.n_embd)
        for target in ("mlp_in", "mlp_out"):
            if (pair := pairs[target]) is not None:
                found[prefix + TARGET_MODULES[target]] = update_of(pair)
    if (pair := adapters.pair(HEAD, HEAD)) is not None:
        found[HEAD_MODULE] = update_of(pair)
    return found


def _stacked(pairs: list[Pair | None], outputs: int) -> Update:
    """Return the update of maps with `outputs` outputs each that are stacked in one weight and read one input."""
    present = {index: update_of(pair) for index, pair in enumerate(pairs) if pair is not None}
    down_RI = np.concatenate([each.down_RI for each in present.values()])
    up_OR = np.zeros((len(pairs) * outputs, len(down_RI)), dtype=np.float32)
    start = 0
    for index, each in present.items():
        up_OR[index * outputs : (index + 1) * outputs, start : start + each.rank] = each.up_OR
        start += each.rank
    return Update(down_RI, up_OR)


def gpt2_description(model: config.Model, vocab_size: int, end_id: int, *, tied_head: bool) -> dict[str, Any]:
    """Return config.json of a GPT2LMHeadModel that computes what this library's network does."""
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


def gpt2_weights(model: AdaptedModel) -> Weights:
    """Return the weights that a GPT-2 computes with beside its adapters, float32.

    TypeError for a model on another backbone.
    """
    gpt = model.backbone
    if not isinstance(gpt, GPT):
        raise TypeError(f"expected a model on this library's GPT-2, found {type(gpt).__name__}")
    names = weight_shapes(gpt.shape, gpt.vocab_size)
    return {name: gpt.weight(name).detach().float().cpu().numpy() for name in names}


def gpt2_tensors(weights: Weights, added: Mapping[str, Update]) -> dict[str, torch.Tensor]:
    """Return the tensors of a GPT2LMHeadModel by name, with the updates in their weights.

    An updated head has its own tensor; otherwise it is the token embedding and needs none.
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


def _huggingface_updates(
    backbone: HuggingFaceBackbone, adapters: Adapters, base: HuggingFaceBase
) -> tuple[dict[str, Update], bool]:
    """Return the updates by the maps' names in the model, and whether some of the maps are transformers' Conv1D."""
    module = build_module(base, torch.float32)
    found, transposed = {}, False
    for each in backbone.maps:
        pair = adapters.pair(each.group, each.target)
        if pair is not None:
            name = _name_of(module, head_of(module)) if each.group == HEAD else each.name
            found[name] = update_of(pair)
            transposed |= not isinstance(module.get_submodule(name), nn.Linear)
    return found, transposed


@torch.no_grad()
def merged_module(base: HuggingFaceBase, added: Mapping[str, Update]) -> nn.Module:
    """Return the model in float32 with the updates in its weights; a tied head that is updated is untied."""
    module = build_module(base, torch.float32)
    head = head_of(module)
    for name, update in added.items():
        target = module.get_submodule(name)
        assert is_linear(target)
        product_OI = torch.from_numpy(update.product())
        weight = target.get_parameter("weight")
        changed = weight + (product_OI if isinstance(target, nn.Linear) else product_OI.T)
        if target is head:
            module.config.tie_word_embeddings = False  # type: ignore[union-attr]
        target.weight = nn.Parameter(changed, requires_grad=False)
    return module


def _name_of(module: nn.Module, part: nn.Module | None) -> str:
    return next(name for name, found in module.named_modules() if found is part)
