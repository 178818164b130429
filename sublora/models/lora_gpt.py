"""A GPT whose LoRA matrices are a vector theta: the network of the experiment.

Shape legend: N sequences, T positions, K scored positions, C width, V vocabulary, D LoRA parameters.
"""

import dataclasses

import torch
from torch import Tensor

from sublora.models.gpt import GPT
from sublora.models.lora import Adapters
from sublora.subspace.parameters import ParameterSpace


@dataclasses.dataclass(frozen=True, eq=False)
class AdaptedGPT:
    """A GPT with its adapters in place; a `LanguageModel`."""

    gpt: GPT
    adapters: Adapters | None
    """None where there are none, because the weights themselves are trained."""
    dropout: float = 0.0
    """On the input of every adapter, while training."""

    @property
    def vocab_size(self) -> int:
        return self.gpt.vocab_size

    @property
    def context_length(self) -> int:
        return self.gpt.shape.context_length

    def hidden(self, tokens_NT: Tensor, *, training: bool = False) -> Tensor:
        return self.gpt.hidden(tokens_NT, self.adapters, dropout=self.dropout if training else 0.0)

    @torch.no_grad()
    def logits(self, hidden_KC: Tensor) -> Tensor:
        return self.gpt.logits(hidden_KC, self.adapters).float()

    def cross_entropy(
        self,
        hidden_KC: Tensor,
        targets_K: Tensor,
        *,
        position_weights_K: Tensor | None = None,
        smoothing: float = 0.0,
        training: bool = False,
    ) -> Tensor:
        return self.gpt.cross_entropy(
            hidden_KC,
            targets_K,
            self.adapters,
            dropout=self.dropout if training else 0.0,
            position_weights_K=position_weights_K,
            smoothing=smoothing,
        )

    def target_scores(self, hidden_KC: Tensor, targets_K: Tensor) -> tuple[Tensor, Tensor]:
        return self.gpt.target_scores(hidden_KC, targets_K, self.adapters)


@dataclasses.dataclass(frozen=True, eq=False)
class GPTNetwork:
    """What networks on a GPT have in common, whatever theta stands for."""

    gpt: GPT
    space: ParameterSpace
    base_sha256: str

    @property
    def vocab_size(self) -> int:
        return self.gpt.vocab_size

    @property
    def context_length(self) -> int:
        return self.gpt.shape.context_length

    @property
    def device(self) -> torch.device:
        return self.gpt.weight("wte.weight").device


@dataclasses.dataclass(frozen=True, eq=False)
class LoraGPT(GPTNetwork):
    """A frozen GPT for every theta of its adapters; a `Network`."""

    scale: float
    """alpha / rank."""
    dropout: float = 0.0
    origin_D: Tensor | None = None
    """The initial theta where its product must be subtracted, because B starts from random values."""

    def at(self, theta_D: Tensor) -> AdaptedGPT:
        adapters = Adapters(self.space, theta_D, scale=self.scale, dtype=self.gpt.dtype, origin_D=self.origin_D)
        return AdaptedGPT(self.gpt, adapters, self.dropout)
