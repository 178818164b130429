"""What adapters add to the weights of linear maps, and the form in which peft reads it.

Shape legend: I inputs, O outputs, R rank of an update.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sublora.models.lora import Pair


@dataclasses.dataclass(frozen=True, eq=False)
class Update:
    """What is added to the weight of a linear map: up down (O x I), in float32."""

    down_RI: NDArray[np.float32]
    up_OR: NDArray[np.float32]

    @property
    def rank(self) -> int:
        return len(self.down_RI)

    def product(self) -> NDArray[np.float32]:
        """up down (O x I), summed in float64."""
        return (self.up_OR.astype(np.float64) @ self.down_RI.astype(np.float64)).astype(np.float32)


def update_of(pair: Pair) -> Update:
    """The update of an adapter's factors."""
    down_RI, up_OR = (np.ascontiguousarray(part.detach().cpu().float().numpy()) for part in pair)
    return Update(down_RI, up_OR)


def peft_description(
    added: Mapping[str, Update], base_name: str, revision: str | None, *, transposed: bool
) -> dict[str, Any]:
    """adapter_config.json of the updates: every map has its own rank, and a scale alpha / rank of 1.

    The scale is in the matrices already, so that ranks of several maps may differ. `transposed`: some of the maps are
    transformers' Conv1D.
    """
    ranks = {name: update.rank for name, update in added.items()}
    common = max(ranks.values())
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "revision": revision,
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
    """adapter_model.safetensors of the updates: matrices by the names that peft gives them."""
    tensors = {}
    for name, update in added.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.from_numpy(update.down_RI)
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.from_numpy(update.up_OR)
    return tensors
