"""A model of transformers with its adapters merged into its weights.

Shape legend: O outputs, I inputs.
"""

from collections.abc import Mapping

import torch
from torch import nn

from sublora.models.huggingface import AdaptedHuggingFace, HuggingFaceBase, build_module, head_of
from sublora.models.linear_maps import is_linear
from sublora.models.lora_space import HEAD
from sublora.models.updates import Update, update_of


def huggingface_updates(model: AdaptedHuggingFace, base: HuggingFaceBase) -> tuple[dict[str, Update], bool]:
    """(The update of every adapted linear map by its name in the model, whether some are transformers' Conv1D)."""
    module = build_module(base, torch.float32)
    found, transposed = {}, False
    for each in model.network.maps:
        pair = model.adapters.pair(each.group, each.target)
        if pair is not None:
            name = _name_of(module, head_of(module)) if each.group == HEAD else each.name
            found[name] = update_of(pair)
            transposed |= not isinstance(module.get_submodule(name), nn.Linear)
    return found, transposed


@torch.no_grad()
def merged_module(base: HuggingFaceBase, added: Mapping[str, Update]) -> nn.Module:
    """The model in float32 with the updates in its weights; an updated head that was tied has a weight of its own."""
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
