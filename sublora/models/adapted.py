"""Networks that are a function of theta: a backbone whose LoRA matrices, or all of whose weights, are cut out of theta.

There are two backbones, this library's GPT-2 (`gpt`) and any causal model of transformers (`huggingface`). Their heads
are computed here.

Shape legend: N sequences, T positions, K scored positions, C width, R rank, V vocabulary, D entries of theta.
"""

import dataclasses
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sublora import config
from sublora.models.gpt import GPT
from sublora.models.head import head_cross_entropy, head_target_scores
from sublora.models.lora import Adapters, cut, down_projection, initial_theta
from sublora.models.spaces import HEAD
from sublora.subspace.cores import Lift, cores_of
from sublora.subspace.parameters import ParameterSpace
from sublora.system.errors import UserError


class Backbone(Protocol):
    """A frozen network up to its last hidden states, with the matrix of its head."""

    use_compiler: bool
    dtype: torch.dtype
    """The type in which it computes."""

    @property
    def context_length(self) -> int: ...

    @property
    def head_VC(self) -> Tensor:
        """The matrix by which hidden states are multiplied to give logits."""

    def hidden(self, tokens_NT: Tensor, adapters: Adapters | None = None, *, dropout: float = 0.0) -> Tensor:
        """Return the final hidden states (N x T x C) for token ids; `dropout` acts on the input of every adapter."""

    def target_weight(self, group: str, target: str) -> Tensor:
        """Return the frozen weight (outputs x inputs) of an adapted linear map."""


@dataclasses.dataclass(frozen=True, eq=False)
class AdaptedModel:
    """A backbone with its adapters; a `LanguageModel`."""

    backbone: Backbone
    adapters: Adapters | None
    """None if the weights themselves are trained."""
    dropout: float = 0.0
    """Acts on the input of every adapter during training."""

    @property
    def vocab_size(self) -> int:
        return len(self.backbone.head_VC)

    @property
    def context_length(self) -> int:
        return self.backbone.context_length

    def hidden(self, tokens_NT: Tensor, *, training: bool = False) -> Tensor:
        if tokens_NT.shape[1] > self.context_length:
            raise ValueError(f"{tokens_NT.shape[1]} positions exceed the context of {self.context_length}")
        return self.backbone.hidden(tokens_NT, self.adapters, dropout=self._dropout(training))

    @torch.no_grad()
    def logits(self, hidden_KC: Tensor) -> Tensor:
        return self.differentiable_logits(hidden_KC).float()

    def differentiable_logits(self, hidden: Tensor) -> Tensor:
        """Return the logits (... x V) of hidden states (... x C), all at once, in the compute dtype."""
        logits = hidden @ self.backbone.head_VC.T
        down, up_VR = self._head_factors(hidden, 0.0)
        return logits if down is None or up_VR is None else logits + F.linear(down, up_VR)

    def cross_entropy(
        self,
        hidden_KC: Tensor,
        targets_K: Tensor,
        *,
        position_weights_K: Tensor | None = None,
        smoothing: float = 0.0,
        training: bool = False,
    ) -> Tensor:
        down_KR, up_VR = self._head_factors(hidden_KC, self._dropout(training))
        return head_cross_entropy(
            hidden_KC,
            self.backbone.head_VC,
            down_KR,
            up_VR,
            targets_K,
            position_weights_K=position_weights_K,
            smoothing=smoothing,
            use_compiler=self.backbone.use_compiler,
        )

    def target_scores(self, hidden_KC: Tensor, targets_K: Tensor) -> tuple[Tensor, Tensor]:
        down_KR, up_VR = self._head_factors(hidden_KC, 0.0)
        head_VC, use_compiler = self.backbone.head_VC, self.backbone.use_compiler
        return head_target_scores(hidden_KC, head_VC, down_KR, up_VR, targets_K, use_compiler=use_compiler)

    def _head_factors(self, hidden: Tensor, dropout: float) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Return scale A x and B of the head's adapter, or two None if it has none."""
        pair = None if self.adapters is None else self.adapters.pair(HEAD, HEAD)
        return (None, None) if pair is None else (down_projection(hidden, pair, dropout), pair[1])

    def _dropout(self, training: bool) -> float:
        return self.dropout if training else 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class _BackboneNetwork:
    """The common part of networks on a backbone, whatever theta stands for."""

    backbone: Backbone
    space: ParameterSpace
    base_sha256: str
    """Identifies the weights that the run starts from."""

    @property
    def vocab_size(self) -> int:
        return len(self.backbone.head_VC)

    @property
    def context_length(self) -> int:
        return self.backbone.context_length

    @property
    def device(self) -> torch.device:
        return self.backbone.head_VC.device


@dataclasses.dataclass(frozen=True, eq=False)
class LoraNetwork(_BackboneNetwork):
    """A frozen backbone and, for each theta, its adapters; a `Network`."""

    scale: float
    """alpha / rank."""
    dropout: float = 0.0
    origin_D: Tensor | None = None
    """The initial theta if its product must be subtracted, because B starts from random values."""
    lift: Lift | None = None
    """Where not theta itself is trained but cores of its adapters, how they move it."""

    def at(self, theta_D: Tensor) -> AdaptedModel:
        """Return the backbone with the adapters of theta, differentiable in theta."""
        dtype = self.backbone.dtype
        adapters = Adapters(self.space, theta_D, scale=self.scale, dtype=dtype, origin_D=self.origin_D)
        return AdaptedModel(self.backbone, adapters, self.dropout)


@dataclasses.dataclass(frozen=True, eq=False)
class WeightsNetwork(_BackboneNetwork):
    """A GPT some or all of whose weights are theta; a `Network`.

    The backbone's own weights appear in models where theta has none; `base_sha256` identifies those that training
    starts from.
    """

    backbone: GPT

    def at(self, theta_D: Tensor) -> AdaptedModel:
        """Return the GPT with the weights of theta, differentiable in theta."""
        weights = cut(self.space, theta_D.to(self.backbone.dtype))
        return AdaptedModel(self.backbone.with_weights(weights), None)


def lora_network(
    backbone: Backbone, space: ParameterSpace, lora: config.Lora, *, base_sha256: str, seed: int
) -> tuple[LoraNetwork, NDArray[np.float32]]:
    """Return the backbone with adapters, and theta (D) at the start; `seed` draws the LoRA matrices."""
    start_D = initial_theta(space, seed, lora.init)
    # With a random B the initial product has to be subtracted.
    origin_D = torch.from_numpy(start_D).to(backbone.head_VC.device) if lora.init == "both_random" else None
    scale = lora.alpha / lora.rank
    network = LoraNetwork(backbone, space, base_sha256, scale=scale, dropout=lora.dropout, origin_D=origin_D)
    return network, start_D


def cores_network(
    backbone: Backbone, space: ParameterSpace, lora: config.Lora, *, base_sha256: str
) -> tuple[LoraNetwork, NDArray[np.float32]]:
    """Return the backbone with adapters of which cores are trained, and theta (D) at the start, where B is 0.

    UserError if the rank exceeds that of an adapted weight.
    """
    weights_OI = {}
    for p in space.parameters:
        if p.role == "B":
            group, target, _ = p.name.split(".")
            weights_OI[p.name] = backbone.target_weight(group, target).detach().double().cpu().numpy()
    try:
        lift, start_D = cores_of(space, weights_OI)
    except ValueError as error:
        raise UserError(f"subspace.adapt cores: {error}") from None
    scale = lora.alpha / lora.rank
    return LoraNetwork(backbone, space, base_sha256, scale=scale, dropout=lora.dropout, lift=lift), start_D
