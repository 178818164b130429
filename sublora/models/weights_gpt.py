"""A GPT all of whose weights are a vector theta.

Shape legend: D weights.
"""

import dataclasses

import torch
from torch import Tensor

from sublora.models.gpt import GPT
from sublora.models.lora_gpt import AdaptedGPT
from sublora.subspace.parameters import ParameterSpace


@dataclasses.dataclass(frozen=True, eq=False)
class WeightsGPT:
    """A GPT for every theta of its weights; a `Network`."""

    gpt: GPT
    """Its own weights are in no model."""
    space: ParameterSpace
    base_sha256: str
    """Of the weights that training starts from."""

    @property
    def vocab_size(self) -> int:
        return self.gpt.vocab_size

    @property
    def context_length(self) -> int:
        return self.gpt.shape.context_length

    @property
    def device(self) -> torch.device:
        return self.gpt.weight("wte.weight").device

    def at(self, theta_D: Tensor) -> AdaptedGPT:
        # One split, so that its gradient is one concatenation.
        parts = theta_D.to(self.gpt.dtype).split([p.stop - p.start for p in self.space.parameters])
        weights = {p.name: part.view(p.shape) for p, part in zip(self.space.parameters, parts, strict=True)}
        return AdaptedGPT(self.gpt.with_weights(weights), None)
