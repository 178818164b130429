"""A run's network: the frozen base, the adapters' layout and the subspace, built from settings and seeds."""

import dataclasses
import hashlib

import torch
from torch import Tensor

from sublora import config
from sublora.nn.gpt import FrozenGPT, random_weights, weights_sha256
from sublora.nn.lora import Adapters, Layout, build_layout
from sublora.nn.projectors import StructuredIDModule, build_subspace

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclasses.dataclass
class LanguageModel:
    """Frozen GPT-2 and the subspace module whose parameters are trained."""

    base: FrozenGPT
    subspace: StructuredIDModule
    layout: Layout
    base_sha256: str
    adapter_scale: float
    """alpha / rank."""

    def adapters(self, theta_D: Tensor) -> Adapters:
        return Adapters(self.layout, theta_D, scale=self.adapter_scale, dtype=self.base.dtype)


def build(settings: config.Settings, run: config.RunSpec, vocab_size: int, device: torch.device) -> LanguageModel:
    """Everything of a run at its start (w = 0, gates 1/2); the same function for every arm of a seed."""
    layout = build_layout(settings.model, settings.lora, vocab_size)
    subspace = build_subspace(settings, run, layout).to(device)
    weights = random_weights(settings.model, vocab_size, run.seed)
    base = FrozenGPT(settings.model, vocab_size, dtype=DTYPES[settings.compute.dtype])
    base.load(weights)
    return LanguageModel(
        base=base.to(device),
        subspace=subspace,
        layout=layout,
        base_sha256=weights_sha256(weights),
        adapter_scale=settings.lora.alpha / settings.lora.rank,
    )


def tensors_sha256(tensors: dict[str, Tensor]) -> str:
    """Digest of named float tensors, for comparing trained parameters."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + b"\0" + tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
