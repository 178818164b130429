"""A run's network: the frozen base, the adapters' layout and the subspace, built from settings and seeds."""

import dataclasses
import hashlib

import torch
from torch import Tensor

from sublora import config
from sublora.nn.gpt import FrozenGPT, random_weights, weights_sha256
from sublora.nn.layout import Layout, build_layout
from sublora.nn.lora import Adapters
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
    subtract_start: bool
    """Whether B starts from random values, so that the initial product has to be taken away."""

    def adapters(self, theta_D: Tensor) -> Adapters:
        origin = self.subspace.theta_init if self.subtract_start else None
        return Adapters(self.layout, theta_D, scale=self.adapter_scale, dtype=self.base.dtype, origin_D=origin)


def build(settings: config.Settings, run: config.RunSpec, vocab_size: int, device: torch.device) -> LanguageModel:
    """Everything of a run at its start (w = 0, gates 1/2); the same function for every arm of a seed."""
    layout = build_layout(settings.model, settings.lora, vocab_size)
    subspace = build_subspace(settings, run, layout).to(device)
    weights = random_weights(settings.model, vocab_size, run.seed)
    base = FrozenGPT(
        settings.model, vocab_size, dtype=DTYPES[settings.compute.dtype], use_compiler=settings.compute.compile
    )
    base.load(weights)
    return LanguageModel(
        base=base.to(device),
        subspace=subspace,
        layout=layout,
        base_sha256=weights_sha256(weights),
        adapter_scale=settings.lora.alpha / settings.lora.rank,
        subtract_start=settings.lora.init == "both_random",
    )


def tensors_sha256(tensors: dict[str, Tensor]) -> str:
    """Digest of named float tensors, for comparing trained parameters."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + b"\0" + tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
