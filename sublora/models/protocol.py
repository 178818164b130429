"""The interface of a network for training, scoring and writing text, which know nothing else about it.

Shape legend: N sequences, T positions, K scored positions, C width of the last hidden states, V vocabulary,
D entries of theta.
"""

from typing import Protocol

import torch
from torch import Tensor

from sublora.subspace.parameters import ParameterSpace


class LanguageModel(Protocol):
    """A next-token predictor with all its parameters set."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def context_length(self) -> int: ...

    def hidden(self, tokens_NT: Tensor, *, training: bool = False) -> Tensor:
        """Return what the head reads (N x T x C) for token ids; `training` turns dropout on.

        ValueError beyond the context.
        """

    def logits(self, hidden_KC: Tensor) -> Tensor:
        """Return the logits (K x V), float32, without gradients, for writing text position by position."""

    def cross_entropy(
        self,
        hidden_KC: Tensor,
        targets_K: Tensor,
        *,
        position_weights_K: Tensor | None = None,
        smoothing: float = 0.0,
        training: bool = False,
    ) -> Tensor:
        """Return the weighted sum over positions of -ln((1 - a) p + a / V), nats, differentiable; a = smoothing.

        Weights default to 1 / K, the mean. The logits of all positions are never held at once.
        """

    def target_scores(self, hidden_KC: Tensor, targets_K: Tensor) -> tuple[Tensor, Tensor]:
        """Return ln p, float32 (K), and rank, int32 (K), of each target, without gradients.

        The rank is the number of other tokens with at least the target's logit.
        """


class Network(Protocol):
    """A language model for every theta; only theta is trained."""

    @property
    def space(self) -> ParameterSpace: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def context_length(self) -> int: ...

    @property
    def base_sha256(self) -> str:
        """Identifies the frozen weights."""

    @property
    def device(self) -> torch.device: ...

    def at(self, theta_D: Tensor) -> LanguageModel:
        """Return the model at theta, differentiable in theta."""
