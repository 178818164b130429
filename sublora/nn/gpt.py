"""GPT-2 with frozen weights and LoRA adapters that are inputs, not parameters.

Shape legend: N sequences, T positions, C width, H heads, V vocabulary, R rank, K scored positions.
"""

import hashlib
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sublora import config, random
from sublora.nn.activation import gelu_tanh
from sublora.nn.head import head_cross_entropy
from sublora.nn.lora import HEAD, Adapters

LAYER_NORM_EPSILON = 1e-5


class FrozenGPT(nn.Module):
    """GPT-2 (pre-norm, learned positions, tanh GELU, head tied to the token embedding), all weights frozen.

    Weights are buffers named as in Hugging Face's GPT2LMHeadModel, but stored output x input. The head has
    exactly V rows, so no probability can sit on padding ids.
    """

    def __init__(self, model: config.Model, vocab_size: int, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.shape, self.vocab_size, self.dtype = model, vocab_size, dtype
        for name, shape in weight_shapes(model, vocab_size).items():
            self.register_buffer(_buffer_name(name), torch.zeros(shape, dtype=dtype), persistent=False)

    def weight(self, name: str) -> Tensor:
        return getattr(self, _buffer_name(name))

    @torch.no_grad()
    def load(self, weights: dict[str, np.ndarray]) -> None:
        """Copy every weight; ValueError if a name or a shape differs from `weight_shapes`."""
        expected = weight_shapes(self.shape, self.vocab_size)
        if set(weights) != set(expected):
            raise ValueError(f"weights named {sorted(set(weights) ^ set(expected))} are missing or unknown")
        for name, value in weights.items():
            if tuple(value.shape) != expected[name]:
                raise ValueError(f"weight {name} has shape {tuple(value.shape)}, expected {expected[name]}")
            self.weight(name).copy_(torch.from_numpy(value))

    def hidden(self, tokens_NT: Tensor, adapters: Adapters, *, dropout: float = 0.0) -> Tensor:
        """Final hidden states (N x T x C) for token ids; `dropout` acts on the input of every adapter."""
        length = tokens_NT.shape[1]
        if length > self.shape.context_length:
            raise ValueError(f"{length} positions exceed the context of {self.shape.context_length}")
        x_NTC = F.embedding(tokens_NT, self.weight("wte.weight")) + self.weight("wpe.weight")[:length]
        for layer in range(self.shape.n_layer):
            prefix = f"h.{layer}."
            x_NTC = x_NTC + self._attention(prefix, str(layer), self._norm(prefix + "ln_1", x_NTC), adapters, dropout)
            hidden = self._linear(prefix + "mlp.c_fc", self._norm(prefix + "ln_2", x_NTC))
            x_NTC = x_NTC + self._linear(prefix + "mlp.c_proj", gelu_tanh(hidden))
        return self._norm("ln_f", x_NTC)

    def logits(self, hidden_KC: Tensor, adapters: Adapters, *, dropout: float = 0.0) -> Tensor:
        """Logits (... x V) of hidden states, in the compute dtype."""
        logits = hidden_KC @ self.weight("wte.weight").T
        return logits + delta if (delta := adapters.delta(HEAD, "head", hidden_KC, dropout)) is not None else logits

    def loss(
        self,
        tokens_NT: Tensor,
        targets_NT: Tensor,
        adapters: Adapters,
        *,
        dropout: float = 0.0,
        position_weights_NT: Tensor | None = None,
        smoothing: float = 0.0,
    ) -> Tensor:
        """Weighted cross-entropy in nats (see `head_cross_entropy`): by default the mean over all tokens.

        The logits of all positions are never held at once.
        """
        hidden = self.hidden(tokens_NT, adapters, dropout=dropout).flatten(0, 1)
        down, up = adapters.factors(HEAD, "head", hidden, dropout)
        weights = None if position_weights_NT is None else position_weights_NT.flatten()
        return head_cross_entropy(
            hidden,
            self.weight("wte.weight"),
            down,
            up,
            targets_NT.flatten(),
            position_weights_K=weights,
            smoothing=smoothing,
        )

    def _attention(self, prefix: str, group: str, x_NTC: Tensor, adapters: Adapters, dropout: float) -> Tensor:
        n, t, c = x_NTC.shape
        query, key, value = self._linear(prefix + "attn.c_attn", x_NTC).split(c, dim=2)
        if (delta := adapters.delta(group, "query", x_NTC, dropout)) is not None:
            query = query + delta
        if (delta := adapters.delta(group, "value", x_NTC, dropout)) is not None:
            value = value + delta
        heads = [part.view(n, t, self.shape.n_head, -1).transpose(1, 2) for part in (query, key, value)]
        mixed = F.scaled_dot_product_attention(*heads, is_causal=True)
        return self._linear(prefix + "attn.c_proj", mixed.transpose(1, 2).reshape(n, t, c))

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weight(name + ".weight"), self.weight(name + ".bias"))

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(
            x, (self.shape.n_embd,), self.weight(name + ".weight"), self.weight(name + ".bias"), LAYER_NORM_EPSILON
        )


def weight_shapes(model: config.Model, vocab_size: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every frozen weight, in the order in which they are hashed."""
    c = model.n_embd
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (vocab_size, c), "wpe.weight": (model.context_length, c)}
    for layer in range(model.n_layer):
        prefix = f"h.{layer}."
        linears = {"attn.c_attn": (3 * c, c), "attn.c_proj": (c, c), "mlp.c_fc": (4 * c, c), "mlp.c_proj": (c, 4 * c)}
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"{prefix}{norm}.weight": (c,), f"{prefix}{norm}.bias": (c,)}
        for name, shape in linears.items():
            shapes |= {f"{prefix}{name}.weight": shape, f"{prefix}{name}.bias": shape[:1]}
    return shapes | {"ln_f.weight": (c,), "ln_f.bias": (c,)}


def random_weights(model: config.Model, vocab_size: int, seed: int) -> dict[str, np.ndarray]:
    """GPT-2's initialization: normal of `init_std`, residual outputs divided by sqrt(2 layers), norms 1, biases 0.

    Every tensor has its own counter-based stream (seed, name): the same float32 values on every machine.
    """
    weights = {}
    for name, shape in weight_shapes(model, vocab_size).items():
        if name.endswith(".bias"):
            weights[name] = np.zeros(shape, dtype=np.float32)
        elif ".ln_" in name or name.startswith("ln_"):
            weights[name] = np.ones(shape, dtype=np.float32)
        else:
            std = model.init_std / (math.sqrt(2 * model.n_layer) if name.endswith("c_proj.weight") else 1.0)
            draw = random.generator(seed, "base weights", name).standard_normal(shape, dtype=np.float32)
            weights[name] = draw * np.float32(std)
    return weights


def weights_sha256(weights: dict[str, np.ndarray]) -> str:
    """Digest of names and float32 values, in the order of `weight_shapes`."""
    digest = hashlib.sha256()
    for name, value in weights.items():
        digest.update(name.encode() + b"\0")
        digest.update(np.ascontiguousarray(value, dtype="<f4").data)
    return digest.hexdigest()


def _buffer_name(name: str) -> str:
    return name.replace(".", "__")
